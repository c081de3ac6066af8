"""Several seeds in one batch: a step of 8 sentences leaves a machine idle that one of 40 keeps busy.

The seeds of a run share the frozen model. Their batches are laid into one physical batch; what is a
seed's own (its branches, biases, scales, head) computes that seed's tokens only. Each seed has its own order of
batches, gradient, clip, schedule and optimiser, as if it were alone: its values are the same but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional

from peft_dp import rng
from peft_dp.models import packing
from peft_dp.models.batch import Batch
from peft_dp.privacy import sampling
from peft_dp.privacy.gradients import zeros
from peft_dp.training.frozen_prefix import frozen
from peft_dp.training.job import Job
from peft_dp.training.loop import Phase, Tally, Trained, finite, progress_bar
from peft_dp.training.trail import Epoch

SHARE = 0.1
"""Largest share of a model's values that may train for seeds to go together; with more there is little to share."""


def possible(job: Job) -> bool:
    """Whether seeds of the job can train together, to the same results, and gain by it.

    Not with privacy, whose batches are large; not with dropout, whose draws follow the batch; not where a method has
    phases, steps or masks of its own, or layers are frozen, whose outputs each seed computes once; not where
    an example cannot share rows.
    """
    hooks = ("phases", "begin_step", "penalty", "release")
    own = job.backbone.masks or any(hasattr(job.method, hook) for hook in hooks)
    few = job.backbone.count() <= SHARE * sum(p.numel() for p in job.backbone.model.parameters())
    reuses = job.spec.reuse and frozen(job.backbone) > 0
    return not (job.plan.private or job.spec.dropout or own or reuses) and few and job.packed


def sharing(first: Job, other: Job) -> Job:
    """The other job with the first one's frozen values in place of its own, which are the same."""
    mine = {name: p for name, p in first.backbone.model.named_parameters() if not p.requires_grad}
    for path, module in other.backbone.model.named_modules():
        for name, parameter in list(module.named_parameters(path, recurse=False)):
            if not parameter.requires_grad:
                setattr(module, name.rpartition(".")[2], mine[name])
    return other


def fit(jobs: Sequence[Job], progress: TextIO | None = None) -> list[Trained]:
    """Trains jobs in place that differ in their seeds only, with seconds of the epochs shared out evenly.

    Args:
        jobs: One a seed.
        progress: As in `loop.fit`.

    Raises:
        FloatingPointError: As `loop.fit`, of the first seed whose loss is not finite.
    """
    orders = [rng.generator(job.spec.seed, "batches") for job in jobs]
    trails: list[list[Epoch]] = [[] for _ in jobs]
    phases = [Phase(job, 0) for job in jobs]
    jobs[0].backbone.model.train()
    bar = progress_bar(jobs[0], f"{len(jobs)} seeds together", progress)
    with bar, _joined(jobs) as whose:
        for _ in range(jobs[0].spec.epochs):
            start = time.perf_counter()
            tallies = [Tally(job.device) for job in jobs]
            for drawn in zip(*(sampling.epoch(j.plan, o) for j, o in zip(jobs, orders, strict=True)), strict=True):
                for phase, gradient in zip(phases, _means(jobs, drawn, whose, tallies), strict=True):
                    phase.step(gradient)
                bar.update()
            for job, tally, trail in zip(jobs, tallies, trails, strict=True):
                trail.append(tally.epoch(job, start, len(jobs)))
                finite(job, trail)
    return [Trained(trail, phase.close()) for trail, phase in zip(trails, phases, strict=True)]


def _means(
    jobs: Sequence[Job], drawn: Sequence[list[int]], whose: _Whose, tallies: Sequence[Tally]
) -> list[dict[str, Tensor]]:
    """Each seed's mean gradient over its batch."""
    trained = [job.backbone.trained() for job in jobs]
    sums = [zeros(job.backbone.model) for job in jobs]
    for cuts in zip_longest(*(job.cut(job.train, b) for job, b in zip(jobs, drawn, strict=True)), fillvalue=[]):
        sizes = [len(cut) for cut in cuts]
        batch = jobs[0].train.packed([i for cut in cuts for i in cut], jobs[0].device)
        whose.take(batch, sizes)
        losses = torch.split(jobs[0].losses(batch), sizes)
        every = [p for named in trained for p in named.values()]
        gradients = iter(torch.autograd.grad(torch.cat(losses).sum(), every))
        for total, job, cut, each, tally in zip(sums, jobs, cuts, losses, tallies, strict=True):
            for name in total:
                total[name] += next(gradients)
            tally.add(job.train.count(cut), each.detach(), each.new_empty(0))
    for tally in tallies:
        tally.steps += 1
    return [
        {name: value / len(indices) for name, value in total.items()}
        for total, indices in zip(sums, drawn, strict=True)
    ]


class _Whose:
    """Which seed each token, or each example, of what passes through the model belongs to."""

    def __init__(self, seeds: int) -> None:
        self._count = seeds

    def take(self, batch: Batch, sizes: Sequence[int]) -> None:
        """Takes the next batch, of so many examples of each seed."""
        assert batch.packing
        self._examples = torch.arange(self._count).repeat_interleave(torch.tensor(sizes)).to(batch.ids.device)
        self._tokens = batch.packing.to_tokens(self._examples).flatten()
        self._order = self._tokens.argsort(stable=True)
        self._back = self._order.argsort()
        self._shares = [torch.bincount(of, minlength=self._count).tolist() for of in (self._examples, self._tokens)]

    def spread(self, vectors: Tensor, x: Tensor) -> Tensor:
        """Each seed's vector [S, h] at its tokens or examples, in a shape to go with x."""
        if packing.of(x) is None:
            return vectors.index_select(0, self._examples).view(len(x), *[1] * (x.dim() - 2), -1)
        return vectors.index_select(0, self._tokens).view(*x.shape[:2], -1)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """What is each seed's of x, its tokens in one row [1, N, h] or its examples."""
        if packing.of(x) is None:
            return torch.split(x, self._shares[0])
        return torch.split(x.flatten(0, 1).index_select(0, self._order)[None], self._shares[1], dim=1)

    def join(self, parts: Sequence[Tensor], x: Tensor) -> Tensor:
        """The parts that a module made of those of x, each where it belongs."""
        if packing.of(x) is None:
            return torch.cat(list(parts))
        whole = torch.cat(list(parts), dim=1)[0]
        return whole.index_select(0, self._back).view(*x.shape[:2], *whole.shape[1:])


@contextmanager
def _joined(jobs: Sequence[Job]) -> Iterator[_Whose]:
    """Has the first job's model compute each seed's tokens with what is that seed's own."""
    whose = _Whose(len(jobs))
    models = [dict(job.backbone.model.named_modules()) for job in jobs]
    branches = {id(branch) for branch in jobs[0].backbone.branches}
    changed: dict[str, nn.Module] = {}
    try:
        for path, module in models[0].items():
            if any(path.startswith(f"{above}.") for above in changed):
                continue
            trained = any(p.requires_grad for p in module.parameters(recurse=False))
            if trained or id(module) in branches:
                module.forward = _own([model[path] for model in models], whose)
                changed[path] = module
        yield whose
    finally:
        for module in changed.values():
            del module.forward


def _own(modules: Sequence[nn.Module], whose: _Whose) -> Callable[..., Tensor]:
    """The forward pass of a module of which each seed has its own."""
    first = modules[0]

    def added(x: Tensor, name: str) -> Tensor:
        return whose.spread(torch.stack([module.get_parameter(name) for module in modules]), x)

    def bias(x: Tensor) -> Tensor:
        return functional.linear(x, first.get_parameter("weight")) + added(x, "bias")

    def norm(x: Tensor) -> Tensor:
        assert isinstance(first, nn.LayerNorm)
        return functional.layer_norm(x, first.normalized_shape, eps=first.eps) * added(x, "weight") + added(x, "bias")

    def each(*inputs: Tensor) -> Tensor:
        parts = zip(*(whose.split(values) for values in inputs), strict=True)
        return whose.join([type(m).forward(m, *part) for m, part in zip(modules, parts, strict=True)], inputs[0])

    if isinstance(first, nn.LayerNorm):
        return norm
    return bias if isinstance(first, nn.Linear) and not first.weight.requires_grad else each
