"""Batches: every example once, padded right, cut by tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
import torch

from peft_dp import Places, tasks
from peft_dp.models.batch import BUDGETS, Budget, Encoded
from peft_dp.models.tokens import encode
from peft_dp.tasks import Example

PART = BUDGETS["cpu"].part
PAD = 7


def encoded(lengths: Sequence[int]) -> Encoded:
    """Examples of those lengths, whose tokens are 100, 101, ... and whose label is their index."""
    ids = [list(range(100, 100 + length)) for length in lengths]
    types = [[0] * (length // 2) + [1] * (length - length // 2) for length in lengths]
    return Encoded(ids, types, torch.arange(len(lengths)), PAD)


@pytest.mark.parametrize("tokens", [1, 16, 50, 10_000])
def test_cut(tokens: int) -> None:
    """Every drawn example is in one part, longest first, and no part is over the limit but a single example."""
    draw = random.Random(0)
    lengths = [draw.randint(1, 30) for _ in range(60)]
    drawn = draw.sample(range(60), 40)
    parts = list(encoded(lengths).cut(drawn, Budget(tokens, PART)))
    flat = [index for part in parts for index in part]

    assert sorted(drawn) == sorted(flat)
    assert [lengths[index] for index in flat] == sorted((lengths[index] for index in drawn), reverse=True)
    assert all(len(part) == 1 or len(part) * lengths[part[0]] <= tokens for part in parts)


def test_cut_fills_parts() -> None:
    """A part is as large as the limit lets it be."""
    assert [[0, 1, 2], [3, 4, 5, 6, 7, 8], [9]] == list(encoded([4] * 3 + [2] * 7).cut(range(10), Budget(12, PART)))


@pytest.mark.parametrize(("drawn", "most"), [(32, 1.5), (512, 1.1), (2048, 1.05)])
def test_cut_pads_little(drawn: int, most: float) -> None:
    """Of sentences of SST-2's lengths, 3 to 60 and short for the most part, little of what is processed is padding."""
    draw = random.Random(0)
    lengths = [min(60, 3 + int(draw.expovariate(0.1))) for _ in range(drawn)]
    parts = encoded(lengths).cut(range(drawn))

    assert sum(len(part) * lengths[part[0]] for part in parts) <= most * sum(lengths)


def test_cut_costs_least() -> None:
    """No other cut of the sorted examples costs less, a part counting as much as its tokens and some more."""
    draw = random.Random(1)
    for _ in range(20):
        lengths = sorted((draw.choice([3, 40, 41, 60]) for _ in range(9)), reverse=True)
        costs = [
            sum((end - start) * lengths[start] + PART for start, end in pairwise([0, *ends, 9]))
            for count in range(9)
            for ends in combinations(range(1, 9), count)
            if all((end - start) * lengths[start] <= 160 for start, end in pairwise([0, *ends, 9]))
        ]
        parts = encoded(lengths).cut(range(9), Budget(160, PART))

        assert min(costs) == sum(len(part) * lengths[part[0]] + PART for part in parts)


def test_cut_does_not_depend_on_order() -> None:
    """The order in which examples were drawn does not change the parts."""
    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    turned = encoded(lengths).cut(list(reversed(range(10))), Budget(10, PART))

    assert list(encoded(lengths).cut(range(10), Budget(10, PART))) == list(turned)


def test_long_example_alone() -> None:
    """An example longer than the limit is a part of its own, and the others still share theirs."""
    assert [[1], [0, 2]] == list(encoded([4, 99, 4]).cut(range(3), Budget(10, PART)))


def test_cut_of_nothing() -> None:
    """An empty logical batch has no parts."""
    assert not list(encoded([4, 4]).cut([], Budget(10, PART)))


def test_batch() -> None:
    """A batch is padded at the right to its longest example; mask, types and positions go with it."""
    batch = encoded([2, 5, 3]).batch([2, 0], "cpu")

    assert len(batch) == 2
    assert [[100, 101, 102], [100, 101, PAD]] == batch.ids.tolist()
    assert [[1, 1, 1], [1, 1, 0]] == batch.mask.tolist()
    assert [[0, 1, 1], [0, 1, 0]] == batch.types.tolist()
    assert [[0, 1, 2], [0, 1, 2]] == batch.positions.tolist()
    assert [2, 0] == batch.labels.tolist()


@pytest.fixture
def tiny(places: Places) -> Encoded:
    """Pairs by the tiny BERT's tokenizer, cut at eight tokens."""
    assert places.backbones
    examples = [Example("the film", "a dull film", 0), Example("the a the a the a the", "we saw it", 2)]
    return encode(examples, tasks.find("inference"), places.backbones / "bert-base-cased", 8)


def test_encode_pairs(tiny: Encoded) -> None:
    """A pair is [CLS] first [SEP] second [SEP], and the second sentence has type 1, its [SEP] too."""
    (cls, *_, sep), types = tiny.ids[0], tiny.types[0]

    assert (2, 3) == (cls, sep)
    assert [0, 3, 7] == [place for place, token in enumerate(tiny.ids[0]) if token in (2, 3)]
    assert [0, 0, 0, 0, 1, 1, 1, 1] == list(types)


def test_encode_cuts(tiny: Encoded) -> None:
    """A longer pair is cut to the limit, specials included, and keeps both sentences."""
    assert len(tiny.ids[1]) == len(tiny.types[1]) == 8
    assert set(tiny.types[1]) == {0, 1}
    assert tiny.ids[1][-1] == 3


def test_encode_one_sentence(places: Places) -> None:
    """One sentence has one [SEP] and type 0 throughout, and is not padded."""
    assert places.backbones
    found = encode(
        [Example("the film", None, 1), Example("we saw it", None, 0)],
        tasks.find("sentiment"),
        places.backbones / "bert-base-cased",
        24,
    )

    assert [4, 5] == [len(ids) for ids in found.ids]
    assert [[0] * 4, [0] * 5] == [list(types) for types in found.types]
    assert found.pad == 0


@pytest.mark.parametrize(
    ("task", "labels", "kind"), [("sentiment", [1, 0], torch.int64), ("similarity", [2.5, 4.0], torch.float32)]
)
def test_labels(places: Places, task: str, labels: list[float], kind: torch.dtype) -> None:
    """Classes are whole numbers, scores are floats."""
    assert places.backbones
    examples = [Example("the film", "it", label) for label in labels]
    found = encode(examples, tasks.find(task), places.backbones / "bert-base-cased", 24).labels

    assert (kind, labels) == (found.dtype, found.tolist())
