"""The mask read-out: one text with a mask token in it, and the state of that token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_dp import Places, Spec, tasks
from peft_dp.models.batch import Encoded
from peft_dp.models.tokens import encode
from peft_dp.tasks import Example
from peft_dp.training.job import Job, build, find_sources

from ..gradients import per_example_gradients

CLS, SEP, MASK = 2, 3, 4


@pytest.fixture
def folder(places: Places) -> Path:
    """The tiny BERT's files."""
    assert places.backbones
    return places.backbones / "bert-base-cased"


def words(folder: Path, text: str) -> list[int]:
    """Token ids of a text without specials."""
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    return ids


def encoded(folder: Path, examples: list[Example], task: str, max_length: int = 24) -> Encoded:
    """Examples with a mask token each."""
    return encode(examples, tasks.find(task), folder, max_length, "mask")


def test_one_sentence(folder: Path) -> None:
    """A single sentence is followed by the mask token."""
    found = encoded(folder, [Example("the film", None, 1)], "sentiment")

    assert [[CLS, *words(folder, "the film"), MASK, SEP]] == [*found.ids]


def test_pair(folder: Path) -> None:
    """A pair is one text without a separator, the mask token between its sentences, all of type 0."""
    found = encoded(folder, [Example("the film", "a dull film", 0)], "inference")

    assert [[CLS, *words(folder, "the film"), MASK, *words(folder, "a dull film"), SEP]] == [*found.ids]
    assert [[0] * 8] == [*found.types]


def test_nothing_between(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer gets the sentences and the mask token joined without spaces."""
    from transformers import AutoTokenizer

    seen: list[Any] = []
    real = AutoTokenizer.from_pretrained(folder)

    class Watched:
        mask_token, mask_token_id, pad_token_id = real.mask_token, real.mask_token_id, real.pad_token_id

        def __len__(self) -> int:
            return len(real)

        def __call__(self, *texts: Any, **options: Any) -> Any:
            seen.extend(texts)
            return real(*texts, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **options: Watched())
    encoded(folder, [Example("the film", "a dull film", 0)], "inference")

    assert [["the film[MASK]a dull film"], None] == seen


def test_cut_away(folder: Path) -> None:
    """An example whose mask token is cut away is named; one whose second sentence is cut is fine."""
    long = Example("the " * 9, "the film", 0)
    kept = encoded(folder, [Example("the", "the " * 9, 0)], "inference", 8)

    assert MASK in kept.ids[0]
    with pytest.raises(ValueError, match=r"example 1 \('the the.*lost its mask token: 8 tokens are too few"):
        encoded(folder, [Example("the", "film", 0), long], "inference", 8)


def made(spec: Callable[..., Spec], places: Places, **fields: object) -> Job:
    """A job with the mask read-out, without dropout, in float64."""
    wanted = spec(readout="mask", dropout=False, **fields)
    job = build(wanted, find_sources(wanted, places))
    job.backbone.model.double()
    return job


def states(job: Job, indices: list[int]) -> Tensor:
    """The last layer's states [B, T, d]."""
    found: Tensor = job.backbone.encoder(**job.backbone.inputs(job.train.batch(indices, "cpu"))).last_hidden_state
    return found


@pytest.mark.parametrize("task", ["sentiment", "inference"])
def test_logits(spec: Callable[..., Spec], places: Places, task: str) -> None:
    """The head reads the state of the mask token of each example, padding or not."""
    job = made(spec, places, task=task)
    indices = list(range(6))
    places_of_mask = [list(job.train.ids[i]).index(MASK) for i in indices]
    head: Any = job.backbone.model.get_submodule("head")
    batch = job.train.batch(indices, "cpu")

    assert len(set(places_of_mask)) > 1
    torch.testing.assert_close(head(states(job, indices)[indices, places_of_mask]), job.backbone.logits(batch))


def test_first_mask(spec: Callable[..., Spec], places: Places) -> None:
    """Of two mask tokens, one of them in the data, the first is read."""
    job = made(spec, places)
    batch = job.train.batch([0], "cpu")
    batch.ids[0, 2] = MASK
    head: Any = job.backbone.model.get_submodule("head")
    found = job.backbone.encoder(**job.backbone.inputs(batch)).last_hidden_state

    assert 2 == int((batch.ids == MASK).sum())
    torch.testing.assert_close(head(found[:, 2]), job.backbone.logits(batch))


def test_as_released(spec: Callable[..., Spec], places: Places) -> None:
    """JR-WARP as released reads the token before the mask, of the same states."""
    correct, released = (
        made(spec, places, method="jr_warp", config={"size": 8, "readout": readout})
        for readout in ("correct", "as_released")
    )
    place = list(correct.train.ids[0]).index(MASK)
    head: Any = correct.backbone.model.get_submodule("head")
    expected = head(states(correct, [0])[:, place - 1])

    torch.testing.assert_close(released.backbone.logits(released.train.batch([0], "cpu")), expected)


@pytest.mark.parametrize("method", ["slash", "jr_warp"])
def test_gradients(spec: Callable[..., Spec], places: Places, method: str) -> None:
    """Per-example gradients with the mask read-out equal those of examples passed alone."""
    job = made(spec, places, method=method, config={"size": 8}, task="inference")
    indices = list(range(5))
    rows = []
    for index in indices:
        batch = job.train.batch([index], "cpu")
        loss = job.loss(job.backbone.logits(batch), batch.labels).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(job.backbone.trained().values()))]))
    found = per_example_gradients(job, job.train.batch(indices, "cpu"))

    torch.testing.assert_close(found, torch.stack(rows), rtol=0, atol=1e-12)
