"""Random weights in a backbone's shape: nothing is fetched, everything repeats, and it trains as pretrained ones do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
import torch
from transformers import AutoModel

from peft_dp import Places, Privacy, Spec, registry, run, tasks
from peft_dp.models import weights
from peft_dp.models.source import Random
from peft_dp.models.tokens import encode
from peft_dp.suite import papers
from peft_dp.suite.papers.cell import Cell
from peft_dp.training.job import Job, build, find_sources

Make = Callable[..., Spec]
BACKBONES = ("roberta", "roberta_large", "distilbert")
SMALL = {
    "vocab_size": 64,
    **dict.fromkeys(("hidden_size", "dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_attention_heads", "n_heads"), 2),
    **dict.fromkeys(("intermediate_size", "hidden_dim"), 32),
}
NOWHERE = Places(data=Path("no-such-folder"), backbones=Path("no-such-folder"), device="cpu")
CELLS = [cell for cell in papers.cells() if cell.spec.weights == "random"]
ROWS = list({(cell.spec.method, cell.spec.privacy is None): cell for cell in CELLS}.values())
"""A cell of each method, private and not."""


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that must not be asked."""

    def fail(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError("the hub was asked")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, fail)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbones' shapes, made small."""
    # All are imported before the first is made small: RoBERTa-large takes what it shares from RoBERTa.
    for module in [registry.load("backbones", name) for name in BACKBONES]:
        shape = {key: SMALL.get(key, value) for key, value in module.CONFIG.items()}
        monkeypatch.setattr(module, "CONFIG", shape)


@pytest.mark.parametrize("at_hand", CELLS, ids=lambda cell: cell.id)
def test_every_cell_is_at_hand(at_hand: Cell) -> None:
    """What a cell of random weights names is found on a machine with no data, no weights and no hub."""
    sources = find_sources(at_hand.spec, NOWHERE)

    assert (at_hand.spec.train, "random") == (sources.examples.train, sources.weights_sha256)


@pytest.mark.parametrize("row", ROWS, ids=lambda cell: f"{cell.table.table}-{cell.row.id}")
def test_methods_train(row: Cell, small: None) -> None:
    """Each method of such rows trains on such a machine, private and not, and its time and memory are measured."""
    # Whose noise is found fast.
    privacy = row.spec.privacy and Privacy(epsilon=8.0, delta=1e-2, accountant="rdp")
    spec = replace(row.spec, train=8, dev=4, batch=4, max_length=24, privacy=privacy)
    record = run(spec, NOWHERE)

    assert [2] * spec.epochs == [epoch.steps for epoch in record.trail]
    assert all(epoch.loss is not None and epoch.tokens > 0 for epoch in record.trail)
    assert all(math.isfinite(record.cost[name]) and record.cost[name] > 0 for name in ("epoch_seconds", "peak_bytes"))
    assert "random" == record.sources["weights"]
    assert (spec.privacy is None) == (record.ledger is None)


@pytest.fixture
def job(spec: Make, small: None) -> Callable[..., Job]:
    """Builds a job of random weights; arguments replace fields of its spec."""

    def make(**fields: object) -> Job:
        made = spec(**({"backbone": "roberta", "task": "qnli-lengths", "weights": "random"} | fields))
        return build(made, find_sources(made, NOWHERE))

    return make


def values(job: Job) -> Iterator[torch.Tensor]:
    """All values of the encoder."""
    return (parameter.detach() for parameter in job.backbone.encoder.parameters())


def test_seeds_share_the_encoder(job: Callable[..., Job]) -> None:
    """Every seed of a run starts from the same encoder, as with pretrained weights, and draws a head of its own."""
    first, second = job(seed=1), job(seed=2)

    assert all(torch.equal(*pair) for pair in zip(values(first), values(second), strict=True))
    assert not torch.equal(first.backbone.head[0], second.backbone.head[0])


def test_other_draws_stay(small: None) -> None:
    """Drawing the weights neither follows the global generator nor moves it."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = weights.model(Random("roberta"), AutoModel)
    after = torch.get_rng_state()
    torch.manual_seed(8)
    second = weights.model(Random("roberta"), AutoModel)

    assert torch.equal(before, after)
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("readout", ["cls", "mean", "mask"])
def test_read_outs(job: Callable[..., Job], readout: str) -> None:
    """Random weights serve each read-out of a sentence, the mask's among them."""
    built = job(readout=readout, max_length=512)
    losses = built.losses(built.batch(built.train, [0, 1, 2]))

    assert (3,) == tuple(losses.shape)
    assert losses.isfinite().all()


@pytest.mark.parametrize(
    ("name", "size"), [("roberta", 124_055_040), ("roberta_large", 354_310_144), ("distilbert", 66_362_880)]
)
def test_shape(name: str, size: int) -> None:
    """The model has as many values as the published one, its pooler left out."""
    options: dict[str, Any] = {"add_pooling_layer": False} if registry.load("backbones", name).FAMILY.pooler else {}
    with torch.device("meta"):
        made = weights.model(Random(name), AutoModel, **options)

    assert size == sum(parameter.numel() for parameter in made.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_tokens(name: str) -> None:
    """Each word of a generated sequence is one token that the backbone has; the second sentence's are marked."""
    examples = tasks.load("qnli-lengths").dev
    found = encode(examples, tasks.find("qnli-lengths"), Random(name), 512)
    vocabulary = weights.tokenizer(Random(name)).get_vocab()
    unknown = vocabulary["[UNK]"]

    for example, ids, types in zip(examples, found.ids, found.types, strict=True):
        assert example.second
        first, second = len(example.first.split()), len(example.second.split())

        assert first + second + 3 == len(ids)
        assert second + 1 == sum(types)
        assert unknown not in ids
    assert sorted(vocabulary.values()) == list(range(registry.load("backbones", name).CONFIG["vocab_size"]))
    assert found.pad == vocabulary["[PAD]"]


def test_too_many_words(small: None) -> None:
    """A word that the backbone's vocabulary has no number for is the unknown one, and still one token."""
    vocabulary = weights.tokenizer(Random("roberta")).get_vocab()

    assert [vocabulary["58"], vocabulary["[UNK]"], vocabulary["[UNK]"]] == weights.tokenizer(Random("roberta"))(
        "58 59 film", add_special_tokens=False
    )["input_ids"]
