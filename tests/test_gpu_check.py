"""The GPU check of `bench/gpu/` runs on the project as it is; here on a CPU, with tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "bench" / "gpu"
UNITS = {"proofs", "products", "noise", "train_tiny", "rates", "train_large", "steps", "profile", "whatif"}
UNITS |= {"determinism default", "determinism strict", "tokens", "host", "seeds", "share1"}


@pytest.mark.slow
def test_try(tmp_path: Path) -> None:
    """Every unit of `gpu_check.sh try` tells what it found, and nothing is wrong."""
    env = os.environ | {"OUT": str(tmp_path), "KEEP": str(tmp_path / "keep"), "PYTHON": sys.executable}
    ran = subprocess.run(["bash", str(FOLDER / "gpu_check.sh"), "try"], env=env, capture_output=True, text=True)
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]

    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert {line["unit"] for line in found} >= UNITS
    assert not [line for line in found if line["ok"] is False or line["step"] in ("cut", "not started")]
