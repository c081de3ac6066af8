"""How long a device takes: rates fitted to records of the same device, or assumed shares of its peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from peft_dp.records import Record
from peft_dp.spec import Spec
from peft_dp.suite import papers
from peft_dp.suite.plan.costs import Costs, costs
from peft_dp.suite.plan.devices import CPU, limits

UTILISATION = 0.35
"""Share of a device's peak rate that runs are assumed to reach where nothing was measured."""

OPERATION = 10e-6
"""Seconds that starting one operation from Python is assumed to take; small batches on a GPU wait for little else."""


def timed(records: Sequence[Record], device: str) -> list[tuple[Spec, float]]:
    """Return the specs of those records that tell how fast the device is, each with its seconds of training.

    Such a record is of a known cell and was made on a GPU of that name, or on this machine's processor with as many
    threads as now. It was not made beside other runs (`side_by_side`), nor with other seeds in the same batches,
    which share one forward pass.
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
        rates: Seconds per run, step, operation, padded physical batch, FLOP and updated value; at least 0 each.
        records: Number of records that it was fitted to; 0 where it was assumed.
        error: Median relative error of predictions for a cell whose records were left out; None for fewer than two.
    """

    rates: Sequence[float]
    records: int = 0
    error: float | None = None

    def seconds(self, cost: Costs) -> float:
        """Return the seconds of training a run."""
        return sum(rate * amount for rate, amount in zip(self.rates, _amounts(cost), strict=True))


def _amounts(cost: Costs) -> tuple[float, ...]:
    return 1.0, cost.steps, cost.operations, cost.padded, cost.flops, cost.updates


def clock(found: Sequence[tuple[Costs, float]], peak: float) -> Clock:
    """Return the clock of a device from measured runs, or from its peak rate in FLOP per second if there are none.

    The rates minimise the relative errors by non-negative least squares.
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


def calibrated(device: str, records: Sequence[Record]) -> dict[str, Clock]:
    """Return the clock of a device for each precision, fitted to the records of that precision.

    Raises:
        ValueError: An unknown device.
    """
    can = limits(device)
    found = timed(records, device)
    return {
        precision: clock([(costs(spec), seconds) for spec, seconds in found if spec.precision == precision], peak)
        for precision, peak in (("fp32", can.fp32), ("bf16", can.bf16))
    }
