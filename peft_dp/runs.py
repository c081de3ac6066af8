"""The story on one screen: spec in, record out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Self, TextIO

import torch

from peft_dp import code, implementations, saved
from peft_dp.implementations import Implementation
from peft_dp.machine import Places, worker_count
from peft_dp.measuring import change, cost, scores
from peft_dp.measuring.environment import environment, library_sources, versions
from peft_dp.records import Record, Records, key
from peft_dp.spec import Spec
from peft_dp.training import fleet
from peft_dp.training.checkpoint import Checkpoint
from peft_dp.training.job import Job, Sources, build, find_sources
from peft_dp.training.run import Trained


def run(
    spec: Spec,
    places: Places | None = None,
    records: Records | None = None,
    progress: TextIO | None = None,
    save: Path | None = None,
) -> Record:
    """Return the record of a spec: read if `records` has it, else trained, measured and kept.

    Args:
        spec: What to run.
        places: Where data and backbones are, and the device.
        records: Folder to read from and write to; None for neither.
        progress: Where to draw a bar; None for none.
        save: New folder for the trained model (`peft_dp.saved`), which is then trained whatever `records` has.

    Raises:
        ValueError: The spec names what does not exist, or a file is damaged; before any long work.
        Missing: This machine lacks data, weights or a device; likewise.
    """
    return runs([spec], places, records, progress)[0] if save is None else _kept(spec, places, records, progress, save)


def runs(
    specs: Sequence[Spec], places: Places | None = None, records: Records | None = None, progress: TextIO | None = None
) -> list[Record]:
    """Do as `run` for specs that differ in their seeds only; those without a record train together where they can.

    A record that another process trains is waited for.
    """
    worker_count()  # records tell it, and a wrong one is refused before anything trains
    wanted = [_wanted(spec, places or Places()) for spec in specs]
    if records is None:
        return [record for group in _reproduce(wanted, progress) for record in group]
    found = _found(wanted, records)
    if missing := [one for one in wanted if one.key not in found]:
        with records.held([(one.spec, one.key) for one in missing]):
            found |= _found(missing, records)  # another process may have written some meanwhile
            for group in _reproduce(_unfinished(wanted, found), progress, records):
                for record in group:
                    if record.key not in found:
                        records.save(record)
                        found[record.key] = record
                _checkpoint(group, records).remove()
    return [found[one.key] for one in wanted]


def _kept(spec: Spec, places: Places | None, records: Records | None, progress: TextIO | None, folder: Path) -> Record:
    """Train a run, and keep its model and its record.

    Raises:
        ValueError: As `run`; or the run is private and its noise is that of a seed, or it is a library's.
    """
    if spec.privacy and not spec.secret:
        raise ValueError("who knows the seed of a noise can take it away from weights that are kept: take secret noise")
    if spec.implementation != "own":
        raise ValueError(f"models are kept of runs by 'own', not {spec.implementation!r}: keep that of the own row")
    saved.check_folder(folder)
    one = _wanted(spec, places or Places())
    job = build(spec, one.sources)
    [record] = _train([one], [job], one.implementation.step_bytes(job), progress, None)
    saved.save(job, one.sources, record.ledger, folder)
    if records:
        with records.held([(spec, one.key)]):
            records.save(record)
    return record


def all_recorded(specs: Sequence[Spec], places: Places, records: Records) -> bool:
    """Return whether each spec has its record; trains nothing.

    Raises:
        ValueError: As `run`.
        Missing: As `run`; without data, weights or a device nobody knows which record it would be.
    """
    return all(records.load(one.spec, one.key) for one in (_wanted(spec, places) for spec in specs))


@dataclass(frozen=True)
class Wanted:
    """A run whose record is wanted, and what it is made from.

    Attributes:
        spec: What to run.
        implementation: Who makes it.
        sources: What the spec names, found and checked.
        key: Key of the record.
        hashes: Hashes of data, weights, the other files of the backbone, code, and the libraries that make the run.
    """

    spec: Spec
    implementation: Implementation
    sources: Sources
    key: str
    hashes: dict[str, str]


def _wanted(spec: Spec, places: Places) -> Wanted:
    implementation = implementations.load(spec.implementation)
    sources = implementation.prepared(spec, find_sources(spec, places))
    hashes = {
        "data": sources.examples.sha256,
        "weights": sources.weights_sha256,
        "files": sources.files_sha256,
        "code": code.sha256(spec),
    } | {library: library_sources()[library] for library in implementation.libraries}
    # Random weights are there for seconds and bytes, which are those of one card.
    card = f" {environment()['gpu']}" if spec.weights == "random" and sources.device == "cuda" else ""
    return Wanted(spec, implementation, sources, key(spec, hashes, versions(), sources.device + card), hashes)


def _found(wanted: Sequence[Wanted], records: Records) -> dict[str, Record]:
    """Return the records that are there, by key; without the checkpoints that a kill just after them has left."""
    loaded = {one.key: records.load(one.spec, one.key) for one in wanted}
    found = {key: record for key, record in loaded.items() if record}
    for record in found.values():
        _checkpoint([record], records).remove()
    if len(found) == len(wanted):
        _checkpoint(wanted, records).remove()
    return found


def _unfinished(wanted: Sequence[Wanted], found: Mapping[str, Record]) -> list[Wanted]:
    """Return the runs without a record, and those trained beside them where a process was killed between two records.

    A seed's last bits depend on which others are in its batches: where a group is not whole, all of it trains again.
    """
    missing = [one for one in wanted if one.key not in found]
    for size in {record.environment.get("seeds_together") for record in found.values()}:
        group = [
            one for one in wanted if one.key not in found or found[one.key].environment.get("seeds_together") == size
        ]
        if missing and len(group) == size:
            return group
    return missing


def _checkpoint(group: Sequence[Wanted | Record], records: Records) -> Checkpoint:
    """Return where runs that train together, or one alone, keep their state until they have their records.

    The name has the key, of several runs a hash of their keys, so no other run takes the state for its own.
    """
    keys = [one.key for one in group]
    name = keys[0] if len(keys) == 1 else hashlib.sha256(" ".join(keys).encode()).hexdigest()
    return Checkpoint(records.path(group[0].spec, name).with_suffix(".safetensors"))


def _reproduce(
    wanted: Sequence[Wanted], progress: TextIO | None, records: Records | None = None
) -> Iterator[list[Record]]:
    """Build, train and measure; yield the records of runs that trained together, or of one that trained alone.

    Where `records` has a checkpoint of theirs, the runs go on from it.
    """
    if not wanted:
        return
    implementation = wanted[0].implementation
    jobs = [build(wanted[0].spec, wanted[0].sources)]
    step_bytes = implementation.step_bytes(jobs[0])  # a step of another seed differs in its values only
    if len(wanted) > 1 and implementation.together(jobs[0]):
        jobs += [fleet.share_frozen(jobs[0], build(one.spec, one.sources)) for one in wanted[1:]]
        group = None
        try:
            group = _train(wanted, jobs, step_bytes, progress, records)
        except (FloatingPointError, torch.OutOfMemoryError):
            jobs = []  # one seed can spoil the others' rows, and alone each takes less memory
        if group is not None:
            yield group
            return
        if records:
            _checkpoint(wanted, records).remove()
    for one in wanted:
        job = jobs.pop() if jobs else build(one.spec, one.sources)
        yield _train([one], [job], step_bytes, progress, records)


def _train(
    wanted: Sequence[Wanted], jobs: Sequence[Job], step_bytes: int, progress: TextIO | None, records: Records | None
) -> list[Record]:
    """Train jobs in the same batches, or one alone; return their records.

    Raises:
        FloatingPointError: A loss is not finite, or a training has moved nothing.
    """
    before = [_Before.of(job) for job in jobs]
    cost.forget_peak(jobs[0].device)
    trained = wanted[0].implementation.train(jobs, progress, _checkpoint(wanted, records) if records else None)
    peak = cost.peak_of_run(jobs[0].device)
    return [
        _record(one, job, old, new, peak or step_bytes + cost.weight_bytes(job) + new.optimiser_bytes, len(jobs))
        for one, job, old, new in zip(wanted, jobs, before, trained, strict=True)
    ]


@dataclass(frozen=True)
class _Before:
    """What is measured of a job before it trains.

    Attributes:
        values: Quantity -> value, of those known then.
        vectors: Copies of biases and scales.
        copies: Copies of what the optimiser will update.
    """

    values: dict[str, float]
    vectors: change.Vectors
    copies: change.Copies

    @classmethod
    def of(cls, job: Job) -> Self:
        """Measure a job."""
        return cls(scores.known(job), change.vectors(job.backbone), change.copies(job.backbone))


def _record(one: Wanted, job: Job, before: _Before, trained: Trained, peak_bytes: int, seeds: int) -> Record:
    """Return the record of a job that was trained, beside `seeds` - 1 others in the same batches.

    Raises:
        FloatingPointError: The training has moved nothing.
    """
    change.check(before.copies, job.title)
    predicted = scores.predictions(job)
    made_on = {"device": job.device, "seeds_together": seeds, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    return Record(
        key=one.key,
        spec=one.spec,
        values=before.values | scores.trained(job, predicted),
        ledger=trained.ledger,
        trail=trained.epochs,
        trace=replace(trained.trace, answers=scores.answers(job, predicted)) if not job.secret else None,
        moved=change.moved(before.vectors, job.backbone),
        cost=_speed(trained) | {"peak_bytes": peak_bytes},
        sources=one.hashes,
        environment=environment() | made_on,
    )


def _speed(trained: Trained) -> dict[str, float]:
    """Return the median seconds of an epoch and, if they may be told, examples and tokens per second of all."""
    seconds = sum(epoch.seconds for epoch in trained.epochs)
    epoch = {"epoch_seconds": median(epoch.seconds for epoch in trained.epochs)}
    return (
        epoch
        if trained.secret
        else epoch
        | {
            "examples_per_second": sum(epoch.examples for epoch in trained.epochs) / seconds,
            "tokens_per_second": sum(epoch.tokens for epoch in trained.epochs) / seconds,
        }
    )
