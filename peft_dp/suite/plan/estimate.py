"""What runs will cost, before any is made: steps, tokens, FLOPs, memory and time of cells on a device.

Steps come from the plan's own formula, FLOPs and parameters from the engine itself run on shapes (`counting`), lengths
of sentences from the task, so that no data is read. Time is fitted to records of the same device if there are
any, or else follows from its peak rate and an assumed share of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import NormalDist, median
from typing import TYPE_CHECKING

from peft_dp import tasks, validate
from peft_dp.privacy.plan import steps_per_epoch
from peft_dp.records import Record
from peft_dp.spec import Optimiser, Privacy, Spec
from peft_dp.suite import papers
from peft_dp.suite.papers.cell import Cell

if TYPE_CHECKING:
    from peft_dp.suite.plan.counting import Pass, Phase

VALUES = {
    "minilm": 10.6e6,
    "distilbert": 42.5e6,
    "bert": 84.9e6,
    "roberta": 84.9e6,
    "bert_large": 302.0e6,
    "roberta_large": 302.0e6,
}
"""Backbone -> values in the linear weights of its layers, 4 d^2 + 2 d f each; to order cells without torch."""

SHARES = {"full": 1.5, "diff_pruning": 1.5, "gradual": 0.6, "head": 0.25}
"""Method -> its FLOPs over those of a forward and a backward pass without gradients of weights, if not about 1."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a device can do at most.

    Attributes:
        fp32: FLOP a second in float32 without tensor cores, as torch multiplies unless told otherwise.
        bf16: Likewise in bfloat16, without sparsity.
        memory: Bytes.
    """

    fp32: float
    bf16: float
    memory: float


GPUS = {
    "A100": Device(fp32=19.5e12, bf16=312e12, memory=80e9),  # NVIDIA A100 80GB datasheet, 2021
    "H100": Device(fp32=67e12, bf16=989e12, memory=80e9),  # NVIDIA H100 SXM datasheet, 2023
    "H200": Device(fp32=67e12, bf16=989e12, memory=141e9),  # NVIDIA H200 SXM datasheet, 2024
    "RTX8000": Device(fp32=16.3e12, bf16=16.3e12, memory=48e9),  # NVIDIA Quadro RTX 8000 datasheet; has no bfloat16
}
"""Part of a GPU's name, as records have it but for spaces -> what it can do."""

CPU = "cpu"
"""The name of this machine's processor, with the threads that torch has now."""

CORE = (150e9, 600e9)
"""Of one thread on it, assumed: FLOP a second in float32 (two 512-bit units at 2.4 GHz) and in bfloat16."""

UTILISATION = 0.35
"""Share of a device's peak that runs are taken to reach where nothing was measured."""

OPERATION = 10e-6
"""Seconds that starting one operation from Python takes, likewise; small batches on a GPU wait for little else."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a cell will cost; of one run, but for `seconds`.

    Attributes:
        cell: The cell.
        seeds: Its runs.
        steps: Updates.
        tokens: Tokens seen in training, padding not counted.
        flops: Floating-point operations of all matrix products in training.
        trainable: Trained values.
        peak_bytes: As `measuring.cost` counts it.
        seconds: Of training, all runs one after another.
    """

    cell: Cell
    seeds: int
    steps: int
    tokens: float
    flops: float
    trainable: int
    peak_bytes: float
    seconds: float


def examples(spec: Spec) -> int:
    """Number of training examples."""
    return tasks.find(spec.task).train if spec.train is None else spec.train


def tokens(spec: Spec) -> float:
    """Tokens that a run sees in training, in expectation."""
    return spec.epochs * examples(spec) * _mean(spec.task, spec.max_length)


@cache
def _mean(task: str, most: int) -> float:
    drawn = _quantiles(task, most, 256)
    return sum(drawn) / len(drawn)


def work(cell: Cell) -> float:
    """FLOPs of one run, to leading order: those of the linear layers, no torch needed; to put cells in order."""
    spec = cell.spec
    values = VALUES.get(spec.backbone, max(VALUES.values()))
    return 4 * values * SHARES.get(spec.method, 1.0) * tokens(spec)


def _quantiles(task: str, most: int, count: int, first: float = 0.0) -> list[int]:
    """Lengths of that many examples, evenly over the distribution from `first` on; cut at `most` tokens."""
    known = tasks.find(task)
    mean, deviation = known.tokens, known.log_deviation
    places = (first + (1 - first) * (i + 0.5) / count for i in range(count))
    heights = (NormalDist().inv_cdf(place) for place in places)
    return [min(most, max(3, round(mean * math.exp(deviation * height - deviation**2 / 2)))) for height in heights]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a run asks of a device, whichever it is.

    Attributes:
        steps: Updates.
        operations: Tensors that are made.
        padded: Physical batches whose rows are padded, so that many shapes follow one another.
        tokens: As in `Estimate`, like the rest.
        flops: Of all matrix products.
        updates: Values updated, over all steps.
        trainable: Trained values.
        peak_bytes: Bytes held at once.
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
    """What a run of a spec asks of a device.

    A logical batch whose examples are spread evenly over the task's lengths stands for all, as its places do. What a
    place costs is counted on a physical batch of about the run's largest size, with examples of one length, the power
    of four next to the task's mean: only attention, a few percent of all, depends on it.

    Raises:
        ValueError: A setting that no run can have; the message names it.
    """
    from peft_dp.suite.plan.counting import cuts
    from peft_dp.training.frozen_prefix import LIMIT

    size, mean, private = examples(spec), _mean(spec.task, spec.max_length), spec.privacy is not None
    per_epoch = steps_per_epoch(size, spec.batch, private=private)
    drawn = per_epoch * spec.batch if private else size  # an epoch, in expectation
    longest = _quantiles(spec.task, spec.max_length, spec.batch, 1 - spec.batch / size)
    length = _rounded(mean)
    counted = _counted(_canonical(spec), length, _rounded(max(cuts(longest, packs=True)) / length))
    typical = cuts(_quantiles(spec.task, spec.max_length, spec.batch), counted.packs)
    largest = max(cuts(longest, counted.packs))
    example = sum(typical) / spec.batch / counted.places  # counted batches to an example
    fits = 4 * counted.width * size * mean <= LIMIT
    batches = len(typical) / spec.batch  # of the run to an example
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
    """What was counted of a backbone with a method, on a physical batch of examples of one length.

    Attributes:
        trainable: Trained values.
        weight_bytes: Of parameters and buffers.
        width: Size of a hidden state.
        packs: Whether several examples share a row.
        places: Of the batch.
        phases: The run's, each with what the batch costs in it.
    """

    trainable: int
    weight_bytes: int
    width: int
    packs: bool
    places: int
    phases: Sequence[tuple[Phase, Pass]]


def _rounded(value: float) -> int:
    """The power of four next to a value of at least 1, so that few batches stand for many."""
    return int(4 ** round(math.log(max(value, 1.0), 4)))


def _canonical(spec: Spec) -> Spec:
    """One spec for all that cost the same a place."""
    task = tasks.find(spec.task)
    alike = (name for name in tasks.names() if (t := tasks.find(name)).outputs == task.outputs and t.kind == task.kind)
    return Spec(
        budget="paper",
        backbone=spec.backbone,
        task=next(alike),
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
    from peft_dp.suite.plan.counting import Shapes, places

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


def timed(records: Sequence[Record], device: str) -> list[tuple[Spec, float]]:
    """Specs of cells and the seconds that each took to train on the device, of the records that can tell.

    These were made on a GPU of that name, or on this machine's processor with as many threads as now; not beside
    other runs (`side_by_side`), nor with other seeds in the same batches, which share one forward pass.
    """
    from peft_dp.measuring.environment import environment

    here = environment()
    known = {cell.spec.digest for cell in papers.cells()}

    def tells(record: Record) -> bool:
        there = record.environment
        same = (
            all(there.get(name) == here[name] for name in ("cpu", "threads")) and there.get("device") == CPU
            if device == CPU
            else device in str(there.get("gpu")).replace(" ", "")
        )
        alone = there.get("side_by_side", 1) == there.get("seeds_together", 1) == 1
        return same and alone and record.spec.seeded(0).digest in known

    return [
        (record.spec.seeded(0), sum(epoch.seconds for epoch in record.trail)) for record in records if tells(record)
    ]


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How long a device takes, in seconds per unit of what a run asks of it.

    Attributes:
        rates: Seconds a run, a step, an operation, a padded physical batch, a FLOP and an updated value; at least 0.
        records: How many it was fitted to; 0 where it was assumed.
        error: Median error of predictions for a cell whose records were left out, as a share; None for fewer than two.
    """

    rates: Sequence[float]
    records: int = 0
    error: float | None = None

    def seconds(self, cost: Costs) -> float:
        """Of training a run."""
        return sum(rate * amount for rate, amount in zip(self.rates, _amounts(cost), strict=True))


def _amounts(cost: Costs) -> tuple[float, ...]:
    return 1.0, cost.steps, cost.operations, cost.padded, cost.flops, cost.updates


def clock(found: Sequence[tuple[Costs, float]], peak: float) -> Clock:
    """The clock of a device from measured runs, or from its peak rate in FLOP a second if there are none.

    Relative errors are made small, by non-negative least squares.
    """
    if not found:
        return Clock(rates=(0.0, 0.0, OPERATION, 0.0, 1 / (UTILISATION * peak), 0.0))
    errors = []
    for left in {cost for cost, _ in found}:
        rest = [(cost, seconds) for cost, seconds in found if cost != left]
        if rest:
            predicted = Clock(rates=_fitted(rest)).seconds(left)
            errors.append(abs(predicted / median(seconds for cost, seconds in found if cost == left) - 1))
    return Clock(rates=_fitted(found), records=len(found), error=median(errors) if errors else None)


def _fitted(found: Sequence[tuple[Costs, float]]) -> list[float]:
    import numpy as np
    from scipy.optimize import nnls

    rows = np.array([_amounts(cost) for cost, _ in found]) / np.array([[seconds] for _, seconds in found])
    scale = rows.max(axis=0) + np.finfo(float).tiny
    rates: list[float] = (nnls(rows / scale, np.ones(len(rows)))[0] / scale).tolist()
    return rates


def estimates(
    cells: Sequence[Cell], *, device: str, records: Sequence[Record] = (), seeds: int | None = None
) -> list[Estimate]:
    """What cells will cost on a device, in their order.

    Args:
        cells: Which.
        device: One of `GPUS`, or `CPU`.
        records: Runs that tell how fast the device is, see `timed`.
        seeds: Runs of each cell; None for as many as its table asks for.

    Raises:
        ValueError: An unknown device, or a setting that no run can have.
    """
    clocks = calibrated(device, records)
    return [estimate(cell, clocks, seeds) for cell in cells]


def estimate(cell: Cell, clocks: Mapping[str, Clock], seeds: int | None = None) -> Estimate:
    """What a cell will cost by the clocks of a device, see `calibrated`."""
    try:
        cost = costs(cell.spec)
    except (TypeError, ValueError) as error:  # a method's `Config` says either
        raise ValueError(f"{cell.id}: {error}") from None
    runs = seeds or cell.table.seeds
    return Estimate(
        cell=cell,
        seeds=runs,
        steps=cost.steps,
        tokens=cost.tokens,
        flops=cost.flops,
        trainable=cost.trainable,
        peak_bytes=cost.peak_bytes,
        seconds=runs * clocks[cell.spec.precision].seconds(cost),
    )


def calibrated(device: str, records: Sequence[Record]) -> dict[str, Clock]:
    """Precision -> the clock of a device, fitted to those of the records that have it.

    Raises:
        ValueError: An unknown device.
    """
    can = limits(device)
    found = timed(records, device)
    return {
        precision: clock([(costs(spec), seconds) for spec, seconds in found if spec.precision == precision], peak)
        for precision, peak in (("fp32", can.fp32), ("bf16", can.bf16))
    }


def limits(name: str) -> Device:
    """What a device can do at most; of this machine's processor, assumed.

    Raises:
        ValueError: An unknown device.
    """
    if name == CPU:
        import torch

        threads = torch.get_num_threads()
        return Device(fp32=threads * CORE[0], bf16=threads * CORE[1], memory=_memory())
    validate.known("device", name, [CPU, *GPUS])
    return GPUS[name]


def _memory() -> float:
    """Bytes of this machine's memory; without a limit where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf
