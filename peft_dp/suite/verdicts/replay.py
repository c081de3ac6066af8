"""A run beside a recorded run of its spec and seed: do they agree but for rounding, and if not, where did they part?

Both draw the same random numbers, so only rounding may differ: by threads, instruction set, and how a batch is cut.
Each quantity has a band: a stated multiple of the largest drift that was measured when the run was recorded, but no
less than a floor, and for a loss in float32 no more than 20 parts in a million. Losses are compared relatively, sums
by their norm. The first quantity beyond its band names the place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from peft_dp.records import Record
from peft_dp.suite.papers.recorded import Kept
from peft_dp.training.trail import Sketch, Step

FACTOR = 4.0
"""Bands are so many times the largest drift that was measured."""
FLOORS = {
    "fp32": {"loss": 2e-6, "norms": 3e-5, "values": 3e-5, "update": 1e-4, "answers": 1.0},
    "bf16": {"loss": 3e-3, "norms": 3e-2, "values": 3e-2, "update": 3e-2, "answers": 3.0},
}
"""Precision -> kind of quantity -> least band: of a loss, of the mean norm of single gradients, of a sum or an update
over its norm, of dev answers. A Xeon and an EPYC differed by 7.4e-6 in norms and by 9.4e-6 in sums."""
ELSEWHERE = {"loss": 20e-6, "norms": 1e-3, "values": 1e-3, "update": 5e-3, "answers": 2.0}
"""Least bands between a CPU and a GPU, whose kernels add up otherwise (docs/measurements.md, "On a GPU")."""
THROUGH = {"loss": 20e-6, "norms": 5e-5, "values": 5e-5, "update": 2e-3, "answers": 1.0}
"""Least bands of a run through a library, which pads where ours packs, and in Opacus adds 1e-6 to a norm."""
MOST = 20e-6
"""Largest band of a loss in float32."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far one quantity of two runs is apart.

    Attributes:
        place: What it is: "data", "order of batches", "loss of step 1", "noise of step 2", "loss of epoch 3".
        kind: Its kind, by which drift is kept and bands are set: "exact", "loss", "norms", "values", "update" or
            "answers".
        size: Relative difference, or a number of answers; infinite where what must be equal is not.
    """

    place: str
    kind: str
    size: float


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A run beside the recorded run of its spec and seed.

    Attributes:
        seed: The seed of both.
        beside: What the run is held to: "its recording" or "the baseline".
        streams: Streams of random numbers that differ, so that the two cannot be compared; empty where they can.
        gaps: Every quantity, in the order in which they come about.
        bands: Kind -> largest gap that rounding explains.
    """

    seed: int
    beside: str
    streams: Sequence[str]
    gaps: Sequence[Gap]
    bands: Mapping[str, float]

    @property
    def parted(self) -> Gap | None:
        """The first gap beyond its band."""
        return next((gap for gap in self.gaps if self.over(gap) > 1), None)

    @property
    def largest(self) -> Gap:
        """The gap that is largest in bands."""
        return max(self.gaps, key=self.over)

    def over(self, gap: Gap) -> float:
        """Return a gap in bands."""
        return gap.size / self.bands[gap.kind] if gap.kind != "exact" else gap.size

    def __str__(self) -> str:
        if self.streams:
            drawn = f"another generator draws {' and '.join(self.streams)} here"
            return f"seed {self.seed} is no replay of {self.beside}: {drawn}"
        if parted := self.parted:
            by = "" if parted.kind == "exact" else f" by {_size(parted)}, {self.over(parted):.3g} bands"
            return f"seed {self.seed} parts from {self.beside} at: {parted.place}{by}"
        most = self.largest
        if not most.size:
            return f"seed {self.seed} repeats {self.beside} to the last digit"
        return f"seed {self.seed} repeats {self.beside}: largest gap {self.over(most):.2g} bands, {most.place}"


def _size(gap: Gap) -> str:
    return f"{gap.size:.0f} answers" if gap.kind == "answers" else f"{gap.size:.2g} of itself"


def replay(
    record: Record,
    kept: Kept,
    score: float,
    drift: Mapping[str, float] | None = None,
    beside: str = "its recording",
) -> Replay:
    """Compare a run with a recorded one of its spec and seed.

    Args:
        record: The run.
        kept: The recorded one.
        score: The recorded one's score.
        drift: Kind -> largest gap when the recorded run was repeated; None where that was not measured.
        beside: What the recorded one is called.

    Raises:
        ValueError: The record has no trace.
    """
    mine = kept_of(record)
    names = kept.trace.streams.keys() | mine.trace.streams.keys()
    other = sorted(name for name in names if kept.trace.streams.get(name) != mine.trace.streams.get(name))
    alike = (mine.device, mine.torch) == (kept.device, kept.torch)
    gaps = [Gap(place="random numbers", kind="exact", size=inf)] if other and alike else []
    gaps += gaps_between(mine, kept)
    if gaps[-1].place == "answers" and not gaps[-1].size:  # then the score is the same but for rounding in print
        gaps.append(_exact("score", True, abs(record.values["score"] - score) < 1e-3))
    known = bands(record.spec.precision, drift)
    if record.spec.implementation != "own":
        known = {kind: max(band, THROUGH[kind]) for kind, band in known.items()}
    if mine.device != kept.device:
        known = {kind: max(band, ELSEWHERE[kind]) for kind, band in known.items()}
    return Replay(seed=record.spec.seed, beside=beside, streams=[] if alike else other, gaps=gaps, bands=known)


def bands(precision: str, drift: Mapping[str, float] | None) -> dict[str, float]:
    """Return kind -> largest gap that rounding explains."""
    found = {name: max(floor, FACTOR * (drift or {}).get(name, 0.0)) for name, floor in FLOORS[precision].items()}
    if precision == "fp32":
        found["loss"] = min(found["loss"], MOST)
    return found | {"answers": float(ceil(found["answers"]))}


def kept_of(record: Record) -> Kept:
    """Return what a recording keeps of a run.

    Raises:
        ValueError: The record has no trace.
    """
    if record.trace is None:
        raise ValueError(f"the record of {record.spec.method} on {record.spec.task} keeps no trace to replay")
    return Kept(
        spec=record.spec.own().digest,  # a library's run is a replay of our own
        device=record.environment.get("device", ""),
        torch=(record.environment.get("versions") or {}).get("torch", ""),
        hashes={name: record.sources[name] for name in ("data", "files", "weights") if name in record.sources},
        losses=[epoch.loss for epoch in record.trail],
        tokens=[epoch.tokens for epoch in record.trail],
        trace=record.trace,
    )


def gaps_between(mine: Kept, theirs: Kept) -> list[Gap]:
    """Return how far each quantity of two runs is apart, in the order in which they come about."""
    return list(_gaps(mine, theirs))


def _gaps(mine: Kept, theirs: Kept) -> Iterator[Gap]:
    yield _exact("settings, which changed since: record the row again with `peft-dp bless`", mine.spec, theirs.spec)
    for name, place in (("data", "data"), ("files", "tokenizer"), ("weights", "weights")):
        yield _exact(place, mine.hashes.get(name), theirs.hashes.get(name))
    yield _exact("order of batches", mine.trace.order, theirs.trace.order)
    yield _values("initial values", mine.trace.initial, theirs.trace.initial)
    yield _exact("number of traced steps", len(mine.trace.steps), len(theirs.trace.steps))
    for at, (ours, other) in enumerate(zip(mine.trace.steps, theirs.trace.steps, strict=False), start=1):
        for gap in _of_step(ours, other):
            yield Gap(place=f"{gap.place} of step {at}", kind=gap.kind, size=gap.size)
    yield _exact("tokens of the epochs", mine.tokens, theirs.tokens)
    yield _exact("number of epochs", len(mine.losses), len(theirs.losses))
    for at, (our, their) in enumerate(zip(mine.losses, theirs.losses, strict=False), start=1):
        yield _loss(f"loss of epoch {at}", our, their)
    yield _answers(mine.trace.answers, theirs.trace.answers)


def _of_step(ours: Step, theirs: Step) -> Iterator[Gap]:
    yield _exact("batch", ours.batch, theirs.batch)
    yield _exact("tokens", ours.tokens, theirs.tokens)
    yield _loss("loss", ours.loss, theirs.loss)
    private = theirs.released is not None
    if private:
        yield _loss("norms of the gradients", ours.norms, theirs.norms, "norms")
        yield Gap(place="number clipped", kind="answers", size=float(abs((ours.clipped or 0) - (theirs.clipped or 0))))
    yield _values("clipping" if private else "gradient", ours.summed, theirs.summed)
    if private:
        yield _values("noise", ours.released, theirs.released)
    yield _values("mean gradient", ours.given, theirs.given)
    yield _values("update", ours.update, theirs.update, "update")


def _exact(place: str, ours: object, theirs: object) -> Gap:
    return Gap(place=place, kind="exact", size=0.0 if ours == theirs else inf)


def _loss(place: str, ours: float | None, theirs: float | None, kind: str = "loss") -> Gap:
    if ours is None or theirs is None:
        return Gap(place=place, kind=kind, size=0.0 if ours is theirs else inf)
    return Gap(place=place, kind=kind, size=_relative(abs(ours - theirs), abs(theirs)))


def _values(place: str, ours: Sketch | None, theirs: Sketch | None, kind: str = "values") -> Gap:
    if ours is None or theirs is None:
        return Gap(place=place, kind=kind, size=0.0 if ours is theirs else inf)
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return Gap(place=place, kind=kind, size=_relative(apart, theirs[0]))


def _relative(gap: float, of: float) -> float:
    return gap / of if of else (inf if gap else 0.0)


def _answers(ours: str | Sequence[float], theirs: str | Sequence[float]) -> Gap:
    """Count the dev examples whose answer differs; scores differ by more than a thousandth."""
    if len(ours) != len(theirs) or isinstance(ours, str) != isinstance(theirs, str):
        return Gap(place="number of answers", kind="answers", size=inf)
    if isinstance(ours, str) or isinstance(theirs, str):
        number = sum(a != b for a, b in zip(ours, theirs, strict=True))
    else:
        number = sum(abs(a - b) > 1e-3 * max(abs(b), 1.0) for a, b in zip(ours, theirs, strict=True))
    return Gap(place="answers", kind="answers", size=float(number))


def unlike(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """Return what differs between the circumstances of two runs, as "torch 2.13.0 -> 2.14.0, threads 1 -> 2"."""
    ours, theirs = flat(now), flat(then)
    names = [name for name in theirs if name not in LEFT_OUT and name in ours and ours[name] != theirs[name]]
    return ", ".join(f"{name.rpartition('.')[2]} {theirs[name]} -> {ours[name]}" for name in names)


LEFT_OUT = ("date", "device", "seeds_together", "workers", "dirty")
"""Circumstances that are told apart from others, or explain nothing."""


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Objects within objects as one, with dotted names, a list as its JSON, and without what is null."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else value
    return found
