"""The text at the end of a session."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peft_dp import Record, Spec
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.table import Expect, Row, Table
from peft_dp.suite.report.table import HEADERS, SIGNS, render_table
from peft_dp.suite.verdicts.cells import Verdict
from peft_dp.suite.verdicts.finding import Finding, Status

Make = Callable[..., Spec]
Quantities = dict[str, dict[str, Expect]]

SCORE: dict[str, Expect] = {"score": Expect(value=71.0)}
BAND = {
    "reproduced": {"ours": 71.0},
    "consistent": {"ours": 71.0, "margin": 0.5, "unsure": 1.0},
    "undecided": {"ours": 71.0, "margin": 0.5, "unsure": 1.0, "unseen": 9.0},
    "amber": {"ours": 68.7},
    "differs": {"ours": 68.0},
}


def made(rows: dict[str, list[str]], expect: dict[str, Expect] = SCORE, differs: str = "") -> dict[str, Cell]:
    """`row/task` -> the cells of a table whose rows have those tasks."""
    lines = [
        Row(id=name, title=name, cells=dict.fromkeys(tasks, expect), differs=differs) for name, tasks in rows.items()
    ]
    every: dict[str, dict[str, Any]] = {task: {} for tasks in rows.values() for task in tasks}
    table = Table(
        paper="p", table="t", title="A title", source="", budget="smoke", defaults={}, tasks=every, rows=lines
    )
    return {f"{row.id}/{task}": Cell(table=table, row=row, task=task) for row in lines for task in row.cells}


def record(spec: Spec, score: float = 71.0, ledger: dict[str, Any] | None = None) -> Record:
    """A record with that score."""
    cost = {"epoch_seconds": 1.5, "peak_bytes": 2e6 + score * 1e6}
    ledger = {"noise_multiplier": 1.0} | ledger if ledger else None
    return Record(
        key="0" * 64, spec=spec, values={"score": score}, ledger=ledger, trail=[], cost=cost, sources={}, environment={}
    )


def verdict(cell: Cell, spec: Spec, status: str = "reproduced", **ledger: object) -> Verdict:
    """A verdict of that status on a score that should be 71, 2.5 apart at most; 2 is unusual."""
    finding = Finding(quantity="score", expected=71.0, allowed=2.5, unusual=2.0, **BAND[status])  # type: ignore[arg-type]
    return Verdict(cell=cell, records=[record(spec, ledger=ledger or None)], findings=[finding])


def cut(text: str) -> list[list[str]]:
    """The lines of the first grid, headers first, cut at two or more spaces."""
    lines = text.split("\n\n")[1].splitlines()
    return [re.split(r" {2,}", line.strip()) for line in (lines[0], *lines[2:])]


def test_grid(spec: Make) -> None:
    """A table has a heading and the paper's shape: rows and tasks in its order, ours, what is expected, and a mark."""
    cells = made({"b": ["rte", "cola"], "a": ["rte"]})
    found = render_table([verdict(cells[name], spec()) for name in ("a/rte", "b/cola", "b/rte")])

    assert "p/t  A title" == found.splitlines()[0]
    assert [["row", "rte", "cola"], ["b", "71.0/71.0 =", "71.0/71.0 ="], ["a", "71.0/71.0 ="]] == cut(found)


def test_tables_apart(spec: Make) -> None:
    """Tables in which nothing ran have no grid, but the reason, once for all its cells."""
    cells = made({"a": ["rte", "cola"]})
    found = render_table([Verdict(cell=cell, reason="no GPU") for cell in cells.values()])

    assert "2 cells not run: no GPU" == found


@pytest.mark.parametrize("status", BAND)
def test_mark(spec: Make, status: Status) -> None:
    """Each verdict has a mark of its own, which the legend explains and counts, without colour."""
    cells = made({"a": ["rte", "cola"]})
    found = render_table([verdict(cells["a/rte"], spec(), status), Verdict(cell=cells["a/cola"], reason="no GPU")])
    mark = SIGNS[status].mark

    assert f"{BAND[status]['ours']:.1f}/71.0 {mark}" == cut(found)[1][1]
    assert "-" == cut(found)[1][2]
    assert re.search(rf"^{re.escape(mark)} +1 +{status} ", found, re.MULTILINE)
    assert "1 cell not run: no GPU" == found.splitlines()[-1]
    assert "\033" not in found


def test_marks_differ() -> None:
    """No two verdicts look alike without colour."""
    assert len({sign.mark for sign in SIGNS.values()}) == len(SIGNS)


def test_colour_changes_no_place(spec: Make) -> None:
    """Colour adds to the text and moves nothing in it."""
    cells = made({"a": ["rte", "cola"], "longer": ["rte"]})
    verdicts = [verdict(cell, spec(), status) for cell, status in zip(cells.values(), BAND, strict=False)]
    for verbose in (False, True):
        painted = render_table(verdicts, verbose=verbose, colour=True)

        assert "\033" in painted
        assert render_table(verdicts, verbose=verbose) == re.sub(r"\033\[\d+m", "", painted)


def test_failure(spec: Make) -> None:
    """A failure shows its numbers and the command that runs it again."""
    cells = made({"a": ["rte"]})

    assert str(failed := verdict(cells["a/rte"], spec(), "differs")) in render_table([failed])
    assert "again: peft-dp run p/t/a/rte" in str(failed)


def test_known_difference(spec: Make) -> None:
    """A difference that its row announces is no failure: it has a mark, and no numbers below."""
    known = verdict(made({"a": ["rte"]}, differs="a misprint")["a/rte"], spec(), "differs")
    found = render_table([known])

    assert f"68.0/71.0 {SIGNS['known difference'].mark}" == cut(found)[1][1]
    assert "again:" not in found


@pytest.mark.parametrize("width", [120, 80, 40, 1])
def test_width(spec: Make, width: int) -> None:
    """Twenty rows of eight tasks stay within the width, if a row and one task do, and no number is lost."""
    tasks = ["mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte"]
    cells = made({f"a-method-with-name-{i}": tasks for i in range(20)})
    found = render_table([verdict(cell, spec(), epsilon=8.0) for cell in cells.values()], width=width)
    grids = found[: found.index("160 cells")]

    assert max(width, len("a-method-with-name-00  epsilon  71.0/71.0 =") + 2) >= max(map(len, grids.splitlines()))
    assert grids.count("71.0/71.0 =") == 160
    assert all(grids.count(f"  {task}") == 1 for task in tasks)


@pytest.mark.parametrize(("matches", "words"), [(True, "7.99"), (False, "7.99 nominal")])
def test_epsilon(spec: Make, matches: bool, words: str) -> None:
    """A row says its largest epsilon, and whether that holds of how batches were drawn; others say nothing."""
    cells = made({"dp": ["rte", "cola"], "plain": ["rte"]})
    spent = [
        verdict(cells[f"dp/{task}"], spec(), epsilon=epsilon, matches_accountant=matches)
        for task, epsilon in (("rte", 7.98), ("cola", 7.99))
    ]
    found = cut(render_table([*spent, verdict(cells["plain/rte"], spec())]))

    assert [["row", "epsilon", "rte", "cola"], ["dp", words], ["plain"]] == [found[0], found[1][:2], found[2][:1]]


def test_costs(spec: Make) -> None:
    """A table that prints seconds and memory has a column of each, also where nothing is asserted of them."""
    expect = {
        "epoch_seconds": Expect(value=3.0, asserted=False),
        "peak_bytes": Expect(value=2e9, asserted=False),
    }
    found = cut(render_table([Verdict(cell=made({"a": ["qnli"]}, expect)["a/qnli"], records=[record(spec())])]))

    assert [["row", "qnli s/epoch", "qnli GB"], ["a", "1.5/3.0 .", "0.1/2.0 ."]] == found


def test_cost_that_a_run_lacks(spec: Make) -> None:
    """A cell of which a run lacks the quantity has the mark alone, for what is expected is not ours."""
    cells = made({"a": ["rte"]}, {"epoch_seconds": Expect(value=3.0, asserted=False)})
    whole = record(spec())
    found = render_table([Verdict(cell=cells["a/rte"], records=[whole, replace(whole, cost={})])])

    assert [["row", "rte s/epoch"], ["a", SIGNS["no expectation"].mark]] == cut(found)


def test_score_without_expectation(spec: Make) -> None:
    """Where only a count is expected the score stands alone, with the verdict on the count."""
    finding = Finding(quantity="trainable", expected=9.0, ours=8.0, allowed=0.0, unusual=0.0)
    cell = made({"a": ["rte"]}, {"trainable": Expect(value=9.0)})["a/rte"]
    found = render_table([Verdict(cell=cell, records=[record(spec(), 70.0)], findings=[finding])])

    assert ["a", "70.0 X"] == cut(found)[1]
    assert "trainable: expected 9, ours 8" in found


def lines(text: str) -> list[list[str]]:
    """The long form's lines below its rule."""
    return [re.split(r" {2,}", line.strip()) for line in text.split("\n\n")[0].splitlines()[2:]]


def test_line(spec: Make) -> None:
    """A long line has row, task, epsilon, mean score, expectation, band, verdict, seconds and the largest peak."""
    cell = made({"bitfit-dp": ["sentiment"]})["bitfit-dp/sentiment"]
    finding = Finding(quantity="score", expected=71.0, ours=71.0, allowed=2.5, unusual=2.0)
    records = [record(spec(), score, {"epsilon": epsilon}) for score, epsilon in ((70.0, 7.98), (72.0, 7.99))]
    found = render_table([Verdict(cell=cell, records=records, findings=[finding])], verbose=True)

    assert all(header in found.splitlines()[0] for header in HEADERS)
    assert [
        ["p/t bitfit-dp", "sentiment", "epsilon 7.99", "71.0", "71.0", "+-2.5", "reproduced", "1.50", "74"]
    ] == lines(found)


def test_plain_line_without_expected_score(spec: Make) -> None:
    """A run without privacy says so; where no score is expected, its two columns are empty."""
    finding = Finding(quantity="trainable", expected=9.0, ours=8.0, allowed=0.0, unusual=0.0)
    cell = made({"a": ["rte"]})["a/rte"]
    found = render_table([Verdict(cell=cell, records=[record(spec(), 70.0)], findings=[finding])], verbose=True)

    assert [["p/t a", "rte", "no", "70.0", "differs", "1.50", "72"]] == lines(found)
