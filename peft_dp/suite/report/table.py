"""Verdicts as the text at the end of a session: a grid a table, in the paper's own shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import NamedTuple

from tabulate import tabulate

from peft_dp.records import Record, mean
from peft_dp.suite.verdicts.cells import Verdict
from peft_dp.suite.verdicts.finding import USEFUL, Status

HEADERS = ("row", "task", "private", "score", "expected", "band", "verdict", "s/epoch", "peak MB")
UNITS = {"score": ("", 1.0), "epoch_seconds": ("s/epoch", 1.0), "peak_bytes": ("GB", 1e9)}
"""What a grid shows, where a table expects it: quantity -> its words above a column, and what it is divided by."""


class Sign(NamedTuple):
    """How a verdict is shown.

    Attributes:
        mark: In a grid; colour only repeats it.
        colour: Number of the ANSI colour.
        meaning: In a few words.
    """

    mark: str
    colour: int
    meaning: str


UNSTEADY = 1.5
"""Ratio of two epochs' seconds of the clock per processor second, beyond which other load is to blame."""
SIGNS: dict[Status, Sign] = {
    "reproduced": Sign("=", 32, "repeats what was recorded, or equal as far as the dev set can tell"),
    "consistent": Sign("+", 32, f"not shown to differ, where {USEFUL:g} points would have been"),
    "undecided": Sign("?", 36, "not shown to differ, nor would it have been: more seeds decide (--peft-seeds N)"),
    "no expectation": Sign(".", 90, "ran; nothing is expected of what it learns"),
    "amber": Sign("~", 33, "unusual: off by more than chance explains 19 times in 20, or nothing learnt; no failure"),
    "differs": Sign("X", 31, "off by more than chance explains 999 times in 1000: a failure"),
    "known difference": Sign("k", 35, "differs, as its row announces"),
    "cannot run": Sign("c", 90, "a library cannot, as its row says"),
    "not run": Sign("-", 90, "why is said below"),
}


@dataclass(frozen=True)
class Grid:
    """The verdicts of one table, in its own shape.

    Attributes:
        name: `paper/table`.
        title: What the table shows.
        columns: Task and quantity; the score where a table expects none of those a grid shows.
        rows: Row's id -> its verdict in each column; None where there is none.
    """

    name: str
    title: str
    columns: Sequence[tuple[str, str]]
    rows: dict[str, list[Verdict | None]]

    def laid_out(self, part: slice = slice(None), *, colour: bool = False) -> tuple[list[str], list[list[str]]]:
        """Headers and lines of a part of the columns: a row's id, its epsilon where any row has one, and its cells."""
        epsilons = [spent([r for v in row if v for r in v.records]) for row in self.rows.values()]
        private = any(epsilons)
        lines = []
        for (name, row), epsilon in zip(self.rows.items(), epsilons, strict=True):
            shown_of = zip(row[part], self.columns[part], strict=True)
            cells = [_painted(shown(v, quantity), v.status, colour) if v else "" for v, (_, quantity) in shown_of]
            lines.append([name, *[epsilon] * private, *cells])
        words = [f"{task} {UNITS[quantity][0]}".strip() for task, quantity in self.columns[part]]
        return ["row", *["epsilon"] * private, *words], lines


def grids(verdicts: Sequence[Verdict]) -> list[Grid]:
    """A grid for each table of which a cell ran; rows and tasks are in the table's order."""
    tables: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        tables.setdefault(verdict.cell.table.address, []).append(verdict)
    return [_grid(name, some) for name, some in tables.items() if any(verdict.records for verdict in some)]


def _grid(name: str, verdicts: Sequence[Verdict]) -> Grid:
    table = verdicts[0].cell.table
    at = {(verdict.cell.row.id, verdict.cell.task): verdict for verdict in verdicts}
    asked = [name for name in UNITS if any(name in verdict.cell.expect for verdict in verdicts)] or ["score"]
    tasks = [task for task in table.tasks if any(task == other for _, other in at)]
    columns = [(task, quantity) for task in tasks for quantity in asked]
    rows = {
        row.id: [at.get((row.id, task)) for task, _ in columns]
        for row in table.rows
        if any(row.id == other for other, _ in at)
    }
    return Grid(name, table.title, columns, rows)


def shown(verdict: Verdict, quantity: str) -> str:
    """`ours/expected` and the verdict's mark; only the mark where the cell did not run, or a run lacks the quantity."""
    mark, finding, expect = SIGNS[verdict.status].mark, verdict.finding(quantity), verdict.cell.expect.get(quantity)
    ours = finding.ours if finding else mean(verdict.records, quantity)
    if ours is None:
        return mark
    theirs = finding.expected if finding else expect.value if expect else None
    words = [f"{number / UNITS[quantity][1]:.1f}" for number in (ours, theirs) if number is not None]
    return f"{'/'.join(words)} {mark}"


def spent(records: Sequence[Record]) -> str:
    """The largest epsilon of some runs; nominal where no accountant covers how batches were drawn; "" without any."""
    ledgers = [record.ledger for record in records if record.ledger]
    if not ledgers:
        return ""
    nominal = not all(ledger.get("matches_accountant", True) for ledger in ledgers)
    return f"{max(ledger['epsilon'] for ledger in ledgers):.2f}" + " nominal" * nominal


def render_table(verdicts: Sequence[Verdict], *, width: int = 120, verbose: bool = False, colour: bool = False) -> str:
    """What a session has to say of its cells.

    A grid for each table, or with `verbose` a line for each cell with all its numbers; then every number of each
    failure and the command that runs it again, the marks with their counts, and why cells did not run.

    Args:
        verdicts: One a cell.
        width: Of the terminal; tasks that do not fit go into further grids.
        verbose: Whether to show lines in place of grids.
        colour: Whether the terminal has it.
    """
    ran = [verdict for verdict in verdicts if verdict.records]
    parts = [_lines(ran, colour)] if verbose and ran else [_fitted(grid, width, colour) for grid in grids(verdicts)]
    parts += ["\n".join(side_by_side(ran))]
    parts += [_painted(str(verdict), verdict.status, colour) for verdict in ran if verdict.status == "differs"]
    parts += ["\n".join(causes(ran))]
    parts += [_legend(verdicts, colour)] if ran else []
    parts += ["\n".join(disturbed(ran)), "\n".join(not_run(verdicts))]
    return "\n\n".join(part for part in parts if part)


def side_by_side(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a line for each run that was made by our own code and through libraries: scores, seconds and memory.

    A score with = repeats ours but for rounding, one with != does not.
    """
    ran = {verdict.cell.id: verdict for verdict in verdicts if verdict.records}
    lines = []
    for verdict in ran.values():
        others = [ran[cell.id] for cell in verdict.cell.through if cell.id in ran]
        if others:
            scores = [f"own {_mean(verdict, 'score'):.1f}"]
            scores += [
                f"{'=' if other.status == 'reproduced' else '!='} {other.cell.spec.implementation} "
                f"{_mean(other, 'score'):.1f}"
                for other in others
            ]
            seconds = ", ".join(f"{_mean(other, 'epoch_seconds'):.2f}" for other in others)
            memory = ", ".join(f"{_mean(other, 'peak_bytes') / 1e6:.0f}" for other in others)
            lines.append(
                f"{verdict.cell.row.id} {verdict.cell.task}: {' '.join(scores)}; "
                f"epoch {_mean(verdict, 'epoch_seconds'):.2f} s against {seconds} s; "
                f"peak {_mean(verdict, 'peak_bytes') / 1e6:.0f} MB against {memory} MB"
            )
    return lines


def _mean(verdict: Verdict, quantity: str) -> float:
    return fmean((record.values | record.cost)[quantity] for record in verdict.records)


def _fitted(grid: Grid, width: int, colour: bool) -> str:
    """A heading and the grid, cut into as few grids of equal numbers of columns as the width asks for."""
    number = len(grid.columns)
    for pieces in range(1, number + 1):
        size = ceil(number / pieces)
        parts = [slice(start, start + size) for start in range(0, number, size)]
        if all(len(line) <= width for part in parts for line in _piece(grid, part, colour=False).splitlines()):
            break
    pieces_shown = [_piece(grid, part, colour) for part in parts]
    return "\n\n".join([f"{grid.name}  {grid.title}\n\n{pieces_shown[0]}", *pieces_shown[1:]])


def _piece(grid: Grid, part: slice, colour: bool) -> str:
    headers, lines = grid.laid_out(part, colour=colour)
    return tabulate(lines, headers, disable_numparse=True)


def _lines(verdicts: Sequence[Verdict], colour: bool) -> str:
    """One line a cell: row, task, privacy, score, expected, band, verdict, seconds an epoch, peak MB."""
    return tabulate([_line(verdict, colour) for verdict in verdicts], HEADERS, disable_numparse=True)


def _line(verdict: Verdict, colour: bool) -> list[str]:
    records = verdict.records
    epsilon = spent(records)
    scored = verdict.finding("score")
    return [
        f"{verdict.cell.table.address} {verdict.cell.row.id}",
        verdict.cell.task,
        f"epsilon {epsilon}" if epsilon else "no",
        f"{fmean(record.values['score'] for record in records):.1f}",
        f"{scored.expected:.1f}" if scored else "",
        f"+-{scored.allowed:.1f}" if scored else "",
        _painted(verdict.status, verdict.status, colour),
        f"{fmean(record.cost['epoch_seconds'] for record in records):.2f}",
        f"{max(record.cost['peak_bytes'] for record in records) / 1e6:.0f}",
    ]


def render_others(runs: Sequence[Sequence[Record]]) -> str:
    """Return a table of runs of no cell, a line for those that differ in their seeds only; empty without any."""
    if not runs:
        return ""
    lines = [
        [
            alike[0].spec.method,
            alike[0].spec.backbone,
            alike[0].spec.task,
            spent(alike),
            len(alike),
            mean(alike, "score"),
            mean(alike, "epoch_seconds"),
        ]
        for alike in runs
    ]
    heads = ["method", "backbone", "task", "epsilon", "seeds", "score", "s/epoch"]
    table = tabulate(lines, heads, tablefmt="simple", floatfmt=".2f", missingval="")
    return f"Runs of no cell: rows with fields changed, or of tables since changed\n\n{table}"


def counts(verdicts: Sequence[Verdict]) -> list[tuple[Status, int]]:
    """How many cells have each verdict, those that none has left out."""
    found = Counter(verdict.status for verdict in verdicts)
    return [(status, found[status]) for status in SIGNS if found[status]]


def headline(verdicts: Sequence[Verdict], claims: tuple[int, int] = (0, 0)) -> str:
    """Return in one sentence whether anything failed, and how many cells repeat what was recorded.

    Args:
        verdicts: One a cell.
        claims: Claims that hold, and those that were checked.
    """
    ran = [verdict for verdict in verdicts if verdict.records]
    if not ran:
        return "No cell ran"
    failed = [verdict.cell.id for verdict in ran if verdict.status == "differs"]
    broken = claims[1] - claims[0]
    repeat = sum(any(finding.repeats for finding in verdict.findings) for verdict in ran)
    parts = [f"{repeat} of {len(ran)} cells repeat what was recorded"] * bool(repeat)
    parts += [f"{claims[0]} of {claims[1]} claims hold"] * bool(claims[1])
    verdict = f"{len(failed)} of {len(ran)} cells failed" if failed else "Nothing failed"
    if broken and not failed:
        verdict = f"{broken} claim{'s' * (broken > 1)} failed"
    return f"{verdict}: {', '.join(parts)}" if parts else verdict


def causes(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a line for each cell that is amber or failed: what it is about."""
    return [
        f"{verdict.status} {verdict.cell.id}: {' '.join(str(finding).split())}"
        for verdict in verdicts
        if verdict.records and verdict.status in ("amber", "differs")
        for finding in [next(f for f in verdict.findings if f.status == verdict.status)]
    ]


def _legend(verdicts: Sequence[Verdict], colour: bool) -> str:
    lines = [
        [_painted(SIGNS[status].mark, status, colour), f"{count}", status, SIGNS[status].meaning]
        for status, count in counts(verdicts)
    ]
    heading = f"{len(verdicts)} cells: ours/expected, and the verdict on all that is expected of a cell"
    return f"{heading}\n" + tabulate(lines, tablefmt="plain", disable_numparse=True)


def disturbed(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a line on the runs whose seconds mislead: other load took the processor away in some of their epochs.

    Seconds of the clock per processor second are then not the same in all epochs. Epochs of less than a second are
    left out, for the clock of the processor is coarse.
    """
    found = []
    for verdict in verdicts:
        for record in verdict.records:
            long = [epoch for epoch in record.trail if epoch.seconds > 1 and epoch.processor_seconds > 0]
            shares = [epoch.seconds / epoch.processor_seconds for epoch in long]
            if shares and max(shares) > UNSTEADY * min(shares):
                found.append(f"{verdict.cell.id} seed {record.spec.seed}")
    if not found:
        return []
    runs = f"{len(found)} run{'s' * (len(found) > 1)}"
    return [f"other load stretched an epoch of {runs}, whose seconds mislead: {', '.join(found)}"]


def not_run(verdicts: Sequence[Verdict]) -> list[str]:
    """Why cells did not run, a line a reason."""
    reasons = Counter(verdict.reason for verdict in verdicts if not verdict.records)
    return [f"{count} cell{'s' * (count > 1)} not run: {reason}" for reason, count in reasons.items()]


def _painted(words: str, status: Status, colour: bool) -> str:
    return f"\033[{SIGNS[status].colour}m{words}\033[0m" if colour and words else words
