"""Several sentences in one row: each gives what it gives alone, and little is padding."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from peft_dp.models import packing
from peft_dp.models.batch import BUDGETS, Budget, Encoded
from peft_dp.training.job import Job

READOUTS: dict[str, dict[str, Any]] = {
    "cls": {},
    "mean": {"readout": "mean"},
    "mask": {"readout": "mask"},
    "stock": {"head": "stock"},
    "tokens": {"task": "entities", "readout": "tokens"},
    "stock tokens": {"task": "entities", "readout": "tokens", "head": "stock"},
}


def sentences(count: int, seed: int = 0) -> Encoded:
    """Examples of lengths like SST-2's, 3 to 60 and short for the most part; the label is the index."""
    draw = random.Random(seed)
    lengths = [min(60, 3 + int(draw.expovariate(0.1))) for _ in range(count)]
    ids = [[draw.randrange(5, 20) for _ in range(length)] for length in lengths]
    return Encoded(ids, [[0] * length for length in lengths], torch.arange(count), 0)


@pytest.mark.parametrize("seed", range(20))
def test_rows(seed: int) -> None:
    """Every example is in one row, no row is longer than the width, and the width is a multiple of the step."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, draw.choice([5, 40, 200])) for _ in range(draw.randint(1, 80))]
    rows, width = packing.rows(lengths)

    assert sorted(k for row in rows for k in row) == list(range(len(lengths)))
    assert max(sum(lengths[k] for k in row) for row in rows) <= width
    assert width % packing.STEP == 0


def test_width_of_fewest_places() -> None:
    """A wider row is taken where it wastes less: 3 sentences of 33 fill 99 of 128 places, or 3 rows of 64."""
    assert ([[0], [1], [2]], 64) != packing.rows([33, 33, 33])
    assert packing.rows([33, 33, 33])[1] == 128
    assert packing.rows([20, 12, 30])[1] == 32


@pytest.mark.parametrize(("count", "most"), [(128, 1.05), (512, 1.05), (2048, 1.05)])
@pytest.mark.parametrize("seed", range(3))
def test_little_padding(count: int, most: float, seed: int) -> None:
    """Of what is processed of a logical batch at most a twentieth more than its tokens; parts keep to their size."""
    data = sentences(count, seed)
    parts = list(data.split(range(count)))
    processed = sum(data.packed(part, "cpu").ids.numel() for part in parts)

    assert sorted(i for part in parts for i in part) == list(range(count))
    assert processed <= most * sum(data.lengths)
    assert all(sum(data.lengths[i] for i in part) <= 1.1 * BUDGETS["cpu"].tokens for part in parts)


def test_split_of_few() -> None:
    """An example longer than a part is one by itself, no examples are no parts, and the order drawn does not matter."""
    long = Encoded([[5] * 90, [5] * 3], [[0] * 90, [0] * 3], torch.zeros(2), 0)

    assert [[0], [1]] == list(long.split([1, 0], Budget(50, 0)))
    assert not list(long.split([]))


def test_places() -> None:
    """A row's tokens are those of its examples, each with positions from 0 on, its label where its index is."""
    data = sentences(30)
    drawn = [7, 3, 21, 12, 0]
    batch = data.packed(drawn, "cpu")
    where = batch.packing
    assert where
    for k, i in enumerate(drawn):
        mine = where.owner == k
        assert data.ids[i] == batch.ids[mine].tolist()
        assert list(range(data.lengths[i])) == batch.positions[mine].tolist()
        assert mine.flatten()[where.starts[k]]
    assert drawn == batch.labels.tolist()
    assert int((where.owner < 5).sum()) == sum(data.lengths[i] for i in drawn)


@pytest.mark.parametrize("fields", READOUTS.values(), ids=READOUTS)
@pytest.mark.parametrize("method", ["bitfit", "slash", "adapter"])
def test_as_alone(job: Callable[..., Job], method: str, fields: dict[str, Any]) -> None:
    """Logits are those of each example alone, unpadded, to 1e-12, in training and evaluation."""
    config = {"bitfit": {}, "slash": {"size": 8}, "adapter": {"bottleneck": 4}}[method]
    made = job(method=method, config=config, **fields)
    together = made.backbone.logits(made.train.packed(range(12), "cpu"))
    least = 1e-7 if made.backbone.readout == "mean" else 1e-12  # a padded mean's weights are float32
    for index in range(12):
        alone = made.backbone.logits(made.train.batch([index], "cpu"))[0]
        torch.testing.assert_close(together[index][: len(alone)], alone, rtol=0, atol=least)


def test_others_do_not_matter(job: Callable[..., Job]) -> None:
    """Exchanging the words of all others in a row leaves an example's logits bit for bit."""
    made = job()
    data = replace(
        made.train, ids=[made.train.ids[0], *([i[0], *[9] * (len(i) - 2), i[-1]] for i in made.train.ids[1:])]
    )
    one, other = (made.backbone.logits(d.packed(range(12), "cpu"))[0] for d in (made.train, data))

    assert torch.equal(one, other)


@pytest.mark.parametrize("readout", ["cls", "mask"])
def test_last_layer_where_it_is_read(job: Callable[..., Job], readout: str) -> None:
    """The last layer's feed-forward block sees one place of each example; its keys all; with dropout both see all."""
    made = job(readout=readout)
    seen: dict[str, tuple[int, ...]] = {}
    for role in ("key", "intermediate"):
        site = made.backbone.sites(role)[-1]
        site.register_forward_hook(lambda site, inputs, output, role=role: seen.update({role: output.shape[:2]}))
    batch = made.train.packed(range(12), "cpu")
    made.backbone.logits(batch)
    assert {"key": batch.ids.shape, "intermediate": (12, 1)} == seen

    for module in made.backbone.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    made.backbone.logits(batch)
    assert {"key": batch.ids.shape, "intermediate": batch.ids.shape} == seen


def test_layer_is_its_own_again(job: Callable[..., Job]) -> None:
    """After an error in a packed pass the last layer computes as ever, and nothing is packed."""
    made = job()
    whole = made.train.batch([0, 1], "cpu")
    before = made.backbone.logits(whole)
    handle = made.backbone.layers[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.backbone.logits(made.train.packed([0, 1], "cpu"))
    handle.remove()

    assert packing.current() is None
    assert torch.equal(before, made.backbone.logits(whole))
