"""The story on one screen: spec in, record out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, TextIO

from peft_dp.job import Job, Sources, build, code_sha256, gather
from peft_dp.measuring import after, before, cost, moved
from peft_dp.measuring.environment import environment, versions
from peft_dp.places import Places
from peft_dp.privacy import plan
from peft_dp.records import Record, Records, key
from peft_dp.spec import Spec
from peft_dp.training import together
from peft_dp.training.batching import TOKENS
from peft_dp.training.loop import Trained, fit


@dataclass(frozen=True)
class Wanted:
    """A run that no record was found of.

    Attributes:
        key: Of its record.
        hashes: Of data, weights and code.
    """

    spec: Spec
    sources: Sources
    key: str
    hashes: dict[str, str]


def run(
    spec: Spec, places: Places | None = None, records: Records | None = None, progress: TextIO | None = None
) -> Record:
    """The record of a spec: read if `records` has it, else trained, measured and kept.

    Args:
        spec: What to run.
        places: Where data and backbones are, and the device.
        records: Folder to read from and write to; None for neither.
        progress: Where to draw a bar; None for none.

    Raises:
        ValueError: The spec names what does not exist, or a file is damaged; before any long work.
        Missing: This machine lacks data, weights or a device; likewise.
    """
    return runs([spec], places, records, progress)[0]


def runs(
    specs: Sequence[Spec], places: Places | None = None, records: Records | None = None, progress: TextIO | None = None
) -> list[Record]:
    """As `run`, of specs that differ in their seeds only; those without a record train together where they can."""
    found: dict[str, Record] = {}
    wanted: list[Wanted] = []
    keys = []
    for spec in specs:
        sources = gather(spec, places or Places())
        hashes = {"data": sources.data.sha256, "weights": sources.weights_sha256, "code": code_sha256()}
        keys.append(key(spec, hashes, versions(), sources.device))
        if records and (record := records.load(spec, keys[-1])):
            found[record.key] = record
        else:
            wanted.append(Wanted(spec, sources, keys[-1], hashes))
    for record in reproduce(wanted, progress) if wanted else ():
        found[record.key] = record
        if records:
            records.save(record)
    return [found[name] for name in keys]


def reproduce(wanted: Sequence[Wanted], progress: TextIO | None) -> Iterator[Record]:
    """Builds the jobs, trains them and measures before and after."""
    jobs = [build(one.spec, one.sources) for one in wanted[:1]]
    step_bytes = cost.step_bytes(jobs[0])  # a step of another seed differs in its values only
    if len(wanted) > 1 and together.possible(jobs[0]):
        jobs += [together.sharing(jobs[0], build(one.spec, one.sources)) for one in wanted[1:]]
        held = [_before(job) for job in jobs]
        vectors = [moved.vectors(job.backbone) for job in jobs]
        try:
            every = together.fit(jobs, progress)
        except FloatingPointError:
            jobs = []  # one seed can spoil the others' rows: alone each shows what is its own
        else:
            for one, job, values, start, trained in zip(wanted, jobs, held, vectors, every, strict=True):
                yield _record(one, job, values, start, trained, step_bytes, len(jobs))
            return
    for one in wanted:
        job = jobs.pop() if jobs else build(one.spec, one.sources)
        values, start = _before(job), moved.vectors(job.backbone)
        yield _record(one, job, values, start, fit(job, progress), step_bytes, 1)


def _before(job: Job) -> dict[str, float]:
    """What is measured before training."""
    return {quantity: getattr(before, quantity)(job) for quantity in before.__all__}


def _record(
    one: Wanted,
    job: Job,
    values: dict[str, float],
    start: moved.Vectors,
    trained: Trained,
    step_bytes: int,
    seeds: int,
) -> Record:
    """What a training gave, beside `seeds` - 1 others in the same batches."""
    predicted = after.predictions(job)
    values |= {quantity: getattr(after, quantity)(job, predicted) for quantity in after.__all__}
    return Record(
        key=one.key,
        spec=one.spec,
        values=values,
        ledger=ledger(job, trained) if job.plan.private else None,
        trail=trained.epochs,
        moved=moved.moved(start, job.backbone),
        cost=costs(trained) | {"peak_bytes": cost.weight_bytes(job) + trained.optimiser_bytes + step_bytes},
        sources=one.hashes,
        environment=environment()
        | {
            "device": one.sources.device,
            "seeds_together": seeds,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def ledger(job: Job, trained: Trained) -> dict[str, Any]:
    """What the run spent, from the steps it made and not from those it planned."""
    steps = sum(epoch.steps for epoch in trained.epochs)
    return plan.ledger(job.plan, steps, seeded=True) | {
        "physical_batch": f"{TOKENS} tokens",
        "clipped": [epoch.clipped for epoch in trained.epochs],
    }


def costs(trained: Trained) -> dict[str, float]:
    """Median seconds of an epoch, and the rates of that of all epochs."""
    seconds = sum(epoch.seconds for epoch in trained.epochs)
    return {
        "epoch_seconds": median(epoch.seconds for epoch in trained.epochs),
        "examples_per_second": sum(epoch.examples for epoch in trained.epochs) / seconds,
        "tokens_per_second": sum(epoch.tokens for epoch in trained.epochs) / seconds,
    }
