"""The suite: from the numbers that papers print to verdicts on our records."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = (_PACKAGE / "expected").is_dir()

HOME = _PACKAGE if _INSTALLED else _PACKAGE.parent
"""The folder that holds `expected/` and `bench/`: the package where a wheel was installed, else the repository."""


def pytest_command(paper: str = "", test: str = "") -> str:
    """Return the command line that runs the bench, or one test of a paper: by its file in a clone, else by module."""
    if _INSTALLED:
        return "pytest --pyargs " + (f'"peft_dp.bench.test_{paper}::{test}"' if paper else "peft_dp.bench")
    return "pytest " + (f'"bench/test_{paper}.py::{test}"' if paper else "bench")
