"""Quantities that need no training."""

from __future__ import annotations

from collections.abc import Callable

from peft_dp import Places, Spec
from peft_dp.measuring import scores as before
from peft_dp.spec import Privacy
from peft_dp.training.job import build, gather

Make = Callable[..., Spec]


def test_quantities(spec: Make, places: Places) -> None:
    """Trained values are counted with the head; steps and noise are the plan's."""
    run = spec(method="head", task="inference", privacy=Privacy(epsilon=8.0, delta=1e-3, accountant="rdp"))
    job = build(run, gather(run, places))

    assert (17 * 3, 2 * 3, job.plan.noise_multiplier) == (
        before.trainable(job),
        before.steps(job),
        before.noise_multiplier(job),
    )
