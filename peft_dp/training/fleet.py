"""Several runs in one batch: a step of 8 sentences leaves a machine idle that one of 40 keeps busy.

The runs differ in their seeds and share the frozen model. Their batches are laid into one physical batch; what is a
run's own (its branches, biases, scales, head) computes that run's tokens only. Each run has its own order of
batches, gradient, schedule and optimiser, as if it were alone: its values are the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from peft_dp.models import packing
from peft_dp.models.batch import Batch
from peft_dp.privacy.gradients import zeros
from peft_dp.training.checkpoint import State
from peft_dp.training.frozen_prefix import frozen_layers
from peft_dp.training.job import Job
from peft_dp.training.run import Run

SHARE = 0.1
"""Largest share of a model's values that may train for runs to go together; with more there is little to share."""


def possible(job: Job) -> bool:
    """Return whether seeds of the job can train together, to the same results, and gain by it.

    Not with privacy, whose batches are large; not with dropout, whose draws follow the batch; not where a method has
    phases, steps or masks of its own, or layers are frozen, whose outputs each seed computes once; not where
    an example cannot share rows.
    """
    own = job.backbone.masks or not job.method.plain
    few = job.backbone.count() <= SHARE * sum(p.numel() for p in job.backbone.model.parameters())
    reuses = job.spec.reuse and frozen_layers(job.backbone) > 0
    return not (job.plan.private or job.spec.dropout or own or reuses) and few and job.packed


def share_frozen(first: Job, other: Job) -> Job:
    """Put the first job's frozen values in place of the other's, which are the same; return the other."""
    mine = {name: p for name, p in first.backbone.model.named_parameters() if not p.requires_grad}
    for path, module in other.backbone.model.named_modules():
        for name, parameter in list(module.named_parameters(path, recurse=False)):
            if not parameter.requires_grad:
                setattr(module, name.rpartition(".")[2], mine[name])
    return other


class Fleet:
    """Runs that make each step together.

    Steps are made within the fleet as a context, as within a run.

    Args:
        runs: Runs of `possible` jobs, which differ in their seeds only.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._context = ExitStack()

    @property
    def title(self) -> str:
        """What the fleet is called."""
        return f"{len(self.runs)} seeds together"

    @property
    def planned(self) -> int:
        """Number of steps that each run makes."""
        return self.runs[0].planned

    @property
    def steps(self) -> int:
        """Number of steps that each run has made."""
        return self.runs[0].steps

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.runs[0].done

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for run in self.runs:
                stack.enter_context(run)
            self._owners = stack.enter_context(_one_pass([run.job for run in self.runs]))
            self._context = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def step(self) -> None:
        """Make one step of each run.

        Raises:
            FloatingPointError: An epoch ends, and a run's loss is not finite; names the first such run.
            torch.OutOfMemoryError: A physical batch does not fit into memory.
        """
        drawn = [run.draw() for run in self.runs]
        for run, gradient in zip(self.runs, self._means(drawn), strict=True):
            run.update(gradient)

    def state(self) -> State:
        """Return the state of each run, between two steps."""
        states = [run.state() for run in self.runs]
        tensors = {f"{at}/{name}": value for at, state in enumerate(states) for name, value in state.tensors.items()}
        return State(tensors, {"runs": [state.values for state in states]})

    def restore(self, state: State) -> None:
        """Go on from a state of the same fleet, instead of from the first step."""
        for at, (run, values) in enumerate(zip(self.runs, state.values["runs"], strict=True)):
            start = f"{at}/"
            mine = {name: value for name, value in state.tensors.items() if name.startswith(start)}
            run.restore(State({name.removeprefix(start): value for name, value in mine.items()}, values))

    def _means(self, drawn: Sequence[list[int]]) -> list[dict[str, Tensor]]:
        """Return each run's mean gradient over its logical batch, by name of parameter."""
        jobs = [run.job for run in self.runs]
        every = [parameter for job in jobs for parameter in job.backbone.trained().values()]
        sums = [zeros(job.backbone.model) for job in jobs]
        for cuts in zip_longest(*(job.cut(job.train, b) for job, b in zip(jobs, drawn, strict=True)), fillvalue=[]):
            sizes = [len(cut) for cut in cuts]
            batch = jobs[0].train.packed([i for cut in cuts for i in cut], jobs[0].device)
            self._owners.take(batch, sizes)
            losses = torch.split(jobs[0].losses(batch), sizes)
            gradients = iter(torch.autograd.grad(torch.cat(losses).sum(), every))
            for run, total, cut, each in zip(self.runs, sums, cuts, losses, strict=True):
                for name in total:
                    total[name] += next(gradients)
                run.tally.add(run.job.train.count(cut), each.detach(), each.new_empty(0))
        for run, total in zip(self.runs, sums, strict=True):
            run.tracer.summed(total)
        return [
            {name: value / len(indices) for name, value in total.items()}
            for total, indices in zip(sums, drawn, strict=True)
        ]


class _Owners:
    """Which run each token, or each example, of what passes through the model belongs to."""

    def __init__(self, runs: int) -> None:
        self._count = runs

    def take(self, batch: Batch, sizes: Sequence[int]) -> None:
        """Take the next batch, of so many examples of each run."""
        assert batch.packing
        self._examples = torch.arange(self._count).repeat_interleave(torch.tensor(sizes)).to(batch.ids.device)
        self._tokens = batch.packing.to_tokens(self._examples).flatten()
        self._order = self._tokens.argsort(stable=True)
        self._back = self._order.argsort()
        self._shares = [torch.bincount(of, minlength=self._count).tolist() for of in (self._examples, self._tokens)]

    def at_places(self, vectors: Tensor, x: Tensor) -> Tensor:
        """Return each run's vector [S, h] at its tokens or examples, in a shape to go with x."""
        if packing.of(x) is None:
            return vectors.index_select(0, self._examples).view(len(x), *[1] * (x.dim() - 2), -1)
        return vectors.index_select(0, self._tokens).view(*x.shape[:2], -1)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """Return what is each run's of x: its tokens in one row [1, N, h], or its examples."""
        if packing.of(x) is None:
            return torch.split(x, self._shares[0])
        return torch.split(x.flatten(0, 1).index_select(0, self._order)[None], self._shares[1], dim=1)

    def join(self, parts: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return the parts that a module made of those of x, each where it belongs."""
        if packing.of(x) is None:
            return torch.cat(list(parts))
        whole = torch.cat(list(parts), dim=1)[0]
        return whole.index_select(0, self._back).view(*x.shape[:2], *whole.shape[1:])


@contextmanager
def _one_pass(jobs: Sequence[Job]) -> Iterator[_Owners]:
    """Have the first job's model compute each run's tokens with what is that run's own."""
    owners = _Owners(len(jobs))
    models = [dict(job.backbone.model.named_modules()) for job in jobs]
    branches = {id(branch) for branch in jobs[0].backbone.branches}
    changed: dict[str, nn.Module] = {}
    try:
        for path, module in models[0].items():
            if any(path.startswith(f"{above}.") for above in changed):
                continue
            trained = any(p.requires_grad for p in module.parameters(recurse=False))
            if trained or id(module) in branches:
                module.forward = _forward([model[path] for model in models], owners)
                changed[path] = module
        yield owners
    finally:
        for module in changed.values():
            del module.forward


def _forward(modules: Sequence[nn.Module], owners: _Owners) -> Callable[..., Tensor]:
    """Return the forward pass of a module of which each run has its own."""
    first = modules[0]

    def own(x: Tensor, name: str) -> Tensor:
        return owners.at_places(torch.stack([module.get_parameter(name) for module in modules]), x)

    def bias(x: Tensor) -> Tensor:
        return functional.linear(x, first.get_parameter("weight")) + own(x, "bias")

    def norm(x: Tensor) -> Tensor:
        assert isinstance(first, nn.LayerNorm)
        return functional.layer_norm(x, first.normalized_shape, eps=first.eps) * own(x, "weight") + own(x, "bias")

    def each(*inputs: Tensor) -> Tensor:
        parts = zip(*(owners.split(values) for values in inputs), strict=True)
        return owners.join([type(m).forward(m, *part) for m, part in zip(modules, parts, strict=True)], inputs[0])

    if isinstance(first, nn.LayerNorm):
        return norm
    return bias if isinstance(first, nn.Linear) and not first.weight.requires_grad else each
