"""Tasks that tag words, from sentences to the score: labels on pieces, losses, gradients, predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from peft_dp import Places, Spec, methods, registry, run, tasks
from peft_dp.backbones import bert
from peft_dp.measuring import scores
from peft_dp.methods import _attach as attaching
from peft_dp.models.batch import IGNORED, Encoded
from peft_dp.models.tokens import encode
from peft_dp.spec import Privacy
from peft_dp.tasks import Example, conll
from peft_dp.training.job import Job, build, find_sources, mean_cross_entropy
from peft_dp.training.loop import fit

from ..gradients import clipped_sum, per_example_gradients

Make = Callable[..., Spec]


@pytest.fixture
def tokens(spec: Make) -> Make:
    """Makes a spec on tagged sentences."""

    def make(**fields: object) -> Spec:
        return spec(**({"task": "entities", "readout": "tokens"} | fields))

    return make


@pytest.fixture
def job(tokens: Make, places: Places) -> Callable[..., Job]:
    """Builds a job on tagged sentences; arguments replace the spec's fields."""

    def make(**fields: object) -> Job:
        return build(tokens(**fields), find_sources(tokens(**fields), places))

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer that splits words into pieces."""
    from transformers import BertConfig, BertTokenizerFast  # type: ignore[attr-defined]

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "##s", "##ed", "the", "u", ".", "n"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    BertConfig().save_pretrained(tmp_path)
    return tmp_path


def encoded(folder: Path, *examples: Example, max_length: int = 24) -> Encoded:
    """The examples as the task of tagged sentences encodes them."""
    return encode(examples, tasks.find("entities"), folder, max_length)


def test_first_piece(folder: Path) -> None:
    """A word's tag stands on its first piece; its other pieces, specials and padding have none."""
    found = encoded(folder, Example("the films U.N.", None, (0, 7, 3)), Example("film", None, (5,)))
    no = IGNORED

    # [CLS] the film ##s u . n . [SEP]
    assert [[2, 8, 5, 6, 9, 10, 11, 10, 3], [2, 5, 3]] == [list(ids) for ids in found.ids]
    assert [[no, 0, 7, no, 3, no, no, no, no], [no, 5, *[no] * 7]] == found.labels.tolist()


def test_words_are_not_parted_again(folder: Path) -> None:
    """A space that does not break, inside a word, does not make two."""
    found = encoded(folder, Example("the\xa0film .", None, (1, 0)))

    assert [[IGNORED, 1, IGNORED, 0, IGNORED]] == found.labels.tolist()


def test_cut(folder: Path) -> None:
    """The tags of words beyond the limit go with them."""
    found = encoded(folder, Example("the films the films", None, (0, 7, 0, 8)), max_length=5)

    assert [[IGNORED, 0, 7, IGNORED, IGNORED]] == found.labels.tolist()


def test_batch(folder: Path) -> None:
    """A batch's labels are as wide as its longest example."""
    found = encoded(folder, Example("the films", None, (0, 7)), Example("film", None, (5,)))

    assert [[IGNORED, 5, IGNORED]] == found.batch([1], "cpu").labels.tolist()
    assert found.batch([1, 0], "cpu").labels.shape == found.batch([1, 0], "cpu").ids.shape


def test_loss() -> None:
    """An example's loss is the mean over its own tagged tokens, whatever stands beside it; 0 without any."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator)
    labels = torch.tensor([[IGNORED, 1, 2, 0], [IGNORED, 4, IGNORED, IGNORED], [IGNORED] * 4])
    expected = [
        functional.cross_entropy(logits[0, 1:], labels[0, 1:]).item(),
        functional.cross_entropy(logits[1, 1:2], labels[1, 1:2]).item(),
        0.0,
    ]

    assert expected == pytest.approx(mean_cross_entropy(logits, labels).tolist())


@pytest.mark.parametrize("head", ["linear", "stock"])
def test_head(job: Callable[..., Job], head: str) -> None:
    """Each token has a logit a tag, by one linear layer of width 16 to 9 tags."""
    made = job(head=head, method="head")
    batch = made.dev.batch(range(3), "cpu")

    assert (*batch.ids.shape, 9) == tuple(made.backbone.logits(batch).shape)
    assert made.backbone.count() == 16 * 9 + 9


@pytest.mark.parametrize(
    ("task", "readout", "message"),
    [
        ("entities", "cls", "task 'entities' needs the readout 'tokens', not 'cls': take a row for such tasks"),
        (
            "sentiment",
            "tokens",
            "task 'sentiment' needs a readout other than 'tokens', not 'tokens': take a row for such tasks",
        ),
    ],
)
def test_readout(tokens: Make, places: Places, task: str, readout: str, message: str) -> None:
    """A task and a read-out that do not go together are refused."""
    with pytest.raises(ValueError) as caught:
        find_sources(tokens(task=task, readout=readout), places)

    assert message == str(caught.value)


def loop(job: Job, indices: list[int]) -> Tensor:
    """Gradients [B, P] of examples passed one at a time, unpadded."""
    trained, masks = job.backbone.trained(), job.backbone.masks
    rows = []
    for index in indices:
        batch = job.train.batch([index], "cpu")
        found = torch.autograd.grad(job.loss(job.backbone.logits(batch), batch.labels).sum(), list(trained.values()))
        rows.append(
            torch.cat([(g * masks[n] if n in masks else g).flatten() for n, g in zip(trained, found, strict=True)])
        )
    return torch.stack(rows)


@pytest.mark.parametrize("head", ["linear", "stock"])
@pytest.mark.parametrize("method", registry.names("methods"))
def test_equals_loop(job: Callable[..., Job], method: str, head: str) -> None:
    """Per-example gradients and clipped sums equal those of sentences passed one at a time, padding included."""
    config = methods.load(method).EXAMPLE.model_dump(mode="json")
    made = job(method=method, config=config, head=head, dropout=False)
    made.backbone.model.double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.backbone.trained().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    indices = list(range(6))
    expected = loop(made, indices)
    batch = made.train.batch(indices, "cpu")
    assert len(set(batch.mask.sum(1).tolist())) > 1

    torch.testing.assert_close(per_example_gradients(made, batch), expected, rtol=0, atol=1e-12)
    sums = clipped_sum(made, batch, 0.1).sums
    clipped = (0.1 / expected.norm(dim=1)).clamp(max=1.0) @ expected
    torch.testing.assert_close(torch.cat([value.flatten() for value in sums.values()]), clipped, rtol=0, atol=1e-10)


def test_predictions(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicted tags stand in the dev set's order, as when each sentence is asked alone, an O after each."""
    made = job()
    with torch.no_grad():
        made.backbone.model.get_parameter("head.weight").mul_(50)
    made.backbone.model.eval()
    alone: list[float] = []
    for index in range(len(made.dev)):
        batch = made.dev.batch([index], "cpu")
        alone += [*made.backbone.logits(batch).argmax(-1)[batch.labels != IGNORED].tolist(), 0]

    assert len(set(alone)) > 2
    assert alone == scores.predictions(made)


def test_score(job: Callable[..., Job]) -> None:
    """The right tags score 100, of which the most frequent tag would get nothing."""
    made = job()
    right = [tag for row in made.dev.labels.tolist() for tag in (*(t for t in row if t != IGNORED), 0)]

    assert [100, 100, 0] == [
        scores.trained(made, right)["score"],
        scores.trained(made, right)["above_majority"],
        scores.trained(made, [0] * len(right))["score"],
    ]


def test_entities_end_with_their_sentence(job: Callable[..., Job]) -> None:
    """Two sentences that end and begin inside an entity of one type have two entities, not one."""
    made = job(dev=2)
    labels = torch.full_like(made.dev.labels, IGNORED)
    labels[:, 1] = conll.TAGS.index("I-PER")
    made = replace(made, dev=replace(made.dev, labels=labels))

    assert scores.trained(made, [2, 0, 0, 0])["score"] == pytest.approx(100 * 2 / 3)


def test_learns(job: Callable[..., Job]) -> None:
    """Where every word has the same tag, the loss falls to a fraction."""
    made = job(epochs=10, method="full")
    same = torch.where(made.train.labels == IGNORED, IGNORED, 4)
    losses = [
        epoch.loss
        for epoch in fit(replace(made, train=replace(made.train, labels=same))).epochs
        if epoch.loss is not None
    ]

    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("privacy", [None, Privacy(epsilon=8.0, delta=1e-3)])
def test_run(tokens: Make, places: Places, privacy: Privacy | None) -> None:
    """A run ends in a record with a score, and a private one with its ledger."""
    record = run(tokens(privacy=privacy), places)

    assert 0 <= record.values["score"] <= 100
    assert (privacy is None) == (record.ledger is None)


@pytest.mark.parametrize(("method", "expected"), [("full", 107_726_601), ("head", 6_921), ("bitfit", 109_065)])
def test_counts(method: str, expected: int) -> None:
    """The counts of SLaSh's table 4: BERT-base without its pooler, and nine tags."""
    from transformers import BertConfig, BertForTokenClassification

    shape: dict[str, Any] = {name: value for name, value in bert.CONFIG.items() if name != "model_type"} | {
        "num_labels": 9
    }
    with torch.device("meta"):
        model = BertForTokenClassification(BertConfig(**shape))
    trained = attaching.attach(model, method)

    assert expected == sum(parameter.numel() for parameter in trained.values())
