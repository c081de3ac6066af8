"""docs/extend.md, done as it says in a copy of the project: a method, a backbone, a task and a table of one's own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^\*\*([\w/.]+)\*\*\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(BLOCK.findall((ROOT / "docs" / "extend.md").read_text(encoding="utf-8")))
"""File -> what it holds, of all that the page adds."""
SCHEMAS = [f"expected/{name}.schema.json" for name in ("claims", "facts", "recorded", "table")]
CELL = "ours/tickets/top-norm/tickets"

pytestmark = pytest.mark.slow  # a dozen processes, each of which imports torch


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder by its path, caches left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", ".hypothesis"} & set(path.parts)
    }


def run(folder: Path, *words: str) -> str:
    """What Python prints for a module, run in a folder; it must end well."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def pytest_in(folder: Path, *words: str) -> str:
    """What pytest prints in a folder; all tests must pass."""
    return run(folder, "pytest", "-q", "-p", "no:cacheprovider", *words)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the additions, and nothing else, that the page names."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("peft_dp", "bench", "docs", "expected", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    before = hashes(folder)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    run(folder, "peft_dp.suite.papers.schema")
    after = hashes(folder)

    assert before.keys() <= after.keys()
    assert after.keys() - before.keys() == FILES.keys()
    assert {name for name in before if before[name] != after[name]} <= {*SCHEMAS}
    return folder


@pytest.fixture(scope="module")
def options(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Where the data and the weights are, as options of the verbs."""
    from transformers import AutoConfig, AutoModel, BertTokenizerFast  # type: ignore[attr-defined]

    folder = tmp_path_factory.mktemp("places")
    model = folder / "our-bert"
    model.mkdir()
    words = [f"word{number}" for number in range(20)]
    (model / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(str(model / "vocab.txt")).save_pretrained(model)
    code = "import json; from peft_dp.backbones.our_bert import CONFIG; print(json.dumps(CONFIG))"
    config = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True).stdout
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**json.loads(config))).save_pretrained(model)
    (folder / "tickets").mkdir()
    for split, count in (("train", 120), ("dev", 60)):
        rows = [
            {"text": " ".join(words[number % 7 : number % 7 + 8]), "label": ("routine", "urgent")[number % 2]}
            for number in range(count)
        ]
        (folder / "tickets" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--peft-data", str(folder), "--peft-backbones", str(folder), "--peft-device", "cpu"]


def test_verbs(copy: Path, options: list[str]) -> None:
    """Each verb knows the new cell, and a run of it has a verdict."""
    data, backbones = options[1], options[3]
    places = ["--data", data, "--backbones", backbones, "--device", "cpu", "--records", str(copy / "records")]

    assert CELL in run(copy, "peft_dp", "list", "ours/")
    assert "our report of May" in run(copy, "peft_dp", "show", CELL)
    assert CELL in run(copy, "peft_dp", "plan", "ours/", "-v")
    assert "386" in run(copy, "peft_dp", "run", CELL, *places)
    assert "top-norm" in run(copy, "peft_dp", "report", str(copy / "records"))


def test_bench(copy: Path, options: list[str]) -> None:
    """Its test in the bench trains and asserts."""
    assert "1 passed" in pytest_in(copy, "bench/test_ours.py", "-m", "small", *options)


@pytest.mark.parametrize(
    "words",
    [
        ["tests/methods/test_contract.py", "-k", "top_norms"],
        ["tests/test_registry.py", "tests/test_flow.py", "-k", "not absolute and not layers"],
        ["tests/tasks", "tests/training/test_job.py", "tests/models/test_backbone.py"],
        ["tests/suite/papers"],
        ["tests/suite/plan", "-k", "our_bert or order or torch or unknown"],
        ["tests/suite/plugin/test_bench.py", "-k", "every"],
        ["tests/suite/doctor"],
        ["tests/suite/cli", "-k", "list or show or help"],
    ],
    ids=lambda words: words[0],
)
def test_contracts(copy: Path, words: list[str]) -> None:
    """The project's own tests hold for what is new, and none fails because of it."""
    assert " passed" in pytest_in(copy, *words)
