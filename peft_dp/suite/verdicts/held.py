"""Runs of a cell held to recorded runs of their seeds, or to those of a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from statistics import fmean
from typing import Any

from peft_dp.records import Record
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.verdicts.finding import REPLAY, Finding
from peft_dp.suite.verdicts.replay import Replay, kept_of, replay, unlike

MOST_BANDS = 1e9
"""Stands for a gap of what must be equal."""


def replays_of(cell: Cell, records: Sequence[Record]) -> list[Replay]:
    """Return each run beside the recorded run of its seed, where there is one."""
    beside = "its recording" if cell.own is cell else "our own run"
    return [
        replay(record, cell.runs[seed], cell.scores_by_seed[seed], cell.drift, beside)
        for record in records
        if record.trace and (seed := record.spec.seed) in cell.runs
    ]


def held_to_recordings(cell: Cell, records: Sequence[Record], replays: Sequence[Replay]) -> list[Finding]:
    """What runs say that were all recorded before: each repeats its recording, or parts from it somewhere.

    Their scores are held to the same seeds' own, as far as the answers that may differ can move them.
    """
    theirs = [cell.scores_by_seed[record.spec.seed] for record in records]
    dev = min(len(record.trace.answers) for record in records if record.trace)
    answers = replays[0].bands["answers"]
    allowed = 200 * answers / max(dev, 1) + 1e-4
    ours = fmean(record.values["score"] for record in records)
    band = f"allowed {allowed:.3g}, as {answers:.0f} answers may differ from the same seeds' recordings"
    score = Finding(quantity="score", expected=fmean(theirs), ours=ours, allowed=allowed, unusual=allowed, band=band)
    return [score, *repeated(records, replays, cell.provenance)]


def repeated(records: Sequence[Record], replays: Sequence[Replay], provenance: Mapping[str, Any]) -> list[Finding]:
    """The replay that parted furthest from what it is held to, or else came nearest to it; what cannot be one."""
    found = [_noted(str(each)) for each in replays if each.streams]
    if held := [each for each in replays if not each.streams]:
        worst = max(held, key=lambda each: each.over(each.parted or each.largest))
        words = str(worst)
        if worst.parted:
            now = next(record.environment for record in records if record.spec.seed == worst.seed)
            words += f"; what differs: {unlike(now, provenance) or 'no version, nor the machine'}"
        if libraries := _through(records[0]):
            words += f"; made by {libraries}"
        over = min(worst.over(worst.parted or worst.largest), MOST_BANDS)
        found.append(Finding(quantity=REPLAY, expected=0.0, ours=over, allowed=1.0, unusual=1.0, band=words))
    return found


def _through(record: Record) -> str:
    """Return the libraries that made a run, with their versions; empty for our own code."""
    versions = record.environment.get("versions") or {}
    made = [name for name in record.sources if name in versions]
    return ", ".join(f"{name} {versions[name]}" for name in made)


def beside_baseline(records: Sequence[Record], baseline: Mapping[str, Record]) -> list[Finding]:
    """Each run beside the baseline's of its spec and seed."""
    found = []
    for record in records:
        before = baseline.get(record.spec.digest)
        if before is None or before.trace is None or record.trace is None:
            found.append(_noted(f"seed {record.spec.seed}: the baseline has no run of it that keeps a trace"))
        else:
            held = replay(record, kept_of(before), before.values["score"], beside="the baseline")
            found += repeated([record], [held], before.environment | {"hash": before.sources})
    return found


def _noted(words: str) -> Finding:
    """Say why a run is held to the band over seeds alone."""
    return Finding(quantity=REPLAY, expected=0.0, ours=0.0, allowed=inf, unusual=inf, band=words)
