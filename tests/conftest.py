"""Fixtures: a tiny BERT that stands in for a pretrained one, and real data where its folder is given."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_dp.machine import Places
from peft_dp.spec import Optimiser, Spec
from peft_dp.suite.papers import reader
from peft_dp.tasks import own
from peft_dp.training.job import Job, build, find_sources

# Models here are so small that a second thread costs more than it gives; what tests start heeds the variable.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests start dozens of processes; without bytecode each would compile every file of the project anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.pop("PEFT_DP_WORKERS", None)  # a worker of pytest-xdist tests what one process alone does

WORDS = ["the", "a", "film", "was", "not", "good", "bad", "dull", "fine", "we", "saw", "it", "and", "very", "but", "of"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for what may not be passed on."""
    parser.addoption("--texts", type=Path, metavar="DIR", help="the papers' texts, to compare the tables with")


def pytest_configure(config: pytest.Config) -> None:
    """Make every warning an error here; the bench must also run beside a library's main branch."""
    config.addinivalue_line("filterwarnings", "error")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a file's tests to one worker under `-n`, since what they share takes the longest to make."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getoption("dist") == "load" else None


def given(folder: Path | None, needs: str) -> Path:
    """The folder of an option; a test without it is skipped, with what it needs."""
    if folder is None:
        pytest.skip(f"needs {needs}")
    return folder


@pytest.fixture(autouse=True)
def no_task_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the tasks that a test makes in Python: another test asks for all there are."""
    monkeypatch.setattr(own, "TASKS", {})


@pytest.fixture(autouse=True, scope="session")
def tokens_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tokens of tests in a folder of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFT_DP_CACHE", str(tmp_path_factory.mktemp("tokens")))
        yield


@pytest.fixture(scope="session")
def glue_folder(request: pytest.FixtureRequest) -> Path:
    """The folder of real GLUE data."""
    return given(request.config.option.peft_data, "real data: pass --peft-data DIR with GLUE's official folders")


@pytest.fixture(scope="session")
def texts(request: pytest.FixtureRequest) -> Path:
    """The folder of the papers' texts."""
    return given(request.config.option.texts, "the papers' texts: pass --texts DIR")


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Places with a tiny random BERT under the name of the real one."""
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    base = tmp_path_factory.mktemp("backbones")
    folder = base / "bert-base-cased"
    folder.mkdir()
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return Places(backbones=base, device="cpu")


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the project's tables; what a test writes there counts at once."""
    folder = tmp_path / "expected"
    folder.mkdir()
    monkeypatch.setattr(reader, "FOLDER", folder)
    return folder


@pytest.fixture
def spec() -> Callable[..., Spec]:
    """Makes a spec that trains the tiny BERT for a moment; arguments replace its fields."""

    def make(**fields: object) -> Spec:
        small = {
            "budget": "smoke",
            "backbone": "bert",
            "task": "sentiment",
            "train": 24,
            "dev": 12,
            "method": "bitfit",
            "optimiser": Optimiser(rate=0.01),
            "epochs": 2,
            "batch": 8,
            "max_length": 24,
        }
        return Spec(**(small | fields))  # type: ignore[arg-type]

    return make


@pytest.fixture
def job(spec: Callable[..., Spec], places: Places) -> Callable[..., Job]:
    """Build a job of the tiny BERT in float64 without dropout; arguments replace the spec's fields."""

    def make(**fields: Any) -> Job:
        made = spec(**({"dropout": False} | fields))
        found = build(made, find_sources(made, places))
        found.backbone.model.double().train()
        return found

    return make
