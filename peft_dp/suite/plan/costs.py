"""What a run asks of whichever device trains it: operations, FLOPs, updates and memory, counted on shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from peft_dp import tasks
from peft_dp.privacy.plan import steps_per_epoch
from peft_dp.spec import Optimiser, Privacy, Spec
from peft_dp.suite.plan.counting import Pass, PhaseSize, Shapes, cuts, places
from peft_dp.suite.plan.workload import examples, lengths, mean_length
from peft_dp.training.frozen_prefix import LIMIT


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a run asks of any device.

    Attributes:
        steps: Updates.
        operations: Number of tensors that are made.
        padded: Number of physical batches whose rows are padded, so that many shapes follow one another.
        tokens: Tokens seen in training, padding not counted.
        flops: FLOPs of all matrix products.
        updates: Number of values that the optimiser updates, over all steps.
        trainable: Number of trained values.
        peak_bytes: Bytes that are held at once.
    """

    steps: int
    operations: float
    padded: float
    tokens: float
    flops: float
    updates: float
    trainable: int
    peak_bytes: float


def costs(spec: Spec) -> Costs:
    """Return what a run of a spec asks of any device.

    One logical batch, whose lengths lie evenly over those of the task, stands for all. What one of its places costs
    is counted on a physical batch of about the run's largest size whose examples have one length, the power of four
    nearest to the task's mean: only attention, a few percent of the whole, depends on that length.

    Raises:
        ValueError: A setting that no run can have; the message names it.
    """
    size, mean, private = examples(spec), mean_length(spec.task, spec.max_length), spec.privacy is not None
    per_epoch = steps_per_epoch(size, spec.batch, private=private)
    drawn = per_epoch * spec.batch if private else size  # per epoch, in expectation
    longest = lengths(spec.task, spec.max_length, spec.batch, 1 - spec.batch / size)
    length = _rounded(mean)
    counted = _counted(_canonical(spec), length, _rounded(max(cuts(longest, packs=True)) / length))
    typical = cuts(lengths(spec.task, spec.max_length, spec.batch), counted.packs)
    largest = max(cuts(longest, counted.packs))
    example = sum(typical) / spec.batch / counted.places  # counted batches per example
    fits = 4 * counted.width * size * mean <= LIMIT
    batches = len(typical) / spec.batch  # of the run per example
    reused = 0
    flops = operations = updates = state = 0.0
    for phase, found in counted.phases:
        above, once = phase.epochs * drawn, size * (phase.layers > reused)  # examples
        flops += example * (above * (found.flops - fits * found.low_flops) + once * fits * found.low_flops)
        operations += batches * above * (found.operations - fits * found.low_operations)
        operations += batches * once * fits * found.low_operations
        reused = phase.layers
        updates += phase.epochs * per_epoch * phase.updated
        state = max(state, {"adamw": 8, "sgd": 0}[spec.optimiser.name] * phase.updated)
    first, found = counted.phases[0]
    sums = 4 * first.trained
    return Costs(
        steps=spec.epochs * per_epoch,
        operations=operations,
        padded=spec.epochs * per_epoch * len(typical) * (not counted.packs),
        tokens=spec.epochs * drawn * mean,
        flops=flops,
        updates=updates,
        trainable=counted.trainable,
        peak_bytes=counted.weight_bytes + state + sums + (found.peak - sums) * largest / counted.places,
    )


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What was counted on a backbone with a method, for a physical batch of examples of one length.

    Attributes:
        trainable: Number of trained values.
        weight_bytes: Bytes of the parameters and buffers.
        width: Size of a hidden state.
        packs: Whether several examples share a row.
        places: Number of the batch's places.
        phases: The phases of the run, each with what the batch costs in it.
    """

    trainable: int
    weight_bytes: int
    width: int
    packs: bool
    places: int
    phases: Sequence[tuple[PhaseSize, Pass]]


def _rounded(value: float) -> int:
    """Return the power of four nearest to a value, at least 1, so that few batches stand for many."""
    return int(4 ** round(math.log(max(value, 1.0), 4)))


def _canonical(spec: Spec) -> Spec:
    """Return one spec for all that cost the same per place."""
    task = tasks.find(spec.task)
    alike = (name for name in tasks.names() if (t := tasks.find(name)).outputs == task.outputs and t.kind == task.kind)
    return Spec(
        budget="paper",
        backbone=spec.backbone,
        task=next(alike, spec.task),
        method=spec.method,
        config=spec.config,
        privacy=spec.privacy and Privacy(epsilon=1.0, delta=1e-5),
        optimiser=Optimiser(rate=1.0),
        epochs=spec.epochs,
        batch=1,
        head=spec.head,
        readout=spec.readout,
        dropout=spec.dropout,
        reuse=spec.reuse,
    )


@lru_cache(maxsize=4096)
def _counted(spec: Spec, length: int, count: int) -> Counted:
    """Count for a physical batch of `count` examples of `length` tokens."""
    shapes = Shapes(spec)
    lengths = [length] * count
    return Counted(
        trainable=shapes.trainable,
        weight_bytes=shapes.weight_bytes,
        width=shapes.backbone.width,
        packs=shapes.backbone.packs,
        places=places(lengths, shapes.backbone.packs),
        phases=[(phase, shapes.count(lengths, phase.layers)) for phase in shapes.phases()],
    )
