"""What a record's hash covers: the files that its run uses, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import peft_dp
from peft_dp import Spec, code

ROOT = Path(peft_dp.__file__).parents[1]
HASHES = """
import json, sys
from peft_dp import code
from peft_dp.spec import from_json
print(json.dumps(code.sha256(from_json(json.load(sys.stdin), "spec"))))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project."""
    folder = tmp_path_factory.mktemp("copy")
    for part in ("peft_dp", "bench", "docs", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def hashed(folder: Path, spec: Spec) -> str:
    """The hash of the code of a spec, as the copy finds it."""
    from peft_dp.spec import to_json

    given = json.dumps(to_json(spec))
    done = subprocess.run(
        [sys.executable, "-c", HASHES], cwd=folder, input=given, capture_output=True, text=True, check=True
    )
    found: str = json.loads(done.stdout)
    return found


USED = ["spec.py", "runs.py", "privacy/gradients.py", "training/loop.py", "methods/bitfit.py", "models/backbone.py"]
USED += ["backbones/minilm.py", "backbones/bert.py", "tasks/generated.py", "tasks/_words.py", "measuring/metrics.py"]
OTHERS = ["methods/lora.py", "backbones/roberta.py", "tasks/glue.py", "methods/_attach.py", "__main__.py"]
OTHERS += ["suite/papers/table.py", "suite/verdicts/cells.py", "suite/plan/estimate.py", "suite/audit/attack.py"]


def test_edits(copy: Path, spec: Callable[..., Spec]) -> None:
    """An edit of a file that the run uses makes its record another; an edit of any other file leaves it good."""
    of = spec(backbone="minilm", method="bitfit", task="sentiment")
    first = hashed(copy, of)
    package = copy / "peft_dp"
    others = [package / name for name in OTHERS]
    others += [next((copy / folder).rglob("*.*")) for folder in ("bench", "docs", "tests")]
    for path in others:
        path.write_text(path.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    assert first == hashed(copy, of)

    changed = []
    for name in USED:
        path = package / name
        text = path.read_text(encoding="utf-8")
        path.write_text(text + "\n# edited\n", encoding="utf-8")
        changed.append(hashed(copy, of))
        path.write_text(text, encoding="utf-8")

    assert len({first, *changed}) == len(USED) + 1
    assert first == hashed(copy, of)


def test_a_method_on_others(spec: Callable[..., Spec]) -> None:
    """A method that is made of others, and a backbone that is, count those too."""
    names = {path.name for path in code.files("methods.two_phase", "backbones.roberta")}

    assert {"two_phase.py", "bitfit.py", "full.py", "roberta.py", "bert.py"} <= names
    assert "lora.py" not in names


def test_nothing_is_missed(spec: Callable[..., Spec]) -> None:
    """All of the package that is loaded once a run is over is among the files that the hash covers."""
    run = """
import json, sys
from peft_dp import Places, run
from peft_dp.spec import Optimiser, Privacy, Spec
run(Spec(budget="smoke", backbone="minilm", task="sentiment", train=8, dev=8, epochs=1, batch=4, max_length=16,
         method="lora", config={"rank": 2, "alpha": 2}, privacy=Privacy(epsilon=8.0, delta=1e-3),
         optimiser=Optimiser(rate=0.01)), Places(device="cpu"))
print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.startswith("peft_dp.")]))
"""
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {Path(file) for file in json.loads(done.stdout)}
    held = set(code.files("runs", "methods.lora", "backbones.minilm", "implementations.own", "tasks.generated"))
    found_by_name = {path for path in loaded if path.parent.name == "tasks"}  # to find the task's

    assert code.FOLDER / "training" / "loop.py" in loaded
    assert not loaded - held - found_by_name
