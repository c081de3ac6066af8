"""Entities: the score's definition, and the generated sentences."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache

import pytest

from peft_dp import tasks
from peft_dp.measuring import metrics
from peft_dp.tasks import Data, Example, conll, generated


def indices(text: str) -> list[int]:
    """Tags written with spaces between them, as indices."""
    return [conll.TAGS.index(tag) for tag in text.split()]


@cache
def data() -> Data:
    """The generated sentences, made once for all tests."""
    return tasks.load("entities")


@pytest.mark.parametrize(
    ("predicted", "known", "expected"),
    [
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", 1.0),
        ("B-PER O O B-LOC", "B-PER I-PER O B-LOC", 1 / 2),
        ("B-ORG I-ORG O B-LOC", "B-PER I-PER O B-LOC", 1 / 2),
        ("B-PER B-PER O O", "B-PER I-PER O B-LOC", 0.0),
        ("B-PER B-PER", "B-PER B-PER", 1.0),
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC", 1.0),
        ("B-PER I-LOC", "B-PER B-LOC", 1.0),
        ("O O I-MISC", "O O B-MISC", 1.0),
        ("B-PER O O", "B-PER O B-ORG", 2 / 3),
        ("B-PER B-LOC B-LOC", "B-PER O O", 1 / 2),
        ("O O", "B-PER I-PER", 0.0),
        ("O O", "O O", 0.0),
    ],
)
def test_entity_f1(predicted: str, known: str, expected: float) -> None:
    """An entity counts where its first word, its last word and its type agree."""
    assert expected == pytest.approx(metrics.score("entity_f1", indices(predicted), indices(known)))


def test_majority() -> None:
    """Always saying O finds no entity."""
    assert metrics.majority("entity_f1", indices("O B-PER O O")) == 0.0


def test_equals_seqeval() -> None:
    """Over random tags, ill-formed ones included, the score is that of seqeval."""
    scores = pytest.importorskip("seqeval.metrics", reason="needs seqeval: pip install seqeval")
    draw = random.Random(0)
    for _ in range(200):
        lengths = [draw.randint(1, 9) for _ in range(5)]
        known, other = ([draw.choices(range(9), k=length) for length in lengths] for _ in range(2))
        # About half of the tags are right, so that entities do agree.
        predicted = [[draw.choice(pair) for pair in zip(*rows, strict=True)] for rows in zip(known, other, strict=True)]
        named = [[[conll.TAGS[tag] for tag in row] for row in rows] for rows in (known, predicted)]
        joined = [[tag for row in rows for tag in (*row, 0)] for rows in (predicted, known)]

        assert scores.f1_score(*named, zero_division=0) == pytest.approx(metrics.score("entity_f1", *joined))


def examples() -> Sequence[Example]:
    """All generated sentences."""
    return [*data().train, *data().dev]


def test_tag_for_each_word() -> None:
    """Each word has a tag, and an entity begins with B-."""
    for example in examples():
        assert isinstance(example.label, tuple)
        tags = [conll.TAGS[index] for index in example.label]

        assert len(tags) == len(example.first.split(" "))
        for before, tag in zip(["O", *tags], tags, strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:]


def test_every_tag() -> None:
    """Both splits have every tag, and sentences without entities."""
    for split in (data().train, data().dev):
        assert {index for example in split for index in example.label} == set(range(9))  # type: ignore[union-attr]
        assert any(not any(example.label) for example in split)  # type: ignore[arg-type]


def test_distinct() -> None:
    """No sentence occurs twice, neither in a split nor across the two."""
    texts = [example.first for example in examples()]

    assert len(texts) == len(set(texts)) == generated.TRAIN + generated.DEV


def joined(split: Sequence[Example], tag: Callable[[str], int] | None = None) -> list[float]:
    """The tags of all sentences, or those that `tag` gives the words, with an O after each sentence."""
    rows = [map(tag, example.first.split()) if tag else example.label for example in split]
    return [index for row in rows for index in (*row, 0)]  # type: ignore[misc]


def test_words_alone_do_not_solve_it() -> None:
    """Giving each word its most frequent tag scores below 0.5 on train and on dev."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for example in data().train:
        for word, tag in zip(example.first.split(), example.label, strict=True):  # type: ignore[arg-type]
            counts[word][tag] += 1

    def frequent(word: str) -> int:
        return counts[word].most_common(1)[0][0] if word in counts else 0

    for split in (data().train, data().dev):
        assert metrics.score("entity_f1", joined(split, frequent), joined(split)) < 0.5
