"""Records against a cell: the verdict, with every number it rests on.

The band of a score is a t prediction interval (`tolerance`): the test fails beyond that of 0.1 % (red), and says
so beyond that of 5 % (amber). The spread is pooled over the rows of the same task, private and not apart; a
recorded row that spreads more keeps its own. Half a step of the score's resolution is added.

Why not "within one standard deviation": that fails a correct run every fourth time.

Not shown to differ is not yet equal. A score is reproduced where it is proved to lie so near (two one-sided tests
at 5 %) that another sample of dev examples would move it as far; else it is undecided, and more seeds decide it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan, sqrt
from statistics import fmean, variance
from typing import Literal

from peft_dp import tasks
from peft_dp.expected import Cell, Claim, Expect
from peft_dp.records import Record
from peft_dp.reporting.tolerance import (
    AMBER,
    POSITIVE,
    POWER,
    RED,
    Spread,
    best_of,
    of_runs,
    pooled,
    prior,
    resolution,
)

Status = Literal["reproduced", "undecided", "amber", "differs", "known difference", "not run"]
MARKS = {"reproduced": "ok   ", "undecided": "ok ? ", "amber": "amber", "differs": "OFF  "}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One quantity of one cell.

    Attributes:
        quantity: Its name.
        expected: What the paper prints or the mean of what was recorded.
        ours: Mean over our runs.
        allowed: Largest difference that is no failure.
        unusual: Smallest difference worth a word.
        at_least: Whether only falling short counts.
        at_most: Whether only exceeding counts.
        unsure: How far the true difference may lie beyond the one seen, one-sided at 5 %.
        margin: Difference within which the two count as equal.
        band: How `allowed` came about, and what it can see.
    """

    quantity: str
    expected: float
    ours: float
    allowed: float
    unusual: float
    at_least: bool = False
    at_most: bool = False
    unsure: float = 0.0
    margin: float = inf
    band: str = ""

    @property
    def status(self) -> Status:
        """Where our number lies."""
        over = self.ours - self.expected
        gap = -over if self.at_least else over if self.at_most else abs(over)
        if not gap <= self.allowed:  # so that a gap that is not a number differs
            return "differs"
        if gap > self.unusual:
            return "amber"
        return "reproduced" if gap + self.unsure <= self.margin else "undecided"

    def __str__(self) -> str:
        bound = "at least " * self.at_least + "at most " * self.at_most
        return (
            f"{MARKS[self.status]} {self.quantity}: expected {bound}{self.expected:.6g}, ours {self.ours:.6g}, "
            f"gap {self.ours - self.expected:+.3g}, allowed {self.allowed:.3g}" + f" ({self.band})" * bool(self.band)
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A cell and what became of it.

    Attributes:
        cell: The cell.
        records: Its runs, one a seed; empty where it did not run.
        findings: One a quantity that something is expected of.
        reason: Why it did not run, or why the difference is known.
    """

    cell: Cell
    records: Sequence[Record] = ()
    findings: Sequence[Finding] = ()
    reason: str = ""

    @property
    def status(self) -> Status:
        """The worst of the findings; a known difference where the row announces it."""
        if not self.records:
            return "not run"
        found = {finding.status for finding in self.findings}
        if "differs" in found:
            return "known difference" if self.cell.row.differs else "differs"
        return next((status for status in ("amber", "undecided") if status in found), "reproduced")

    def __str__(self) -> str:
        """Every number, and the command that runs the cell again."""
        lines = [f"{self.cell.id}: {self.status}", *map(str, self.findings)]
        return "\n".join([*lines, f"again: peft-dp run {self.cell.id}"])


def compare(cell: Cell, records: Sequence[Record]) -> Verdict:
    """The verdict of a cell from its records, one a seed.

    Raises:
        ValueError: Nothing is expected of the cell, so no run could fail it.
    """
    findings = [
        _score(cell, expect, records)
        if name == "score"
        else _printed(name, expect, fmean(r.values[name] for r in records))
        for name, expect in cell.expect.items()
        if expect.asserted
    ]
    findings += [*_recorded(cell, records), *_alarm(cell, records)]
    if not findings and not cell.expect:
        raise ValueError(f"{cell.id} has no expectation: print one in its table or record one with `peft-dp bless`")
    return Verdict(cell=cell, records=records, findings=findings, reason=cell.row.differs)


def _printed(name: str, expect: Expect, ours: float) -> Finding:
    return Finding(
        quantity=name,
        expected=expect.value,
        ours=ours,
        allowed=expect.within,
        unusual=expect.within,
        at_least=expect.at_least,
    )


def _score(cell: Cell, expect: Expect, records: Sequence[Record]) -> Finding:
    """A printed score: the paper's spread over seeds and ours, or what stands for it, give the band."""
    spread = printed_spread(cell, records)
    best = best_of(expect.best_of) * spread.value if expect.best_of > 1 else 0.0
    return _within(cell, expect.value - best, expect.runs, spread, _step(cell) / 2, records)


def _within(
    cell: Cell, expected: float, runs: int, spread: Spread, rounding: float, records: Sequence[Record]
) -> Finding:
    """Our mean score beside that of `runs` others, whose spread over seeds this is."""
    ours = len(records)
    found = spread.detectable(runs, ours)
    return Finding(
        quantity="score",
        expected=expected,
        ours=fmean(record.values["score"] for record in records),
        allowed=spread.half_width(runs, ours, RED) + rounding,
        unusual=spread.half_width(runs, ours, AMBER) + rounding,
        unsure=spread.half_width(runs, ours, 2 * AMBER),
        margin=resolution(*_scored(cell, expected)),
        band=f"spread {spread.value:.2f} over seeds, {spread.freedom} degrees of freedom, {runs} runs there and {ours} "
        f"here, rounding {rounding:.2g}; a loss of {found:.2f} is seen with power {POWER:.0%}",
    )


def printed_spread(cell: Cell, records: Sequence[Record] = ()) -> Spread:
    """The spread that a printed score is held to: that of its table's rows and of our runs; its own if far more."""
    expect, spread = cell.expect["score"], pooled([*printed_spreads(cell), *_ours(records)])
    if expect.std and expect.runs > 1 and (own := Spread(expect.std, expect.runs - 1)).collapsed(spread):
        return own
    return spread


def printed_spreads(cell: Cell) -> list[Spread]:
    """The spreads that the cell's table prints for its task; where there is none, what stands for one."""
    found = [
        Spread(expect.std, expect.runs - 1)
        for row in cell.table.rows
        if (expect := row.cells.get(cell.task, {}).get("score")) and expect.std and expect.runs > 1
    ]
    return found or [_prior(cell, cell.expect["score"].value)]


def _prior(cell: Cell, score: float) -> Spread:
    """What stands for the spread of a cell where none is printed."""
    private = not cell.row.cited and cell.spec.privacy is not None
    return prior(*_scored(cell, score), private=private)


def _scored(cell: Cell, score: float) -> tuple[str, float, int, float]:
    """The metric, a score, the number of dev examples, and their share of class 1."""
    size = (not cell.row.cited and cell.spec.dev) or tasks.dev_size(cell.task)
    return tasks.find(cell.task).metric, score, size, POSITIVE.get(cell.task, 0.5)


def _ours(records: Sequence[Record]) -> list[Spread]:
    scores = [record.values["score"] for record in records]
    return [of_runs(scores)] if len(scores) > 1 and max(scores) > min(scores) else []


def _step(cell: Cell) -> float:
    """The step of the numbers that the table prints for the task: 0.1 for 85.8 and 90.0, 1 where all are whole."""
    columns = [row.cells.get(cell.task, {}).get("score") for row in cell.table.rows]
    return 10.0 ** -max(len(f"{expect.value:.10g}".partition(".")[2]) for expect in columns if expect)


def _recorded(cell: Cell, records: Sequence[Record]) -> list[Finding]:
    theirs = cell.recorded.get(cell.row.id, {}).get(cell.task)
    if not theirs:
        return []
    rounding = 50 / cell.spec.dev if cell.spec.dev else 0.05
    spread = _spread(cell, cell.recorded, theirs)
    return [_within(cell, fmean(theirs), len(theirs), spread, rounding, records), *_loss(cell, records)]


def _loss(cell: Cell, records: Sequence[Record]) -> list[Finding]:
    """The last epoch's training loss: of thousands of examples, so it sees a wrong method before the score does."""
    theirs = cell.losses.get(cell.row.id, {}).get(cell.task)
    if not theirs:
        return []
    spread = _spread(cell, cell.losses, theirs)
    unusual, allowed = (spread.half_width(len(theirs), len(records), chance) for chance in (AMBER, RED))
    ours = fmean(nan if (loss := record.trail[-1].loss) is None else loss for record in records)
    return [Finding(quantity="loss", expected=fmean(theirs), ours=ours, allowed=allowed, unusual=unusual)]


def _alarm(cell: Cell, records: Sequence[Record]) -> list[Finding]:
    """Our spread, where it is larger than that of the others by more than chance explains: a run may have collapsed."""
    theirs = cell.recorded.get(cell.row.id, {}).get(cell.task)
    if theirs:
        rest = _spread(cell, cell.recorded, theirs)
    elif "score" in cell.expect:
        rest = printed_spread(cell)
    else:
        return []
    return [
        Finding(quantity="spread", expected=rest.value, ours=own.value, allowed=inf, unusual=0.0, at_most=True)
        for own in _ours(records)
        if own.collapsed(rest)
    ]


def _spread(cell: Cell, recorded: Mapping[str, Mapping[str, list[float]]], theirs: Sequence[float]) -> Spread:
    """The spread over seeds of recorded scores or losses."""
    private = {row.id: "privacy" in row.spec for row in cell.table.rows}
    alike = [
        tasks[cell.task]
        for row, tasks in recorded.items()
        if cell.task in tasks and private.get(row) == private[cell.row.id]
    ]
    freedom = sum(len(scores) - 1 for scores in alike)
    square = sum((len(scores) - 1) * variance(scores) for scores in alike) / freedom
    return Spread(max(sqrt(square), sqrt(variance(theirs))), freedom)


def judge(claim: Claim, runs: Mapping[str, Sequence[Record]]) -> Finding:
    """A claim against records: how far the worst pair falls short, and how far chance may let it.

    A score may fall short by what seeds explain (one-sided, at the red level); other quantities not at all.

    Args:
        claim: The claim.
        runs: Id of each of its cells that can run -> records; a cited one stands with its printed number.
    """
    pairs = claim.pairs(*([_value(cell, claim.quantity, runs) for cell in side] for side in claim.sides))
    sign = 1.0 if claim.relation in (">", ">=") else -1.0
    gaps = [sign * (right - left) for left, right in pairs]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    allowed = _slack(claim, worst, runs) if claim.quantity == "score" else 0.0
    return Finding(
        quantity=f"{claim.quantity} short of the claim",
        expected=0.0,
        ours=max(gaps[worst], 0.0 if claim.holds(pairs) else 5e-324),
        allowed=allowed,
        unusual=0.0,
    )


def _value(cell: Cell, quantity: str, runs: Mapping[str, Sequence[Record]]) -> float:
    if cell.row.cited:
        return cell.expect[quantity].value
    return fmean((record.values | record.cost)[quantity] for record in runs[cell.id])


def _slack(claim: Claim, pair: int, runs: Mapping[str, Sequence[Record]]) -> float:
    """What chance explains of a pair's difference."""
    square, freedom = 0.0, 10**6
    for cells, factor in zip(claim.sides, (1.0, claim.times), strict=True):
        weight = factor / len(cells) if claim.over == "mean" and cells else factor
        for cell in cells if claim.over == "mean" else cells[pair : pair + 1]:
            theirs = cell.recorded.get(cell.row.id, {}).get(cell.task)
            records = [] if cell.row.cited else _ours(runs[cell.id])
            printed = printed_spreads(cell) if "score" in cell.expect else []
            spread = (
                _spread(cell, cell.recorded, theirs)
                if theirs
                else pooled([*printed, *records] or [_prior(cell, _value(cell, "score", runs))])
            )
            number = cell.expect["score"].runs if cell.row.cited else len(runs[cell.id])
            square += (weight * spread.value) ** 2 / number
            freedom = min(freedom, spread.freedom)
    return Spread(sqrt(square), freedom).half_width(1, 10**9, 2 * RED)
