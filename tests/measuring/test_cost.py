"""Peak memory of a step, as the allocator counts it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from peft_dp import Places, Spec
from peft_dp.measuring import cost
from peft_dp.spec import Privacy
from peft_dp.training.job import Job, build, find_sources

Make = Callable[..., Spec]


@pytest.fixture
def job(spec: Make, places: Places) -> Callable[..., Job]:
    """Builds a job with a batch of 24; arguments replace the spec's fields."""

    def make(**fields: object) -> Job:
        made = spec(**({"batch": 24} | fields))
        return build(made, find_sources(made, places))

    return make


def test_order(job: Callable[..., Job]) -> None:
    """Training less holds fewer activations: all over biases over the head alone."""
    full, bitfit, head = (cost.step_bytes(job(method=method)) for method in ("full", "bitfit", "head"))

    assert full > bitfit > head > 0


def test_grows_with_the_batch(job: Callable[..., Job]) -> None:
    """A step over more examples holds more."""
    assert cost.step_bytes(job(batch=24)) > cost.step_bytes(job(batch=4))


def test_holds_the_gradients(job: Callable[..., Job]) -> None:
    """A step holds at least the gradients of all that trains."""
    made = job(method="full")

    assert cost.step_bytes(made) > sum(parameter.nbytes for parameter in made.backbone.trained().values())


@pytest.mark.parametrize("privacy", [None, Privacy(epsilon=8.0, delta=1e-3, accountant="rdp")])
def test_repeats(job: Callable[..., Job], privacy: Privacy | None) -> None:
    """Two measurements of one job, and one of a job made anew, give the same bytes."""
    made = job(privacy=privacy)
    first, second = cost.step_bytes(made), cost.step_bytes(made)

    assert first == second == cost.step_bytes(job(privacy=privacy))


def test_changes_nothing(job: Callable[..., Job]) -> None:
    """Measuring moves no parameter, leaves no gradient, and draws nothing from the global generator."""
    made = job()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in made.backbone.model.state_dict().items()}
    cost.step_bytes(made)

    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in made.backbone.model.state_dict().items())
    assert all(parameter.grad is None for parameter in made.backbone.model.parameters())


def test_quiet(job: Callable[..., Job], capfd: pytest.CaptureFixture[str]) -> None:
    """Measuring prints nothing."""
    cost.step_bytes(job())

    assert ("", "") == tuple(capfd.readouterr())


def test_weights(job: Callable[..., Job]) -> None:
    """The weights' bytes are four a value, frozen ones and the head included, and the buffers'."""
    model = job(method="head").backbone.model
    buffers = sum(buffer.nbytes for buffer in model.buffers())

    assert 4 * sum(parameter.numel() for parameter in model.parameters()) + buffers == cost.weight_bytes(
        job(method="head")
    )
