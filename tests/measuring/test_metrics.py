"""Scores against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from peft_dp.measuring import metrics
from peft_dp.tasks import glue

# True positives, false positives, false negatives, true negatives: 2, 1, 1, 4.
LABELS = [1, 1, 1, 0, 0, 0, 0, 0]
PREDICTIONS = [1, 1, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", 6 / 8),
        ("f1", 2 / 3),
        ("mcc", (2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5)),
    ],
)
def test_classes(metric: str, expected: float) -> None:
    """Each score of classes is its formula over the confusion matrix."""
    actual = metrics.score(metric, PREDICTIONS, LABELS)

    assert actual == pytest.approx(expected)


@pytest.mark.parametrize(("metric", "expected"), [("pearson", 11 / math.sqrt(5 * 29)), ("spearman", 1.0)])
def test_correlations(metric: str, expected: float) -> None:
    """Pearson compares the scores 1, 2, 3, 4 and 1, 2, 3, 8, spearman their ranks."""
    actual = metrics.score(metric, [1.0, 2.0, 3.0, 8.0], [1.0, 2.0, 3.0, 4.0])

    assert actual == pytest.approx(expected)


def test_three_classes() -> None:
    """Accuracy counts any number of classes."""
    assert metrics.score("accuracy", [0, 1, 2, 2], [0, 1, 2, 0]) == 0.75


@pytest.mark.parametrize("metric", ["f1", "mcc", "pearson", "spearman"])
def test_constant(metric: str) -> None:
    """A prediction that is always 0 scores 0, without a warning."""
    assert metrics.score(metric, [0, 0, 0], [1, 0, 1]) == 0.0


def test_one_class() -> None:
    """Labels of a single class have no correlation, even when all are met."""
    assert metrics.score("mcc", [1, 1], [1, 1]) == 0.0


@pytest.mark.parametrize(
    ("metric", "labels", "expected"),
    [
        ("accuracy", [0, 1, 1, 2], 0.5),
        ("accuracy", [2, 0, 1, 1, 0], 0.4),
        ("f1", [1, 1, 1, 0], 6 / 7),
        ("f1", [1, 0], 0.0),
        ("mcc", [1, 1, 0], 0.0),
        ("pearson", [1.0, 2.5, 4.0], 0.0),
    ],
)
def test_majority(metric: str, labels: list[float], expected: float) -> None:
    """The most frequent class is predicted for all, the lowest where several are."""
    assert metrics.majority(metric, labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "predictions", "message"),
    [
        ("bleu", [1, 0], "unknown metric 'bleu'; known: accuracy, entity_f1, f1, mcc, pearson, spearman"),
        ("f1", [1], "f1 needs one prediction per label, not 1 for 2"),
        ("pearson", [1.0, math.nan], "pearson needs finite predictions and labels; training may have diverged"),
    ],
)
def test_refused(metric: str, predictions: list[float], message: str) -> None:
    """A message names the metric and what is wrong."""
    with pytest.raises(ValueError) as caught:
        metrics.score(metric, predictions, [1, 0])

    assert str(caught.value) == message


def test_nothing() -> None:
    """No labels have no score."""
    with pytest.raises(ValueError, match="not 0 for 0"):
        metrics.score("accuracy", [], [])


def test_known() -> None:
    """Every metric of a GLUE task exists."""
    assert {task.metric for task in glue.TASKS.values()} <= set(metrics.METRICS)
