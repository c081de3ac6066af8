"""Records against a cell: the verdict, with every number it rests on.

The band of a score is a t prediction interval (`tolerance`): the test fails beyond that of 0.1 % (red), and says
so beyond that of 5 % (amber). The spread is pooled over the rows of the same task, private and not apart; a
recorded row that spreads more keeps its own. Half a step of the score's resolution is added.

Why not "within one standard deviation": that fails a correct run every fourth time.

Not shown to differ is not yet equal. A score is reproduced where it is proved to lie so near (two one-sided tests
at 5 %) that another sample of dev examples would move it as far; else it is undecided, and more seeds decide it.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, nan, sqrt
from statistics import NormalDist, fmean, variance

from peft_dp import tasks
from peft_dp.machine import Places
from peft_dp.records import Record
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.table import Expect
from peft_dp.suite.verdicts.bands import (
    AMBER,
    COLLAPSED,
    POWER,
    RED,
    Spread,
    best_of,
    joined,
    of_runs,
    pooled,
    prior,
    resolution,
)
from peft_dp.suite.verdicts.finding import USEFUL, Finding, Status
from peft_dp.suite.verdicts.held import beside_baseline, held_to_recordings, repeated, replays_of
from peft_dp.validate import short

TIME = "epoch_seconds"
COUNTS = ("trainable", "steps", "noise_multiplier", "noise")
"""Quantities that hold whatever a run learns: with them alone nothing is expected of it."""
MOST_BANDS = 1e9
"""Stands for a gap of what must be equal."""


ROUNDING = 1e-3
"""Of a mean square of values in float32."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A cell and what became of it.

    Attributes:
        cell: The cell.
        records: Its runs, one a seed; empty where it did not run.
        findings: One a quantity that something is expected of.
        reason: Why it did not run, or why the difference is known.
        places: Where it ran; None where that is not known.
    """

    cell: Cell
    records: Sequence[Record] = ()
    findings: Sequence[Finding] = ()
    reason: str = ""
    places: Places | None = None

    @property
    def status(self) -> Status:
        """The worst of the findings; a known difference where the row announces it."""
        if not self.records:
            return "cannot run" if self.cell.row.cannot else "not run"
        found = {finding.status for finding in self.findings}
        if "differs" in found:
            return "known difference" if self.cell.row.differs else "differs"
        if "amber" in found:
            return "amber"
        if all(finding.quantity in COUNTS for finding in self.findings):
            return "no expectation"
        return next((status for status in ("undecided", "consistent") if status in found), "reproduced")

    def finding(self, quantity: str) -> Finding | None:
        """The first finding of a quantity; None where nothing is expected of it."""
        return next((finding for finding in self.findings if finding.quantity == quantity), None)

    def __str__(self) -> str:
        """Every number, and the command that runs the cell again, of the first seed where it has several."""
        lines = [f"{self.cell.id}: {self.status}", *map(str, self.findings)]
        return "\n".join([*lines, f"again: {shlex.join(['peft-dp', 'run', self.cell.id, *self._options()])}"])

    def _options(self) -> Iterator[str]:
        yield from self.cell.tables_option
        seed = self.records[0].spec.seed if self.records else 0
        if seed:
            yield from ("--seed", str(seed))
        if self.places:
            for name in ("data", "backbones"):
                if folder := getattr(self.places, name):
                    yield from (f"--{name}", str(folder))
            if self.places.device != "auto":
                yield from ("--device", self.places.device)


def _asserted(cell: Cell) -> list[str]:
    return [name for name, expect in cell.expect.items() if expect.asserted and name != "score"]


def lacking(cell: Cell, record: Record) -> str:
    """Return a sentence about the first quantity that is expected of a cell and that a record lacks; empty without."""
    name = next((name for name in _asserted(cell) if name not in record.values), None)
    return f"{cell.id} expects {short(name)}, which its record does not have" if name is not None else ""


def judge_cell(
    cell: Cell,
    records: Sequence[Record],
    baseline: Mapping[str, Record] | None = None,
    places: Places | None = None,
) -> Verdict:
    """The verdict of a cell from its records, one a seed.

    Args:
        cell: The cell.
        records: Its runs.
        baseline: Digest of a spec -> an earlier run, to which ours of that spec is held too; None for no baseline.
        places: Where they ran, for the command that runs the cell again.

    Raises:
        ValueError: A quantity is expected that a record lacks.
    """
    for record in records:
        if fault := lacking(cell, record):
            raise ValueError(fault)
    scores = [record.values["score"] for record in records]
    findings = [_printed(name, cell.expect[name], fmean(r.values[name] for r in records)) for name in _asserted(cell)]
    replays = replays_of(cell, records)
    if len(replays) == len(records) and not any(each.streams for each in replays):
        findings += held_to_recordings(cell, records, replays)
    else:
        findings += [*judge_score(cell, scores, _seeds(records)), *_loss(cell, records), *_alarm(cell, scores)]
        findings += repeated(records, replays, cell.provenance)
    findings += [] if baseline is None else beside_baseline(records, baseline)
    findings += [*_learnt(cell, records), *_noise(records)]
    return Verdict(cell=cell, records=records, findings=findings, reason=cell.row.differs, places=places)


def _seeds(records: Sequence[Record]) -> set[int]:
    return {record.spec.seed for record in records}


def _printed(name: str, expect: Expect, ours: float) -> Finding:
    return Finding(
        quantity=name,
        expected=expect.value,
        ours=ours,
        allowed=expect.within,
        unusual=expect.within,
        at_least=expect.at_least,
    )


def judge_score(cell: Cell, scores: Sequence[float], seeds: Collection[int] = ()) -> list[Finding]:
    """Our scores, one a seed, beside what the paper prints and what was recorded; the widths rest on how many.

    What was recorded of our own seeds is left out where others are left: they are the same draws.
    """
    found = []
    if (expect := cell.expect.get("score")) and expect.asserted:
        spread = printed_spread(cell, scores)
        best = best_of(expect.best_of) * spread.value if expect.best_of > 1 else 0.0
        found.append(_within(cell, expect.value - best, expect.runs, spread, _step(cell) / 2, scores))
    if theirs := cell.recorded.get(cell.own.row.id, {}).get(cell.task):
        others = [score for seed, score in cell.scores_by_seed.items() if seed not in seeds]
        theirs = others if len(others) > 1 else theirs
        rounding = 50 / cell.spec.dev if cell.spec.dev else 0.05
        spread = spread_over_seeds(cell, cell.recorded, theirs)
        found.append(_within(cell, fmean(theirs), len(theirs), spread, rounding, scores))
    return found


def _within(
    cell: Cell, expected: float, runs: int, spread: Spread, rounding: float, scores: Sequence[float]
) -> Finding:
    """Our mean score beside that of `runs` others, whose spread over seeds this is."""
    ours = len(scores)
    allowed, unusual, unsure = (spread.half_width(runs, ours, a) + rounding for a in (RED, AMBER, 2 * AMBER))
    margin = resolution(*scoring(cell.data, cell.spec.dev, expected))
    equal = min(margin - unsure, unusual)
    reproduced = f"reproduced within {equal:.3g}" if equal >= 0 else "too few runs to be reproduced"
    unseen = spread.detectable(runs, ours)
    if equal < 0 and unseen > USEFUL:
        enough = next((n for n in range(ours + 1, 51) if spread.detectable(runs, n) <= USEFUL), None)
        reproduced += f", {enough} seeds decide" if enough else ", too few runs there to decide"
    return Finding(
        quantity="score",
        expected=expected,
        ours=fmean(scores),
        allowed=allowed,
        unusual=unusual,
        unsure=unsure,
        margin=margin,
        unseen=unseen,
        band=f"{reproduced}, {_words(unusual, allowed, spread, runs, ours)}, rounding {rounding:.3g}; "
        f"a loss of {unseen:.3g} is seen with power {POWER:.0%}",
    )


def _words(unusual: float, allowed: float, spread: Spread, theirs: int, ours: int) -> str:
    return (
        f"amber beyond {unusual:.3g}, differs beyond {allowed:.3g}: spread {spread.value:.3g} over seeds, "
        f"{spread.freedom} degrees of freedom, runs {theirs} there and {ours} here"
    )


def printed_spread(cell: Cell, scores: Sequence[float] = ()) -> Spread:
    """The spread that a printed score is held to: that of its table's rows and of our runs; its own if far more."""
    expect, theirs = cell.expect["score"], pooled(printed_spreads(cell))
    if expect.std and expect.runs > 1 and (own := Spread(expect.std, expect.runs - 1)).collapsed(theirs):
        return own
    return with_ours(theirs, scores)


def with_ours(theirs: Spread, scores: Sequence[float]) -> Spread:
    """The spread of others with that of our runs, unless these collapsed: a broken run widens no band."""
    return joined([theirs, *(own for own in _ours(scores) if not own.collapsed(theirs))])


def printed_spreads(cell: Cell) -> list[Spread]:
    """The spreads that the cell's table prints for its task; where there is none, what stands for one."""
    found = [
        Spread(expect.std, expect.runs - 1)
        for row in cell.table.rows
        if (expect := row.cells.get(cell.task, {}).get("score")) and expect.std and expect.runs > 1
    ]
    return found or [spread_assumed(cell, cell.expect["score"].value)]


def spread_assumed(cell: Cell, score: float) -> Spread:
    """What stands for the spread of a cell where none is printed."""
    dev, privacy = (None, None) if cell.row.cited else (cell.spec.dev, cell.spec.privacy)
    return prior(*scoring(cell.data, dev, score), private=privacy is not None)


def scoring(task: str, dev: int | None, score: float) -> tuple[str, float, int, float]:
    """What `prior` and `resolution` ask for: metric, score, number of dev examples, and their share of class 1.

    Args:
        task: Name of the task.
        dev: Number of scored examples; None for all that the task has.
        score: Times 100.
    """
    known = tasks.find(task)
    return known.metric, score, dev or known.dev, known.positive or 0.5  # which other metrics do not look at


def _ours(scores: Sequence[float]) -> list[Spread]:
    return [of_runs(scores)] if len(scores) > 1 and max(scores) > min(scores) else []


def _step(cell: Cell) -> float:
    """The step of the numbers that the table prints for the task: 0.1 for 85.8 and 90.0, 1 where all are whole."""
    columns = [row.cells.get(cell.task, {}).get("score") for row in cell.table.rows]
    return 10.0 ** -max(len(f"{expect.value:.10g}".partition(".")[2]) for expect in columns if expect)


def _loss(cell: Cell, records: Sequence[Record]) -> list[Finding]:
    """The last epoch's training loss: of thousands of examples, so it sees a wrong method before the score does.

    Not that of a private run: it follows the noise, and now and then far further than a t interval allows.
    """
    theirs = cell.losses.get(cell.own.row.id, {}).get(cell.task)
    if not theirs or cell.spec.privacy:
        return []
    spread, runs = spread_over_seeds(cell, cell.losses, theirs), (len(theirs), len(records))
    unusual, allowed = (spread.half_width(*runs, chance) for chance in (AMBER, RED))
    last = [epoch.loss for record in records for epoch in record.trail[-1:]]
    ours = fmean(nan if loss is None else loss for loss in last) if last else nan
    band = _words(unusual, allowed, spread, *runs)
    return [Finding(quantity="loss", expected=fmean(theirs), ours=ours, allowed=allowed, unusual=unusual, band=band)]


def _alarm(cell: Cell, scores: Sequence[float]) -> list[Finding]:
    """Our spread, where it is larger than that of the others by more than chance explains: a run may have collapsed."""
    theirs = cell.recorded.get(cell.own.row.id, {}).get(cell.task)
    if theirs:
        rest = spread_over_seeds(cell, cell.recorded, theirs)
    elif "score" in cell.expect:
        rest = printed_spread(cell)
    else:
        return []
    listed = ", ".join(f"{score:.2f}" for score in scores)
    band = f"more than chance explains (F test at {COLLAPSED:.1%}): has a run collapsed? Ours are {listed}"
    return [
        Finding(quantity="spread", expected=rest.value, ours=own.value, allowed=inf, unusual=0.0, band=band)
        for own in _ours(scores)
        if own.collapsed(rest)
    ]


def _learnt(cell: Cell, records: Sequence[Record]) -> list[Finding]:
    """That a run learnt nothing, whatever its score: its loss is not finite, or every example gets the same answer.

    The latter is amber where what is expected is no better, as far as the dev set can tell, and nothing where no score
    is expected, as of a row that is there for its time.
    """
    found = []
    told = [record for record in records if record.trail and not record.secret]
    if lost := [record.spec.seed for record in told if record.trail[-1].loss is None]:
        band = f"trained, but nothing learnt: the last epoch's loss is not finite with seed {_listed(lost)}"
        share = 1 - len(lost) / len(records)
        found.append(Finding(quantity="finite losses", expected=1.0, ours=share, allowed=0.0, unusual=0.0, band=band))
    expected = [expect.value] if (expect := cell.expect.get("score")) and expect.asserted else []
    expected += cell.recorded.get(cell.own.row.id, {}).get(cell.task, [])
    mute = [record for record in records if record.values.get("answers") == 1]
    if mute and expected:
        seeds = _listed([record.spec.seed for record in mute])
        band = f"trained, but nothing learnt: the score is that of always saying the same class, with seed {seeds}"
        nothing = max(record.values["score"] - record.values["above_majority"] for record in mute)
        allowed = inf if min(expected) <= nothing + resolution(*scoring(cell.data, cell.spec.dev, nothing)) else 0.0
        found.append(Finding(quantity="answers", expected=2.0, ours=1.0, allowed=allowed, unusual=0.0, band=band))
    return found


def _noise(records: Sequence[Record]) -> list[Finding]:
    """The noise that is seen in what private runs released, beside that of their ledgers.

    The mean square of D values is that of the noise but for chance, by a relative standard deviation of sqrt(2 / D),
    and for what the examples add: at most a clip each, so the square of a step's batch in all.
    """
    private = [(record.ledger, record.trail) for record in records if record.ledger]
    epochs = [(epoch, epoch.noise) for _, trail in private for epoch in trail if epoch.noise is not None]
    values = sum(epoch.released for epoch, _ in epochs)
    if not values:
        return []
    expected = fmean(ledger["noise_multiplier"] for ledger, _ in private)
    ours = sqrt(sum(epoch.released * noise * noise for epoch, noise in epochs) / values)
    # Of what a step draws the square varies too, by its mean at most.
    learnt = sum(epoch.examples * (epoch.examples / max(epoch.steps, 1) + 1) for epoch, _ in epochs)
    sure = NormalDist().inv_cdf(1 - RED / 2)
    chance = sure * sqrt(2 / values) + ROUNDING
    below = expected * (1 - sqrt(max(0.0, 1 - chance - 2 * sure * sure / values)))
    above = sqrt(expected * expected * (1 + chance) + (learnt + 2 * sure * expected * sqrt(learnt)) / values) - expected
    allowed = below if ours < expected else above
    band = f"differs beyond -{below:.3g} or +{above:.3g}, by {values:,} values that were released"
    return [Finding(quantity="noise", expected=expected, ours=ours, allowed=allowed, unusual=allowed, band=band)]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(f"{seed}" for seed in seeds)


def spread_over_seeds(cell: Cell, recorded: Mapping[str, Mapping[str, list[float]]], theirs: Sequence[float]) -> Spread:
    """Return the spread over seeds of recorded scores or losses, pooled over rows that are private as the cell is."""
    private = {
        row.id: replace(cell, row=row).spec.privacy is not None
        for row in cell.table.rows
        if row.id in recorded and cell.task in row.cells
    }
    alike = [
        tasks[cell.task]
        for row, tasks in recorded.items()
        if cell.task in tasks and private.get(row) == (cell.spec.privacy is not None)
    ]
    freedom = sum(len(scores) - 1 for scores in alike)
    square = sum((len(scores) - 1) * variance(scores) for scores in alike) / freedom
    return Spread(max(sqrt(square), sqrt(variance(theirs))), freedom)
