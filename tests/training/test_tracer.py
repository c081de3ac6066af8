"""The trace of a run: what it holds, that it repeats, and that two faults part where they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import nan
from typing import Any

import pytest
import torch

from peft_dp import Places, Spec
from peft_dp.spec import Optimiser, Privacy
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit, fit_together
from peft_dp.training.tracer import ROW, STEPS, sketch

Make = Callable[..., Spec]

PRIVACY = Privacy(epsilon=8.0, delta=1e-3, accountant="rdp")
DIFF = {"gated_epochs": 1}


@pytest.fixture
def job(spec: Make, places: Places) -> Callable[..., Job]:
    """Builds a job; arguments replace the spec's fields."""

    def make(**fields: object) -> Job:
        return build(spec(**fields), find_sources(spec(**fields), places))

    return make


def test_sketch() -> None:
    """The norm, and the sum with signs that alternate over all values; None where one is not finite."""
    assert sketch([torch.tensor([3.0, 4.0])]) == pytest.approx((5.0, -1.0))
    assert sketch([torch.tensor([1.0]), torch.tensor([[2.0, 3.0]])]) == pytest.approx((14**0.5, -2.0))
    assert sketch([torch.zeros(0)]) == (0.0, 0.0)
    assert sketch([torch.tensor([nan])]) is None
    long = torch.linspace(1, 2, 3 * ROW + 5, dtype=torch.float64)
    signed = float(long[::2].sum() - long[1::2].sum())
    assert sketch([long]) == pytest.approx((float(long.norm()), signed), rel=1e-12)


def test_repeats(job: Callable[..., Job]) -> None:
    """Two runs of a seed have one trace, and those of two seeds share nothing."""
    one, again, other = (fit(job(seed=seed)).trace for seed in (0, 0, 1))

    assert one == again
    assert one.order != other.order
    assert one.initial != other.initial
    assert not set(one.streams.values()) & set(other.streams.values())
    assert len(one.steps) == STEPS


@pytest.mark.parametrize(
    ("fields", "streams"),
    [
        ({"dropout": False}, {"initialisation", "batches"}),
        ({"dropout": True}, {"initialisation", "batches", "dropout"}),
        ({"dropout": False, "privacy": PRIVACY}, {"initialisation", "batches", "noise"}),
        ({"dropout": False, "method": "diff_pruning", "config": DIFF}, {"initialisation", "batches", "gates"}),
    ],
)
def test_streams(job: Callable[..., Job], fields: dict[str, Any], streams: set[str]) -> None:
    """A run names the streams that it draws from, and no other."""
    assert streams == fit(job(epochs=2, **fields)).trace.streams.keys()


def test_plain_step(job: Callable[..., Job]) -> None:
    """Without privacy a step has neither norms nor a released sum; its mean gradient is the sum over the batch."""
    trace = fit(job(dropout=False)).trace
    step = trace.steps[0]

    assert (None, None, None) == (step.norms, step.clipped, step.released)
    assert step.summed
    assert step.given
    assert step.given[0] == pytest.approx(step.summed[0] / 8)
    assert step.loss == pytest.approx(0.69, abs=0.05)


def test_private_step(job: Callable[..., Job]) -> None:
    """A private step has the norms before clipping, the clipped sum, and the sum with its noise."""
    made = job(dropout=False, privacy=PRIVACY)
    still = replace(made, plan=replace(made.plan, noise_multiplier=0.0, clip=1e9))
    step, free = fit(made).trace.steps[0], fit(still).trace.steps[0]

    assert step.summed
    assert step.released
    assert abs(step.released[0] - step.summed[0]) > 0.1
    assert free.summed == free.released
    assert free.clipped == 0
    assert free.norms


def test_update(job: Callable[..., Job]) -> None:
    """The update is that of the optimiser: under plain SGD the rate times the gradient, where that is felt."""
    rate = 0.1
    step = fit(job(dropout=False, optimiser=Optimiser(name="sgd", rate=rate, schedule="constant"))).trace.steps[0]

    assert step.update
    assert step.given
    assert step.update[0] == pytest.approx(rate * step.given[0], rel=1e-3)


def test_together(job: Callable[..., Job]) -> None:
    """A seed that trains beside another has the trace that it has alone, but for rounding."""
    fields: dict[str, Any] = {"method": "lora", "config": {"rank": 2, "alpha": 4.0}, "dropout": False}
    alone = fit(job(**fields)).trace
    together = fit_together([job(seed=seed, **fields) for seed in (0, 1)])[0].trace

    assert (alone.order, alone.initial, alone.streams) == (together.order, together.initial, together.streams)
    for mine, theirs in zip(alone.steps, together.steps, strict=True):
        assert (mine.batch, mine.tokens) == (theirs.batch, theirs.tokens)
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert mine.summed
        assert mine.summed[0] == pytest.approx((theirs.summed or (0.0, 0.0))[0], rel=1e-4)
