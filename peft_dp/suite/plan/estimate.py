"""What cells will cost before any of them runs: steps, tokens, FLOPs, memory, and time on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peft_dp.records import Record
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.plan.clock import Clock, calibrated
from peft_dp.suite.plan.costs import costs


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a cell will cost: one run, except that `seconds` are those of all its runs.

    Attributes:
        cell: The cell.
        seeds: Number of its runs.
        steps: Number of updates.
        tokens: Tokens seen in training, padding not counted.
        flops: Floating-point operations of all matrix products in training.
        trainable: Number of trained values.
        peak_bytes: Bytes that are held at once, as `measuring.cost` counts them.
        seconds: Seconds of training, all runs one after another.
    """

    cell: Cell
    seeds: int
    steps: int
    tokens: float
    flops: float
    trainable: int
    peak_bytes: float
    seconds: float


def estimates(
    cells: Sequence[Cell], *, device: str, records: Sequence[Record] = (), seeds: int | None = None
) -> list[Estimate]:
    """Return what cells will cost on a device, in their order.

    Args:
        cells: The cells.
        device: One of `GPUS`, or `CPU`.
        records: Records of which some may tell how fast the device is, see `timed`.
        seeds: Runs per cell; None for as many as its table asks for.

    Raises:
        ValueError: An unknown device, or a setting that no run can have.
    """
    clocks = calibrated(device, records)
    return [estimate(cell, clocks, seeds) for cell in cells]


def estimate(cell: Cell, clocks: Mapping[str, Clock], seeds: int | None = None) -> Estimate:
    """Return what a cell will cost by the clocks of a device, see `calibrated`.

    Raises:
        ValueError: A setting that no run can have.
    """
    try:
        cost = costs(cell.spec)
    except ValueError as error:
        raise ValueError(f"{cell.id}: {error}") from None
    runs = seeds or cell.seeds
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
