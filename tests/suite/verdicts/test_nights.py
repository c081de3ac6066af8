"""Two nights, a library changed in between: `compare` names the cell, the place and the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ...processes import ROOT, installed

pytestmark = pytest.mark.slow

CELL = "embedded/smoke/lora/sentiment"


def peft_dp(*words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a verb, with a folder in front of what is installed."""
    paths = os.pathsep.join(filter(None, [path, str(ROOT)]))
    return subprocess.run(
        [sys.executable, "-m", "peft_dp", *words],
        env=os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "place"),
    [
        (
            "transformers",
            "models/bert/modeling_bert.py",
            "self.scaling = self.attention_head_size**-0.5",
            "self.scaling = 1.01 * self.attention_head_size**-0.5",
            "loss of step 1",
        )
    ],
)
def test_changed_library(name: str, file: str, old: str, new: str, place: str, tmp_path: Path) -> None:
    """The run with the edited copy is red by itself; beside the night before the package is named too."""
    edited = installed(name, tmp_path / "edited") / file
    text = edited.read_text()
    assert old in text
    edited.write_text(text.replace(old, new))
    before, after = tmp_path / "before", tmp_path / "after"
    right = peft_dp("run", CELL, "--records", str(before))
    wrong = peft_dp("run", CELL, "--records", str(after), path=str(tmp_path / "edited"))
    found = peft_dp("compare", str(before), str(after))
    against = peft_dp("report", str(after), "--against", str(before))

    assert right.returncode == 0, right.stdout + right.stderr
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    assert f"parts from its recording at: {place}" in wrong.stdout
    assert found.returncode == 1
    assert f"{CELL}: seed 0 parts from the run before at: {place}" in found.stdout
    assert f"sources.{name}" in found.stdout
    assert against.returncode == 1
    assert f"parts from the baseline at: {place}" in against.stdout
    assert name in against.stdout.partition("the baseline at")[2]
