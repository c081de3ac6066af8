"""The story on one screen: spec in, record out."""

from __future__ import annotations

from statistics import median
from typing import Any, TextIO

from peft_dp.job import Job, Sources, build, code_sha256, gather
from peft_dp.measuring import after, before, cost
from peft_dp.measuring.environment import environment, versions
from peft_dp.places import Places
from peft_dp.privacy import plan
from peft_dp.records import Record, Records, key
from peft_dp.spec import Spec
from peft_dp.training.batching import TOKENS
from peft_dp.training.loop import Trained, fit


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
    sources = gather(spec, places or Places())
    hashes = {"data": sources.data.sha256, "weights": sources.weights_sha256, "code": code_sha256()}
    name = key(spec, hashes, versions(), sources.device)
    if records and (found := records.load(spec, name)):
        return found
    record = reproduce(spec, sources, name, hashes, progress)
    if records:
        records.save(record)
    return record


def reproduce(spec: Spec, sources: Sources, name: str, hashes: dict[str, str], progress: TextIO | None) -> Record:
    """Builds the job, trains it and measures before and after."""
    job = build(spec, sources)
    values = {quantity: getattr(before, quantity)(job) for quantity in before.__all__}
    step_bytes = cost.step_bytes(job)
    trained = fit(job, progress)
    predicted = after.predictions(job)
    values |= {quantity: getattr(after, quantity)(job, predicted) for quantity in after.__all__}
    return Record(
        key=name,
        spec=spec,
        values=values,
        ledger=ledger(job, trained) if job.plan.private else None,
        trail=trained.epochs,
        cost=costs(trained) | {"peak_bytes": cost.weight_bytes(job) + trained.optimiser_bytes + step_bytes},
        sources=hashes,
        environment=environment() | {"device": sources.device},
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
