"""The clock of a device: fitted, assumed, and of which records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peft_dp import Record
from peft_dp.suite import papers
from peft_dp.suite.plan.clock import OPERATION, UTILISATION, clock, timed
from peft_dp.suite.plan.costs import Costs
from peft_dp.suite.plan.devices import CPU


def made_costs(**fields: float) -> Costs:
    """What a run asks for, all of one step but for the fields."""
    names = ("steps", "operations", "padded", "tokens", "flops", "updates", "trainable", "peak_bytes")
    values: dict[str, Any] = dict.fromkeys(names, 1) | fields
    return Costs(**values)


def test_clock() -> None:
    """Fitted to runs, it gives back the rates that made them, and predicts a run that was left out."""
    runs = [
        made_costs(steps=steps, operations=operations, padded=operations % 3, flops=flops, updates=steps * values)
        for steps, operations in ((8, 9), (20, 50), (90, 100))
        for flops, values in ((1e12, 1e3), (4e12, 2e7), (9e12, 3e5))
    ]
    rates = (0.5, 0.01, 0.02, 0.005, 4e-12, 1e-8)

    def seconds(run: Costs) -> float:
        amounts = (1, run.steps, run.operations, run.padded, run.flops, run.updates)
        return sum(rate * amount for rate, amount in zip(rates, amounts, strict=True))

    found = clock([(run, seconds(run)) for run in runs], 1e12)

    assert found.records == 9
    assert found.error == pytest.approx(0, abs=1e-6)
    assert [found.seconds(run) for run in runs] == pytest.approx([seconds(run) for run in runs])


def test_clock_without_records() -> None:
    """Without records FLOPs take their time at a share of the peak, operations theirs, and the error is not known."""
    found = clock([], 2e12)

    assert found.records == 0
    assert found.error is None
    assert found.seconds(made_costs(flops=4e12, operations=7)) == pytest.approx(2 / UTILISATION + 7 * OPERATION)


def test_timed(record: Callable[..., Record]) -> None:
    """Records count that were made here, alone, of a cell; those of a GPU by its name."""
    gpu = {"device": "cuda", "gpu": "Quadro RTX 8000"}
    others = [
        record(cpu="another"),
        record(threads=99),
        record(side_by_side=2),
        record(seeds_together=5),
        replace(record(), spec=replace(record().spec, batch=7)),
        record(**gpu),
    ]
    spec = papers.find("embedded/smoke/head/sentiment").spec

    assert timed([record(), record(seed=3), *others], CPU) == [(spec, 12.0)] * 2
    assert timed([record(), *others], "RTX8000") == [(spec, 12.0)]
    assert timed([record(), *others], "A100") == []
