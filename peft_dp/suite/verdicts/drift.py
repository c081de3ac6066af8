"""Two folders of records side by side: what moved beyond noise, and what differs where it did.

Runs of one spec and seed that draw the same random numbers are replays: whatever differs beyond rounding moved, and the
place where they part is named. Other runs of one spec but for the seed are held against those of the same spec in the
other folder, or else of the nearest.
A score moved where its mean leaves the t interval at 0.1 % (`tolerance`); the spread over seeds is pooled over all
runs of the task in both folders and what is recorded or printed of them. Seconds and bytes have no spread of their
own in print: they moved where their ratio leaves the same interval on logarithms, whose spread is that of seeds of one
spec within a folder, trained one after another; without such repeats only the ratio is known. Seconds taken beside
other workers and alone are shown and never moved. Of the privacy ledger, any difference counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import Literal

from tabulate import tabulate

from peft_dp.records import Record
from peft_dp.spec import to_json
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.verdicts.bands import RED, Spread, joined, of_runs, pooled, prior
from peft_dp.suite.verdicts.cells import TIME, printed_spreads, scoring
from peft_dp.suite.verdicts.claims import uneven
from peft_dp.suite.verdicts.folder import Folder, by_spec
from peft_dp.suite.verdicts.replay import Replay, flat, kept_of, replay

Word = Literal["same", "changed", "within noise", "better", "worse"]
COSTS = (TIME, "peak_bytes")
KINDS = ("replay", "score", "privacy", *COSTS)
LONGEST = 24
"""Letters shown of a value that differs."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of one spec in one folder.

    Attributes:
        name: Id of the first cell that has the spec, or method, task and epsilon where none has.
        cell: That cell.
        records: One a seed.
    """

    name: str
    cell: Cell | None
    records: Sequence[Record]

    def mean(self, quantity: str) -> float:
        """The mean over seeds of what every run measures."""
        return fmean((record.values | record.cost)[quantity] for record in self.records)

    @property
    def alike(self) -> tuple[object, ...]:
        """Runs that share this spread alike: what is scored, and whether noise is added."""
        spec = self.records[0].spec
        return spec.backbone, spec.task, spec.dev, spec.privacy is not None

    def circumstances(self) -> dict[str, str]:
        """All that may explain a result, by dotted name: spec, hashes, machine, versions; of several seeds, each."""
        found: dict[str, set[str]] = defaultdict(set)
        for record in self.records:
            machine = {name: value for name, value in record.environment.items() if name != "date"}
            for name, value in flat(to_json(record.spec) | {"hash": record.sources} | machine).items():
                found[name].add(f"{value}")
        return {name: ", ".join(sorted(values)) for name, values in found.items()}

    def ledger(self) -> dict[str, str]:
        """What the runs promise; the shares of clipped examples are results, and promise nothing."""
        found: dict[str, set[str]] = defaultdict(set)
        for record in self.records:
            for name, value in flat(record.ledger or {}).items():
                found[name].add(f"{value}")
        return {name: ", ".join(sorted(values)) for name, values in found.items() if name != "clipped"}


@dataclass(frozen=True, kw_only=True)
class Change:
    """One cell, before and after.

    Attributes:
        name: The cell's id.
        scores: Mean before and after, over the seeds of both where the word is "same".
        noise: Largest difference of the means that chance explains, in points.
        word: What became of the score; "same" where each seed that ran twice repeats, "changed" where one does not.
        parted: Where each seed parts that ran twice, drew the same random numbers and does not repeat.
        ratios: Quantity of cost -> after divided by before.
        allowed: Quantity of cost -> the ratio, or its inverse, that chance explains; none without repeats.
        uneven: Why its times do not compare, so that none is allowed and none moved; "" where they do.
        ledger: Entry of the privacy ledger -> before and after, where they differ.
        differs: What may explain it -> before and after, where they differ.
        moved: What moved beyond noise, of `KINDS`.
    """

    name: str
    scores: tuple[float, float]
    noise: float
    word: Word
    parted: list[str]
    ratios: dict[str, float]
    allowed: dict[str, float]
    uneven: str
    ledger: dict[str, tuple[str, str]]
    differs: dict[str, tuple[str, str]]
    moved: list[str]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that is not the same in both folders.

    Attributes:
        name: Dotted name.
        before: Its value; "several" where cells have several.
        after: Likewise.
        moved: Number of cells that moved and in which it differs.
        others: Number of cells that did not move and in which it differs.
        candidate: Whether it may be the cause: it differs where something moved, and nowhere else.
    """

    name: str
    before: str
    after: str
    moved: int
    others: int
    candidate: bool


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Two folders of records.

    Attributes:
        folders: Before and after.
        changes: Cells that both have.
        only: Cells that only the one has, and only the other.
        differs: What moved, of `KINDS`, or "nothing" -> what is not the same, likeliest cause first.
    """

    folders: tuple[Path, Path]
    changes: Sequence[Change]
    only: tuple[Sequence[str], Sequence[str]]
    differs: dict[str, list[Difference]]

    @property
    def moved(self) -> bool:
        """Whether anything moved beyond noise."""
        return any(change.moved for change in self.changes)


def drift(before: Folder, after: Folder) -> Drift:
    """What changed from one folder to the other.

    Raises:
        ValueError: No run of the one has a counterpart in the other.
    """
    pairs, only = _paired(_runs(before), _runs(after))
    if not pairs:
        raise ValueError(f"{before.path} and {after.path} share no run: compare folders of the same cells")
    both = [runs for pair in pairs for runs in pair]
    changes = [_change(one, two, both) for one, two in pairs]
    kinds = [kind for kind in KINDS if any(kind in change.moved for change in changes)] or ["nothing"]
    differs = {kind: _differences(kind, changes) for kind in kinds}
    return Drift(folders=(before.path, after.path), changes=changes, only=only, differs=differs)


def _runs(folder: Folder) -> dict[str, Runs]:
    """Digest of the spec of seed 0 -> its runs."""
    found: dict[str, Runs] = {}
    for verdict in folder.verdicts:
        runs = Runs(name=verdict.cell.id, cell=verdict.cell, records=verdict.records)
        found.setdefault(verdict.cell.spec.seeded(0).digest, runs)
    for digest, records in by_spec(folder.others).items():
        spec = records[0].spec
        name = f"{spec.method} {spec.task}" + (f" epsilon {spec.privacy.epsilon:g}" if spec.privacy else "")
        found[digest] = Runs(name=name, cell=None, records=sorted(records, key=lambda record: record.spec.seed))
    return found


def _paired(
    before: dict[str, Runs], after: dict[str, Runs]
) -> tuple[list[tuple[Runs, Runs]], tuple[list[str], list[str]]]:
    """Runs of equal specs; of the rest, those of a method, task and privacy that differ in the fewest fields."""
    pairs = [(runs, after[digest]) for digest, runs in before.items() if digest in after]
    left = {digest: runs for digest, runs in before.items() if digest not in after}
    right = {digest: runs for digest, runs in after.items() if digest not in before}

    def apart(pair: tuple[str, str]) -> int:
        first, second = (flat(to_json(runs.records[0].spec)) for runs in (before[pair[0]], after[pair[1]]))
        return sum(first.get(name) != second.get(name) for name in first | second)

    def kind(runs: Runs) -> tuple[object, ...]:
        spec = runs.records[0].spec
        return spec.method, spec.task, spec.privacy is not None

    near = [(one, two) for one in left for two in right if kind(left[one]) == kind(right[two])]
    for one, two in sorted(near, key=apart):
        if one in left and two in right:
            pairs.append((left.pop(one), right.pop(two)))
    return pairs, ([runs.name for runs in left.values()], [runs.name for runs in right.values()])


def _change(before: Runs, after: Runs, both: Sequence[Runs]) -> Change:
    scores = before.mean("score"), after.mean("score")
    seeds = [{record.spec.seed: record.values["score"] for record in runs.records} for runs in (before, after)]
    common = seeds[0].keys() & seeds[1].keys()
    number = len(before.records), len(after.records)
    noise = _spread(after, both).half_width(*number, RED)
    word: Word = "better" if scores[1] > scores[0] else "worse"
    replays = _replays(before, after)
    parted = [str(each) for each in replays if each.parted]
    if parted:
        word = "changed"
    elif common and len(replays) == len(common):
        word = "same"
        scores = (fmean(seeds[0][seed] for seed in common), fmean(seeds[1][seed] for seed in common))
    elif common and all(seeds[0][seed] == seeds[1][seed] for seed in common):
        word = "same"
        scores = (fmean(seeds[0][seed] for seed in common),) * 2
    elif abs(scores[1] - scores[0]) <= noise:
        word = "within noise"
    ratios = {name: after.mean(name) / before.mean(name) for name in COSTS}
    apart = uneven([*before.records, *after.records])
    repeats = {name: spread for name in COSTS if not (apart and name == TIME) and (spread := _repeats(name, both))}
    allowed = {name: exp(spread.half_width(*number, RED)) for name, spread in repeats.items()}
    ledger = _unequal(before.ledger(), after.ledger())
    costs = [name for name in allowed if abs(log(ratios[name])) > log(allowed[name]) + 1e-9]
    return Change(
        name=(after if after.cell else before).name,
        scores=scores,
        noise=noise,
        word=word,
        parted=parted,
        ratios=ratios,
        allowed=allowed,
        uneven=apart,
        ledger=ledger,
        differs=_unequal(before.circumstances(), after.circumstances()),
        moved=["replay"] * bool(parted)
        + ["score"] * (word in ("better", "worse"))
        + ["privacy"] * bool(ledger)
        + costs,
    )


def _replays(before: Runs, after: Runs) -> list[Replay]:
    """Return each run beside the one of its spec and seed in the other folder, where both draw the same numbers."""
    known = {record.spec.digest: record for record in before.records if record.trace}
    drift = after.cell.drift if after.cell else None
    pairs = [(known[record.spec.digest], record) for record in after.records if record.spec.digest in known]
    found = [
        replay(new, kept_of(old), old.values["score"], drift, beside="the run before")
        for old, new in pairs
        if new.trace
    ]
    return [each for each in found if not each.streams]


def _unequal(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    pairs = {name: (before.get(name, "none"), after.get(name, "none")) for name in before | after}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _spread(runs: Runs, both: Sequence[Runs]) -> Spread:
    """The spread of a score over seeds: of all runs alike, and what is recorded or printed of them; or a guess."""
    alike = [other for other in both if other.alike == runs.alike]
    scores = [[record.values["score"] for record in other.records] for other in alike]
    known = [other.cell for other in alike if other.cell]
    scores += [cell.recorded.get(cell.own.row.id, {}).get(cell.task, []) for cell in known]
    # Each once: a seed that gave the same in both folders, or was recorded, tells of the spread but once.
    once = {tuple(round(score, 4) for score in some) for some in scores}
    found = [of_runs(some) for some in once if len(some) > 1 and max(some) > min(some)]
    found += printed_spreads(runs.cell) if runs.cell and "score" in runs.cell.expect else []
    if found:
        return pooled(found)
    spec = runs.records[0].spec
    return prior(*scoring(spec.task, spec.dev, runs.mean("score")), private=spec.privacy is not None)


def _repeats(quantity: str, both: Sequence[Runs]) -> Spread | None:
    """The spread of a cost's logarithm over repeats within a folder; None without any."""
    found = []
    for runs in both:
        # Seeds that train together share one clock.
        alone = [record for record in runs.records if record.environment.get("seeds_together", 1) == 1]
        if len(alone) > 1 and not (quantity == TIME and uneven(alone)):
            found.append(of_runs([log(record.cost[quantity]) for record in alone]))
    return joined(found) if found else None


def _differences(kind: str, changes: Sequence[Change]) -> list[Difference]:
    """First what differs where this moved and nowhere else, then by the number of cells that moved."""
    found = []
    for name in dict.fromkeys(name for change in changes for name in change.differs):
        where = [change for change in changes if name in change.differs]
        moved = sum(kind in change.moved for change in where)
        values = zip(*(change.differs[name] for change in where), strict=True)
        before, after = (side[0] if len(set(side)) == 1 else "several" for side in values)
        others = len(where) - moved
        found.append(
            Difference(name=name, before=before, after=after, moved=moved, others=others, candidate=moved > 0 == others)
        )
    return sorted(found, key=lambda one: (not one.candidate, -one.moved, one.others))


def render_drift(found: Drift) -> str:
    """Cells whose score is not the same or in which something moved, the ledgers, and what differs."""
    changes = sorted(found.changes, key=lambda change: not change.moved)
    lines = [_line(change) for change in changes if change.moved or change.word != "same"]
    headers = ("cell", "before", "after", "chance", "score", "s/epoch", "peak", "privacy")
    parts = ["\n".join(f"{word}: {folder}" for word, folder in zip(("before", "after"), found.folders, strict=True))]
    if lines:
        legend = (
            "chance: the largest difference of scores that chance explains (99.9 %); in parentheses: the largest\n"
            "ratio, as seeds repeat a run within a folder; none without repeats; !: beyond it"
        )
        parts += [tabulate(lines, headers, disable_numparse=True), legend]
    same = len(changes) - len(lines)
    summary = [f"{same} of {len(changes)} cells gave the same score, and nothing else moved in them"]
    for name in COSTS:
        ratios = [change.ratios[name] for change in changes]
        summary.append(f"{name}: x{median(ratios):.3g} in the median cell, x{min(ratios):.3g} to x{max(ratios):.3g}")
    parts.append("\n".join(summary))
    ledgers: dict[str, list[str]] = defaultdict(list)
    for change in changes:
        entries = [f"  {name}: {before} -> {after}" for name, (before, after) in change.ledger.items()]
        ledgers["\n".join(entries)].append(change.name)
    parts += [f"{change.name}: {words}" for change in changes for words in change.parted]
    parts += [f"privacy differs in {_names(names)}\n{entries}" for entries, names in ledgers.items() if entries]
    for why in sorted({change.uneven for change in changes if change.uneven}):
        parts.append(f"{why}; not judged in {_names([change.name for change in changes if change.uneven == why])}")
    for kind, differences in found.differs.items():
        parts.append(_because(kind, differences, sum(kind in change.moved for change in changes), len(changes)))
    for word, names in zip(("before", "after"), found.only, strict=True):
        parts += [f"only {word}: {_names(names)}"] if names else []
    return "\n\n".join(parts)


def _line(change: Change) -> list[str]:
    costs = []
    for name, ratio in change.ratios.items():
        allowed = f" ({change.allowed[name]:.2f})" if name in change.allowed else ""
        costs.append(f"x{ratio:.3g}{allowed}" + " !" * (name in change.moved))
    before, after = (f"{score:.1f}" for score in change.scores)
    privacy = "differs !" if change.ledger else ""
    return [change.name, before, after, f"+-{change.noise:.1f}", change.word, *costs, privacy]


def _because(kind: str, differences: Sequence[Difference], moved: int, cells: int) -> str:
    heading = f"{kind} moved in {moved} of {cells} cells" if moved else "nothing moved beyond chance"
    if not differences:
        return f"{heading}; spec, hashes, machine and versions are the same"
    lines = [
        ["cause?" if one.candidate else "", one.name, _short(one.before), _short(one.after)]
        + [f"{one.moved} of {moved}"] * bool(moved)
        + [f"{one.others} of {cells - moved}"]
        for one in differences
    ]
    headers = ["", "what differs", "before", "after", *["moved"] * bool(moved), "not moved"]
    if moved == cells:
        heading += ": no cell that did not tells one difference from another"
    elif moved:
        alone = any(one.candidate for one in differences)
        heading += "; what differs there and nowhere else is marked" if alone else "; nothing differs there alone"
    return f"{heading}\n" + tabulate(lines, headers, disable_numparse=True)


def _names(names: Sequence[str]) -> str:
    return f"{len(names)} cell{'s' * (len(names) > 1)}: {', '.join(names)}"


def _short(value: str) -> str:
    """A hash by its first letters, as git does."""
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."
