"""Verdicts of runs that trained and learnt nothing: never a quiet pass."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest

from peft_dp import Record, Spec
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.table import Expect
from peft_dp.suite.verdicts.cells import Verdict, judge_cell
from peft_dp.suite.verdicts.finding import Finding
from peft_dp.training.trail import Epoch

Make = Callable[..., Spec]
Check = Callable[..., Verdict]

MAJORITY = 60.0
RESOLUTION = 1.96 * 100 * sqrt(0.6 * 0.4 / 500)
"""How far another 500 dev examples would move an accuracy of 60 in 19 cases of 20: 4.3 points."""


@pytest.fixture
def verdict(spec: Make, cell: Callable[..., Cell]) -> Check:
    """Compares runs of so many answers each, at the majority's score, with what is printed or recorded."""

    def make(*answers: float, printed: Expect | None = None, recorded: tuple[float, ...] = (), loss: Any = 0.5) -> Any:
        held = cell({"score": printed} if printed else {}, {"row": {"sentiment": list(recorded)}} if recorded else {})
        epoch = Epoch(loss=loss, clipped=None, examples=24, tokens=300, steps=3, seconds=1.0)
        rest: dict[str, Any] = {"ledger": None, "trail": [epoch], "cost": {}, "sources": {}, "environment": {}}
        records = [
            Record(
                key="0" * 64,
                spec=spec(seed=seed),
                values={"score": MAJORITY, "above_majority": 0.0, "answers": number},
                **rest,
            )
            for seed, number in enumerate(answers)
        ]
        return judge_cell(held, records)

    return make


def only(verdict: Verdict, quantity: str) -> Finding:
    """The finding of that quantity."""
    (found,) = (finding for finding in verdict.findings if finding.quantity == quantity)
    return found


def test_same_answer_to_all(verdict: Check) -> None:
    """A run that says one class of everything differs, however wide its band, if more was expected of it."""
    found = verdict(1.0, printed=Expect(value=MAJORITY + RESOLUTION + 0.1, std=50.0, runs=3))

    assert found.status == "differs"
    assert only(found, "score").status != "differs"
    assert "trained, but nothing learnt: the score is that of always saying the same class, with seed 0" in str(found)


@pytest.mark.parametrize(
    ("expected", "status"),
    [
        ({"printed": Expect(value=MAJORITY + RESOLUTION - 0.1)}, "amber"),
        ({"recorded": (MAJORITY, 80.0, 80.0, 80.0, 80.0)}, "amber"),
        ({"recorded": (78.0, 79.0, 80.0, 81.0, 82.0)}, "differs"),
        ({"printed": Expect(value=MAJORITY, asserted=False), "recorded": (78.0, 79.0, 80.0, 81.0, 82.0)}, "differs"),
    ],
    ids=["printed there", "a seed recorded there", "recorded above", "printed, not asserted"],
)
def test_as_little_is_expected(verdict: Check, expected: dict[str, Any], status: str) -> None:
    """Where what is expected is no better than the most frequent class, the same answer to all is seen, and passes."""
    assert only(verdict(1.0, **expected), "answers").status == status


def test_one_seed_of_several(verdict: Check) -> None:
    """One run that says the same of everything is not hidden by others that do not."""
    found = verdict(2.0, 1.0, 2.0, printed=Expect(value=90.0, std=50.0, runs=3))

    assert found.status == "differs"
    assert "with seed 1" in str(found)


def test_majority_score_by_chance(verdict: Check) -> None:
    """A score that equals the majority's, of different answers, is no sign by itself."""
    found = verdict(2.0, printed=Expect(value=MAJORITY))

    assert {"score"} == {finding.quantity for finding in found.findings}


def test_no_score_is_expected(verdict: Check) -> None:
    """A row that is there for its time or memory does not have to learn."""
    assert not verdict(1.0, printed=Expect(value=MAJORITY, asserted=False)).findings


def test_loss_that_is_not_finite(verdict: Check) -> None:
    """A run that ends with a loss that is not finite differs, also where no loss was recorded."""
    found = verdict(2.0, 2.0, printed=Expect(value=MAJORITY), loss=None)

    assert found.status == "differs"
    assert "trained, but nothing learnt: the last epoch's loss is not finite with seed 0, 1" in str(found)
