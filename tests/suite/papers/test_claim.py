"""Claims: what stands on each side of a relation, which claims are tested where, and the verdict on records."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from peft_dp import Record
from peft_dp.suite import papers
from peft_dp.suite.papers.claim import RELATIONS, Claim
from peft_dp.suite.verdicts.claims import judge_claim
from peft_dp.suite.verdicts.finding import Finding

Say = Callable[..., Claim]

SCORES = {
    "ours": {"sentiment": 80.1, "inference": 60.2},
    "theirs": {"sentiment": 80.0, "inference": 62.0},
    "cited": {"sentiment": 70.0, "inference": 50.0},
    "silent": {"sentiment": 75.0},
}
"""Row -> task -> printed score; the last row prints none for inference."""
STD = {"std": 1.0, "runs": 11}
"""A printed spread of 10 degrees of freedom; the table has it for every row but the cited one."""
TABLE: dict[str, Any] = {
    "paper": "paper",
    "table": "table",
    "title": "A table",
    "source": "nowhere",
    "budget": "smoke",
    "defaults": {
        "backbone": "bert",
        "dev": 500,
        "optimiser": {"rate": 0.1},
        "epochs": 1,
        "batch": 8,
        "method": "head",
    },
    "tasks": {"sentiment": {}, "inference": {}},
    "rows": [
        {
            "id": row,
            "title": row,
            "cited": "elsewhere" * (row == "cited"),
            "expect": {"trainable": {"value": 10 * (number + 1)}},
            "cells": {
                task: {"score": {"value": scores[task]} | (STD if row != "cited" else {})} if task in scores else {}
                for task in ("sentiment", "inference")
            },
        }
        for number, (row, scores) in enumerate(SCORES.items())
    ],
}
CLAIM: dict[str, Any] = {
    "id": "c1",
    "says": "Ours is better.",
    "section": "1",
    "table": "table",
    "left": "ours",
    "right": "theirs",
    "tasks": ["sentiment", "inference"],
    "over": "each",
    "quantity": "score",
    "relation": ">",
}


@pytest.fixture
def folder(tables: Path) -> Path:
    """A folder with one table of four rows and two tasks, in place of the project's own."""
    (tables / "paper").mkdir()
    (tables / "paper" / "table.json").write_text(json.dumps(TABLE))
    return tables


@pytest.fixture
def put(folder: Path) -> Callable[..., Path]:
    """Writes the paper's claims, each the claim above with other fields."""

    def write(*claims: dict[str, Any]) -> Path:
        path = folder / "paper" / "claims.json"
        path.write_text(json.dumps({"source": "nowhere", "claims": [CLAIM | claim for claim in claims]}))
        return path

    return write


@pytest.fixture
def say(put: Callable[..., Path]) -> Say:
    """Makes the claim above with other fields, read from its file."""

    def make(**fields: Any) -> Claim:
        put(fields)
        (claim,) = papers.claims("paper")
        return claim

    return make


def ran(claim: Claim, scores: dict[str, list[float]], **other: float) -> dict[str, list[Record]]:
    """Records of the claim's cells that can run: those scores for every task of a row, one a seed."""
    rest: dict[str, Any] = {"ledger": None, "trail": [], "sources": {}, "environment": {}}
    return {
        cell.id: [
            Record(key="0" * 64, spec=spec, values={"score": score} | other, cost={"peak_bytes": 1.0}, **rest)
            for spec, score in zip(cell.specs(len(scores[cell.row.id])), scores[cell.row.id], strict=True)
        ]
        for side in (claim.left, claim.right)
        for cell in claim.cells(side)
        if not cell.row.cited
    }


def verdict(claim: Claim, scores: dict[str, list[float]], **other: float) -> Finding:
    """The finding of records with those scores."""
    return judge_claim(claim, ran(claim, scores, **other))


@pytest.mark.parametrize(
    ("fields", "pairs"),
    [
        ({}, [(80.1, 80.0), (60.2, 62.0)]),
        ({"tasks": ["inference"]}, [(60.2, 62.0)]),
        # (80.1 + 60.2) / 2 against (80 + 62) / 2.
        ({"over": "mean"}, [(70.15, 71.0)]),
        ({"times": 0.5, "plus": -4.0}, [(80.1, 36.0), (60.2, 27.0)]),
        ({"over": "mean", "times": 2.0, "plus": 1.0}, [(70.15, 143.0)]),
        ({"right": None, "plus": 61.0}, [(80.1, 61.0), (60.2, 61.0)]),
        ({"right": None, "plus": 61.0, "over": "mean"}, [(70.15, 61.0)]),
        ({"right": None, "plus": 61.0, "times": 3.0}, [(80.1, 61.0), (60.2, 61.0)]),
        ({"right": "cited"}, [(80.1, 70.0), (60.2, 50.0)]),
    ],
    ids=str,
)
def test_pairs(say: Say, fields: dict[str, Any], pairs: list[tuple[float, float]]) -> None:
    """One pair stands there a task, or one of means: left, and times the right one plus what is added."""
    assert pairs == say(**fields).printed()


def test_counts(say: Say) -> None:
    """Counts of ours stand beside what is printed, and no run is held against them."""
    claim = say(quantity="trainable")

    assert (None, [(10.0, 20.0), (10.0, 20.0)]) == (claim.printed(), claim.counted())
    assert ("counts", []) == (claim.basis, claim.needed)
    assert say().counted() is None


def test_sums_are_decimal(say: Say) -> None:
    """A sum of printed decimals is what it is on paper: 80.1 is not more than 80 + 0.1, nor less."""
    claim = say(tasks=["sentiment"], plus=0.1, relation=">=")
    (pair,) = claim.printed() or []
    tenths = claim.pairs([0.3], [0.2])

    assert 0.2 + 0.1 != 0.3
    assert tenths == [(0.3, 0.3)]
    assert [False, True, False, True] == [RELATIONS[name](*pair) for name in (">", ">=", "<", "<=")]


@pytest.mark.parametrize(
    "fields",
    [{"left": "silent"}, {"right": "silent"}, {"left": "silent", "right": None}, {"quantity": "epoch_seconds"}],
    ids=str,
)
def test_missing_number(say: Say, fields: dict[str, Any]) -> None:
    """Where one number is not printed, the paper's own numbers decide nothing."""
    assert say(**fields).printed() is None


def test_holds_for_all(say: Say) -> None:
    """A claim over each task holds where all its pairs do; over the mean, where the means do."""
    each, mean = say(plus=-1.0), say(plus=-1.0, over="mean")

    # 60.2 is less than 62 - 1, but 70.15 is more than 71 - 1.
    assert [False, True] == [claim.holds(claim.printed() or []) for claim in (each, mean)]
    assert each.holds((each.printed() or [])[:1])


@pytest.mark.parametrize(
    ("fields", "cell"),
    [
        ({"left": "nobody"}, "nobody/sentiment"),
        ({"right": "nobody"}, "nobody/sentiment"),
        ({"tasks": ["sentiment", "entities"]}, "ours/entities"),
        ({"right": None, "tasks": ["entities"]}, "ours/entities"),
    ],
    ids=str,
)
def test_unknown_cell(put: Callable[..., Path], fields: dict[str, Any], cell: str) -> None:
    """A claim about a row or a task that its table lacks is an error that names claim and cell."""
    put(fields)
    with pytest.raises(ValueError) as caught:
        papers.claims()

    assert f"claim paper/claims/c1: paper/table has no cell {cell}" == str(caught.value)


def test_unknown_table(put: Callable[..., Path]) -> None:
    """A claim about a table that is not there is an error that names those there are."""
    put({"table": "other"})
    with pytest.raises(ValueError) as caught:
        papers.claims()

    assert "no table 'paper/other'; known: paper/table" == str(caught.value)


def test_same_id_twice(put: Callable[..., Path]) -> None:
    """Two claims of one id are an error that names the file and the id."""
    path = put({"id": "a"}, {"id": "b"}, {"id": "a"})
    with pytest.raises(ValueError) as caught:
        papers.claims()

    assert f"{path} has 'a' twice" == str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"relation": "="}, "field 'claims.0.relation'"),
        ({"over": "most"}, "field 'claims.0.over'"),
        ({"quantity": "loss"}, "field 'claims.0.quantity'"),
        ({"tolerance": 1.0}, "field 'claims.0.tolerance'"),
    ],
    ids=str,
)
def test_bad_field(put: Callable[..., Path], fields: dict[str, Any], words: str) -> None:
    """A relation, a quantity or a field that does not exist is an error that names file and field."""
    path = put(fields)
    with pytest.raises(ValueError) as caught:
        papers.claims()

    assert str(caught.value).startswith(f"{path}: {words}")


def test_selection(put: Callable[..., Path]) -> None:
    """Claims that printed numbers decide are selected with `printed`; without it those not known to differ."""
    put({"id": "decided"}, {"id": "contradicted", "differs": "60.2 < 62"}, {"id": "open", "quantity": "peak_bytes"})
    found = {printed: [str(claim) for claim in papers.claims(printed=printed)] for printed in (None, True, False)}

    assert found == {
        None: ["decided", "contradicted", "open"],
        True: ["decided", "contradicted"],
        False: ["decided", "open"],
    }
    assert [] == papers.claims("another")
    assert ["paper"] * 3 == [claim.paper for claim in papers.claims("paper")]


def test_known_differences_are_right() -> None:
    """A claim of the project's own files announces a difference exactly where the printed numbers contradict it."""
    decided = [(claim, claim.printed()) for claim in papers.claims(printed=True)]
    wrong = [claim.address for claim, pairs in decided if bool(claim.differs) == claim.holds(pairs or [])]

    assert decided
    assert not wrong


def test_every_claim_can_be_judged() -> None:
    """Each claim of the project's own files gets a finding from records of its cells, cited lines included."""
    for claim in papers.claims(printed=False):
        cells = [cell for side in (claim.left, claim.right) for cell in claim.cells(side)]
        rest: dict[str, Any] = {"ledger": None, "trail": [], "sources": {}, "environment": {}}
        cost = {"epoch_seconds": 1.0, "peak_bytes": 1.0}
        values = {"score": 70.0, "trainable": 1.0}
        runs = {
            cell.id: [Record(key="0" * 64, spec=cell.spec, values=values, cost=cost, **rest)]
            for cell in cells
            if not cell.row.cited
        }
        finding = judge_claim(claim, runs)

        assert finding.allowed > 0 if claim.quantity == "score" else finding.allowed == 0, claim.id


def test_holding_claim(say: Say) -> None:
    """Records of which the claim holds reproduce it, by however little."""
    assert verdict(say(), {"ours": [80.01], "theirs": [80.0]}).status == "reproduced"


@pytest.mark.parametrize(
    ("runs", "gap", "status"),
    # Spread 1 of 3 x 10 degrees of freedom on either side, difference of two means of N:
    # allowed is t(30, 0.999) = 3.385 times sqrt(2 / N), that is 4.79 for one run and 2.39 for four.
    [(1, 4.7, "amber"), (1, 4.9, "differs"), (4, 2.3, "amber"), (4, 2.5, "differs")],
)
def test_spread_of_seeds(say: Say, runs: int, gap: float, status: str) -> None:
    """A contradiction that seeds explain is no failure, one beyond is; more runs explain less."""
    finding = verdict(say(), {"ours": [80.0 - gap] * runs, "theirs": [80.0] * runs})

    assert finding.allowed == pytest.approx(3.385 * (2 / runs) ** 0.5, rel=1e-3)
    assert finding.ours == pytest.approx(gap)
    assert status == finding.status


def test_slack_of_a_mean(say: Say) -> None:
    """A mean over two tasks may fall short by less than each task: its spread is smaller by the root of two."""
    scores = {"ours": [79.0], "theirs": [80.0]}
    each, mean = (verdict(say(over=over), scores) for over in ("each", "mean"))

    # Three rows print a spread for sentiment and two for inference: t(30, 0.999) = 3.385 and t(20, 0.999) = 3.552.
    assert each.allowed == pytest.approx(3.385 * 2**0.5, rel=1e-3)
    assert mean.allowed == pytest.approx(3.552, rel=1e-3)


def test_slack_with_a_factor(say: Say) -> None:
    """The spread of the right side counts times its factor."""
    plain, doubled = (verdict(say(times=times), {"ours": [1.0], "theirs": [2.0]}) for times in (1.0, 2.0))

    # sqrt(1 + 4) over sqrt(1 + 1).
    assert doubled.allowed == pytest.approx(plain.allowed * (5 / 2) ** 0.5)


def test_one_sided_slack_of_a_number(say: Say) -> None:
    """A number on the right has no spread: the left side's alone counts."""
    both = verdict(say(), {"ours": [50.0], "theirs": [80.0]})
    number = verdict(say(right=None, plus=80.0), {"ours": [50.0]})

    assert both.allowed == pytest.approx(number.allowed * 2**0.5)
    assert (30.0, 30.0) == (both.ours, number.ours)


def test_worst_task_counts(say: Say) -> None:
    """Of a claim over each task the pair that falls short most is judged."""
    claim = say()
    runs = ran(claim, {"ours": [80.0], "theirs": [79.0]})
    worse = replace(runs["paper/table/ours/inference"][0], values={"score": 49.0})

    assert judge_claim(claim, runs).status == "reproduced"
    assert (30.0, "differs") == (
        judge_claim(claim, runs | {"paper/table/ours/inference": [worse]}).ours,
        judge_claim(claim, runs | {"paper/table/ours/inference": [worse]}).status,
    )


@pytest.mark.parametrize(("ours", "status"), [(60.0, "differs"), (71.0, "reproduced")])
def test_cited_side(say: Say, ours: float, status: str) -> None:
    """A cited side stands with its printed number, without a run, also in a table that prints it no spread."""
    claim = say(right="cited", tasks=["sentiment"])

    assert set(ran(claim, {"ours": [ours]})) == {"paper/table/ours/sentiment"}
    assert status == verdict(claim, {"ours": [ours]}).status
    assert verdict(claim, {"ours": [60.0]}).ours == 10.0


def test_cited_side_without_a_spread(say: Say, folder: Path) -> None:
    """Where a table prints no spread at all, a cited side has that of the task's dev set."""
    bare = json.loads(json.dumps(TABLE))
    bare["tasks"] = {"rte": {}}
    del bare["defaults"]["method"], bare["defaults"]["dev"]
    for row in bare["rows"]:
        row["cells"] = {"rte": {"score": {"value": 70.0}}}
        row["spec"] = {} if row["cited"] else {"method": "head"}
    (folder / "paper" / "table.json").write_text(json.dumps(bare))
    finding = verdict(say(right="cited", tasks=["rte"]), {"ours": [69.0]})

    # 0.7 standard errors of 0.7 on 277 examples, 1.93, on either side; t(8, 0.999) = 4.501.
    assert finding.allowed == pytest.approx(4.501 * 1.9274 * 2**0.5, rel=1e-3)
    assert finding.status == "amber"


@pytest.mark.parametrize(
    ("trainable", "plus", "relation", "status"),
    [
        (10.0, 10.0, "<", "differs"),
        (10.0, 10.0, "<=", "reproduced"),
        (10.0, 10.0, ">", "differs"),
        (10.0, 10.0, ">=", "reproduced"),
        (11.0, 10.0, "<=", "differs"),
        (11.0, 10.0, ">", "reproduced"),
        (9.0, 10.0, ">=", "differs"),
        (9.0, 10.0, "<", "reproduced"),
    ],
)
def test_counts_hold_exactly(say: Say, trainable: float, plus: float, relation: str, status: str) -> None:
    """What seeds do not change has no slack: one value too many fails, and at equality only a strict relation."""
    claim = say(quantity="trainable", right=None, plus=plus, relation=relation)

    assert status == verdict(claim, {"ours": [70.0]}, trainable=trainable).status


def test_cost_holds_exactly(say: Say) -> None:
    """Bytes come from the cost of a record, and have no slack either."""
    scores = {"ours": [70.0], "theirs": [70.0]}
    statuses = [verdict(say(quantity="peak_bytes", relation=name), scores).status for name in (">", ">=")]

    assert statuses == ["differs", "reproduced"]


@pytest.mark.parametrize(
    ("relation", "status"), [(">", "amber"), (">=", "reproduced"), ("<", "amber"), ("<=", "reproduced")]
)
def test_equal_scores(say: Say, relation: str, status: str) -> None:
    """Equal scores contradict a strict relation, if only by chance, and no other."""
    finding = verdict(say(relation=relation), {"ours": [80.0], "theirs": [80.0]})

    assert status == finding.status


def test_mean_over_seeds(say: Say) -> None:
    """Each side stands with the mean over its seeds."""
    ours, theirs = [70.0, 74.0], [75.0, 75.0]

    assert verdict(say(), {"ours": ours, "theirs": theirs}).ours == fmean(theirs) - fmean(ours)
