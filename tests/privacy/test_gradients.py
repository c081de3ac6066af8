"""Tests of the privacy engine: its gradients against a loop of single examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from peft_dp import Places, Spec, registry
from peft_dp.job import Job, build, gather
from peft_dp.privacy.gradients import clipped_sum, per_example_gradients

Make = Callable[..., Spec]
METHODS = registry.names("methods")
TASKS = ("sentiment", "inference", "similarity")


def made(spec: Spec, places: Places) -> Job:
    """The job of a spec in float64, its trained values moved off their start."""
    job = build(spec, gather(spec, places))
    job.backbone.model.double().train()
    if spec.task == "similarity":
        object.__setattr__(job.train, "labels", job.train.labels.double())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in job.backbone.trained().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return job


def loop(job: Job, indices: list[int]) -> Tensor:
    """Gradients [B, P] of examples passed one at a time, unpadded."""
    trained = job.backbone.trained()
    rows = []
    for index in indices:
        batch = job.train.batch([index], "cpu")
        found = torch.autograd.grad(job.loss(job.backbone.logits(batch), batch.labels).sum(), list(trained.values()))
        masks = job.backbone.masks
        rows.append(
            torch.cat([(g * masks[n] if n in masks else g).flatten() for n, g in zip(trained, found, strict=True)])
        )
    return torch.stack(rows)


def flat(sums: dict[str, Tensor]) -> Tensor:
    """The tensors of a sum in a row."""
    return torch.cat([value.flatten() for value in sums.values()])


def example(method: str) -> dict[str, object]:
    """A small valid config of a method, as a JSON file would hold it."""
    config: dict[str, object] = json.loads(json.dumps(asdict(registry.load("methods", method).EXAMPLE)))
    return config


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("head", ["linear", "stock"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_loop(spec: Make, places: Places, method: str, head: str, task: str) -> None:
    """Per-example gradients and norms equal those of examples passed one at a time, padding and pairs included."""
    job = made(spec(method=method, config=example(method), head=head, task=task, dropout=False), places)
    indices = list(range(6))
    expected = loop(job, indices)
    batch = job.train.batch(indices, "cpu")

    torch.testing.assert_close(per_example_gradients(job, batch), expected, rtol=0, atol=1e-12)
    norms = clipped_sum(job, batch, 1.0).norms
    torch.testing.assert_close(norms, expected.norm(dim=1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("clip", [1e-3, 1.0, float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_clipped_sum(spec: Make, places: Places, method: str, clip: float) -> None:
    """The clipped sum equals the loop's, however the logical batch is cut."""
    job = made(spec(method=method, config=example(method), dropout=False), places)
    indices = list(range(8))
    each = loop(job, indices)
    expected = (clip / each.norm(dim=1)).clamp(max=1.0) @ each
    for tokens in (30, 60, 1000):
        cuts = job.train.cut(indices, tokens)
        parts = [clipped_sum(job, job.train.batch(cut, "cpu"), clip).sums for cut in cuts]
        torch.testing.assert_close(sum(map(flat, parts)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_sensitivity(spec: Make, places: Places, method: str) -> None:
    """Removing any one example changes the clipped sum by at most the clip."""
    job = made(spec(method=method, config=example(method), dropout=False), places)
    indices = list(range(8))
    whole = flat(clipped_sum(job, job.train.batch(indices, "cpu"), 0.1).sums)
    for left_out in indices:
        rest = [index for index in indices if index != left_out]
        without = flat(clipped_sum(job, job.train.batch(rest, "cpu"), 0.1).sums)
        assert (whole - without).norm() <= 0.1 * (1 + 1e-9)
