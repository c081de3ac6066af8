"""The suite: from the numbers that papers print to verdicts on our records."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

HOME = _PACKAGE if (_PACKAGE / "expected").is_dir() else _PACKAGE.parent
"""The folder that holds `expected/` and `bench/`: the package where a wheel was installed, else the repository."""
