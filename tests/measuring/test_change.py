"""How far biases and scales move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from peft_dp import Places, Spec
from peft_dp.measuring.change import moved, vectors
from peft_dp.spec import Optimiser
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit

Make = Callable[..., Spec]


@pytest.fixture
def make(spec: Make, places: Places) -> Callable[..., Job]:
    """A job of the tiny backbone."""

    def built(**fields: object) -> Job:
        run = spec(optimiser=Optimiser(rate=0.01), **fields)
        return build(run, find_sources(run, places))

    return built


def test_terms(make: Callable[..., Job]) -> None:
    """The eight biases and the two scales of a layer are found, in each layer, and at first nothing has moved."""
    backbone = make(method="bitfit").backbone
    start = vectors(backbone)
    biases = {f"{role}.bias" for role in backbone.family.sites}
    assert start.keys() == biases | {"attention_norm.weight", "output_norm.weight"}
    assert {len(held) for held in start.values()} == {len(backbone.layers)}
    assert moved(start, backbone) == {}


def test_change(make: Callable[..., Job]) -> None:
    """The figure is the mean absolute change of the layer's vector."""
    backbone = make(method="bitfit").backbone
    start = vectors(backbone)
    bias = backbone.sites("query")[1].get_parameter("bias")
    with torch.no_grad():
        bias[0] += 0.5
        bias[1] -= 0.25
    zeros = [0.0] * len(backbone.layers)
    zeros[1] = 0.75 / len(bias)
    assert moved(start, backbone) == {"query.bias": pytest.approx(zeros)}


def test_trained_only(make: Callable[..., Job]) -> None:
    """A training moves the terms that it trains, and no others."""
    job = make(method="bitfit", config={"biases": ["query", "intermediate"]})
    start = vectors(job.backbone)
    fit(job)
    assert moved(start, job.backbone).keys() == {"query.bias", "intermediate.bias"}
