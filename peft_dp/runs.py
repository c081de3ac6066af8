"""The story on one screen: spec in, record out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, TextIO

import torch

from peft_dp import code
from peft_dp.machine import Places
from peft_dp.measuring import change as moved
from peft_dp.measuring import cost, scores
from peft_dp.measuring.environment import environment, versions
from peft_dp.models.batch import TOKENS
from peft_dp.privacy import plan
from peft_dp.records import Record, Records, key
from peft_dp.spec import Spec
from peft_dp.training import fleet as together
from peft_dp.training.checkpoint import Checkpoint
from peft_dp.training.job import Job, Sources, build, find_sources
from peft_dp.training.loop import Trained, fit


@dataclass(frozen=True)
class Wanted:
    """A run and what it is made from.

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
    """As `run`, of specs that differ in their seeds only; those without a record train together where they can.

    A record that another process trains is waited for.
    """
    asked = [_wanted(spec, places or Places()) for spec in specs]
    if records is None:
        return list(reproduce(asked, progress))
    found: dict[str, Record] = {}

    def missing() -> list[Wanted]:
        for one in asked:
            if one.key not in found and (record := records.load(one.spec, one.key)):
                found[one.key] = record
                # Left where a run was killed just after its record was safe.
                _checkpoint(records, one.spec, one.key).remove()
        return [one for one in asked if one.key not in found]

    if wanted := missing():
        with records.held([(one.spec, one.key) for one in wanted]):
            wanted = missing()  # another process may have written some meanwhile
            for record in reproduce(_batch(asked, found), progress, records) if wanted else ():
                if record.key not in found:
                    records.save(record)
                    found[record.key] = record
                    _checkpoint(records, record.spec, record.key).remove()
    return [found[one.key] for one in asked]


def all_recorded(specs: Sequence[Spec], places: Places, records: Records) -> bool:
    """Whether each spec has its record; nothing trains.

    Raises:
        ValueError: As `run`.
        Missing: As `run`; without data, weights or a device nobody knows which record it would be.
    """
    return all(records.load(one.spec, one.key) for one in (_wanted(spec, places) for spec in specs))


def _batch(asked: Sequence[Wanted], found: Mapping[str, Record]) -> list[Wanted]:
    """Those without a record, and those that were trained beside them where a session was killed between two records.

    For a seed's last bits depend on which others are in its batches: of a group that is not whole all train again.
    """
    for size in {record.environment.get("seeds_together") for record in found.values()}:
        group = [
            one for one in asked if one.key not in found or found[one.key].environment.get("seeds_together") == size
        ]
        if len(group) == size:
            return group
    return [one for one in asked if one.key not in found]


def _checkpoint(records: Records, spec: Spec, key: str) -> Checkpoint:
    """Where a run's state is kept until its record is; the key is in the name, so no other run takes it for its own."""
    return Checkpoint(records.path(spec, key).with_suffix(".safetensors"))


def _wanted(spec: Spec, places: Places) -> Wanted:
    sources = find_sources(spec, places)
    hashes = {"data": sources.data.sha256, "weights": sources.weights_sha256, "code": code.sha256(spec)}
    return Wanted(spec, sources, key(spec, hashes, versions(), sources.device), hashes)


def reproduce(wanted: Sequence[Wanted], progress: TextIO | None, records: Records | None = None) -> Iterator[Record]:
    """Builds the jobs, trains them and measures before and after.

    A run that trains alone goes on from its checkpoint, if it has one among `records`; seeds that train together, which
    are short runs, start again.
    """
    jobs = [build(one.spec, one.sources) for one in wanted[:1]]
    step_bytes = cost.step_bytes(jobs[0])  # a step of another seed differs in its values only
    if len(wanted) > 1 and together.possible(jobs[0]):
        jobs += [together.sharing(jobs[0], build(one.spec, one.sources)) for one in wanted[1:]]
        held = [_before(job) for job in jobs]
        vectors = [(moved.vectors(job.backbone), moved.copies(job.backbone)) for job in jobs]
        try:
            every = together.fit(jobs, progress)
        except (FloatingPointError, torch.OutOfMemoryError):
            jobs = []  # one seed can spoil the others' rows, and alone each takes less memory
        else:
            for one, job, values, start, trained in zip(wanted, jobs, held, vectors, every, strict=True):
                yield _record(one, job, values, start, trained, step_bytes, len(jobs))
            return
    for one in wanted:
        job = jobs.pop() if jobs else build(one.spec, one.sources)
        values, start = _before(job), (moved.vectors(job.backbone), moved.copies(job.backbone))
        checkpoint = _checkpoint(records, one.spec, one.key) if records else None
        yield _record(one, job, values, start, fit(job, progress, checkpoint), step_bytes, 1)


def _before(job: Job) -> dict[str, float]:
    """What is measured before training."""
    return {quantity: getattr(scores, quantity)(job) for quantity in scores.KNOWN}


def _record(
    one: Wanted,
    job: Job,
    values: dict[str, float],
    start: tuple[moved.Vectors, moved.Copies],
    trained: Trained,
    step_bytes: int,
    seeds: int,
) -> Record:
    """What a training gave, beside `seeds` - 1 others in the same batches.

    Raises:
        FloatingPointError: It has moved nothing.
    """
    vectors, copies = start
    moved.check(copies, f"{one.spec.method} on {one.spec.task}, seed {one.spec.seed}")
    predicted = scores.predictions(job)
    values |= {quantity: getattr(scores, quantity)(job, predicted) for quantity in scores.TRAINED}
    return Record(
        key=one.key,
        spec=one.spec,
        values=values,
        ledger=ledger(job, trained) if job.plan.private else None,
        trail=trained.epochs,
        moved=moved.moved(vectors, job.backbone),
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
