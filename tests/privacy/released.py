"""Real optimiser steps beside a loop of single examples: what a step may release, and the noise left over.

The reference is plain: `torch.autograd.grad` for each example alone and unpadded, its whole gradient clipped, the sum
divided by the expected batch. It is computed where the step is taken, after the method's `begin_step`, so that both
see the same gates and carriers. A method's `penalty` and `release` do not look at the data: its own are applied to
the reference too.

Names of the engine are looked up in its modules at each call, so that a test may break one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import cycle
from typing import Any

import torch
from scipy import special, stats
from torch import Tensor

from peft_dp import Places, Spec, methods, rng
from peft_dp.methods import Method
from peft_dp.models.backbone import Backbone
from peft_dp.models.batch import BUDGETS, Budget, Encoded
from peft_dp.privacy.plan import Plan
from peft_dp.spec import Optimiser
from peft_dp.training import gradient
from peft_dp.training import job as jobs
from peft_dp.training import phase as optimising
from peft_dp.training.tally import Tally

CHANCE = 1e-6
"""A test of chance fails where a right engine would give what was seen less often than this."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Error of the released change against the loop, over its size."""
BATCHES: tuple[list[int], ...] = ([0, 1, 2, 3, 4, 5, 6], [], [7, 8, 9, 10, 11])
"""Logical batches of three steps; none has the expected size, one is empty."""
EXPECTED = 8
NOISE = 0.7


@dataclass(frozen=True)
class Split(Encoded):
    """Training examples whose logical batches are cut into that many physical ones."""

    splits: int = 1

    def cut(self, indices: Sequence[int], budget: Budget = BUDGETS["cpu"]) -> Iterator[list[int]]:
        """Cuts a logical batch into `splits` parts, into none if it is empty."""
        size = max(1, math.ceil(len(indices) / self.splits))
        for at in range(0, len(indices), size):
            yield list(indices[at : at + size])

    split = cut


def split(job: jobs.Job, splits: int) -> jobs.Job:
    """The job with its logical batches cut into `splits` physical ones."""
    held = {field.name: getattr(job.train, field.name) for field in fields(Encoded)}
    return replace(job, train=Split(**held, splits=splits))


def made(
    spec: Callable[..., Spec],
    places: Places,
    method: str,
    *,
    dtype: torch.dtype = torch.float64,
    noise: float = 0.0,
    clipping: str = "abadi",
    length: int = 24,
) -> jobs.Job:
    """A job of a method's example, under plain SGD and a private plan that no accountant made.

    All values are moved: the random backbone's gradients are of nearly one norm, and a wrong clip would not show.
    """
    config = methods.load(method).EXAMPLE.model_dump(mode="json")
    sgd = Optimiser(name="sgd", rate=0.5, schedule="constant")
    asked = spec(method=method, config=config, dropout=False, optimiser=sgd, batch=EXPECTED, max_length=length)
    job = jobs.build(asked, jobs.find_sources(asked, places))
    job.backbone.model.to(dtype).train()
    _move(job.backbone.model.parameters(), 0.3)
    plan: dict[str, Any] = {"clip": 1.0, "clipping": clipping, "noise_multiplier": noise}
    counts: dict[str, Any] = {"examples": 24, "batch": EXPECTED, "steps": 6, "steps_per_epoch": 3}
    return replace(job, plan=Plan(**counts, **plan, sampling="poisson", sample_rate=EXPECTED / 24))


@torch.no_grad()
def _move(values: Iterable[Tensor], size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for value in values:
        value += size * torch.randn(value.shape, generator=generator)


def phases(job: jobs.Job) -> Iterator[jobs.Job]:
    """The job in each phase of its method; its clip cuts some of the examples and others not."""
    for _ in job.method.phases(job.backbone, job.spec.epochs):
        norms = torch.stack([norm for norm in reference(job, BATCHES[0])[1] if norm.isfinite()])
        assert norms.max() > 1.1 * norms.min()
        yield replace(job, plan=replace(job.plan, clip=norms.mean().item()))


def reference(job: jobs.Job, indices: Sequence[int]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Sum of the clipped gradients of examples passed one at a time, and each one's norm before clipping."""
    trained, masks, plan = job.backbone.trained(), job.backbone.masks, job.plan
    sums, norms = {name: torch.zeros_like(value) for name, value in trained.items()}, []
    for index in indices:
        batch = job.train.batch([index], job.device)
        loss = job.loss(job.backbone.logits(batch), batch.labels).sum()
        found = torch.autograd.grad(loss, list(trained.values()))
        gradient = {name: g * masks.get(name, 1) for name, g in zip(trained, found, strict=True)}
        norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
        norms.append(norm)
        if norm.isfinite():
            factor = plan.clip / (norm + 0.01) if plan.clipping == "automatic" else (plan.clip / norm).clamp(max=1)
            for name, g in gradient.items():
                sums[name] += factor * g
    return sums, norms


@dataclass(frozen=True)
class Step:
    """What one optimiser step did.

    Attributes:
        change: Name of what the optimiser updates -> value before less value after.
        expected: Likewise, of the reference, without noise.
        excess: Name of what trains -> the noised sum less the reference's, found from the change; where a method
            has a `release`, from what it was given.
        intact: Whether all else, and every value that a mask holds, is bit for bit what it was.
    """

    change: dict[str, Tensor]
    expected: dict[str, Tensor]
    excess: dict[str, Tensor]
    intact: bool


def kept_release(method: Method, given: dict[str, dict[str, Tensor]]) -> Method:
    """Return a method whose `release` also keeps what it was given first."""

    class Keeps(type(method)):  # type: ignore[misc]
        def release(self, backbone: Backbone, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
            return super().release(backbone, given.setdefault("mean", gradients))  # type: ignore[no-any-return]

    return Keeps(**method.model_dump())


def step(job: jobs.Job, phase: Any, indices: Sequence[int], streams: Mapping[str, torch.Generator]) -> Step:
    """One step through the training loop, and the reference's."""
    backbone = job.backbone
    given: dict[str, Any] = {}
    method = kept_release(job.method, given)
    before = {name: value.detach().clone() for name, value in backbone.model.named_parameters()}
    mean = gradient.noised_mean(replace(job, method=method), list(indices), streams, Tally(job.device))

    sums = reference(job, indices)[0]
    expected = {name: value / EXPECTED for name, value in sums.items()}
    if (term := method.penalty(backbone)) is not None and term.requires_grad:
        trained = backbone.trained()
        found = torch.autograd.grad(term, list(trained.values()), allow_unused=True, materialize_grads=True)
        expected = {name: expected[name] + g for name, g in zip(trained, found, strict=True)}
    own = method.rates(backbone)
    rates = {name: own.get(name, job.spec.optimiser.rate) for name in backbone.updated()}
    started = {name: value.detach().clone() for name, value in backbone.updated().items()}

    phase.step(mean)

    after = dict(backbone.model.named_parameters())
    change = {name: value - after[name].detach() for name, value in started.items()}
    released = type(job.method).release is not Method.release
    seen = given["mean"] if released else {name: value / rates[name] for name, value in change.items()}
    excess = {name: (seen[name] - value) * EXPECTED for name, value in expected.items()}
    intact = all(
        torch.equal(after[name][~backbone.masks[name]], value[~backbone.masks[name]])
        if name in backbone.masks
        else name in change.keys() | sums.keys() or torch.equal(after[name], value)
        for name, value in before.items()
    )
    moved = job.method.release(backbone, expected)
    return Step(change, {name: moved[name] * rate for name, rate in rates.items()}, excess, intact)


def noise_free(job: jobs.Job, splits: Sequence[int] = (1, 2, 4)) -> float:
    """Largest error of the released change over its size, of all phases and splits; each takes all steps anew."""
    errors = []
    for phased in phases(job):
        start = {name: value.detach().clone() for name, value in phased.backbone.model.named_parameters()}
        for number in splits:
            with torch.no_grad():
                for name, value in phased.backbone.model.named_parameters():
                    value.copy_(start[name])
            cut = split(phased, number)
            optimiser, streams = optimising.Phase(cut, 0), rng.of_steps(0)
            steps = [step(cut, optimiser, indices, streams) for indices in BATCHES]
            gap = torch.cat([(s.change[n] - s.expected[n]).flatten() for s in steps for n in s.change]).norm()
            errors.append(gap / torch.cat([value.flatten() for s in steps for value in s.expected.values()]).norm())
    return torch.stack(errors).max().item()


@dataclass(frozen=True)
class Residual:
    """What is left of the steps of a phase once the noise-free sum is taken off, over the noise's scale.

    Attributes:
        values: Name of what trains -> standard normal values [steps, K], of the K entries that train.
        intact: As in `Step`, of all steps.
    """

    values: dict[str, Tensor]
    intact: bool


def residuals(
    job: jobs.Job, batches: Sequence[Sequence[int]] = BATCHES, splits: Sequence[int] = (2, 4), seed: int = 0
) -> Iterator[Residual]:
    """The residual of each phase; the steps are split by each number of `splits` in turn."""
    for phased in phases(job):
        optimiser, streams = optimising.Phase(phased, 0), rng.of_steps(seed)
        numbers = cycle(splits)
        steps = [step(split(phased, next(numbers)), optimiser, indices, streams) for indices in batches]
        scale = phased.plan.noise_multiplier * phased.plan.clip
        trained, masks = phased.backbone.trained(), phased.backbone.masks
        values = {}
        for name, value in trained.items():
            lets = masks.get(name, torch.ones_like(value, dtype=torch.bool))
            if lets.any():
                values[name] = torch.stack([s.excess[name][lets] for s in steps]).double() / scale
        yield Residual(values, all(s.intact for s in steps))


def p_values(residual: Residual) -> dict[str, float]:
    """How likely a right engine gives each thing seen, or a rarer one; for `intact` 1 or 0."""
    tensors = list(residual.values.values())
    whole = torch.cat(tensors, dim=1)  # [steps, K]
    shapes: dict[int, list[Tensor]] = {}
    for name, tensor in residual.values.items():
        shapes.setdefault(tensor.shape[1], []).append(residual.values[name].flatten())
    found = {
        "chi-square": _square(whole),
        "chi-square of a tensor": min(_square(tensor) for tensor in tensors) * len(tensors),
        "Kolmogorov-Smirnov": float(stats.kstest(whole.flatten().numpy(), "norm").pvalue),
        "steps": _correlation([whole]),
        "steps of a tensor": _correlation(tensors),
        "tensors of one size": _correlation([torch.stack(group) for group in shapes.values()]),
        "neighbours": _correlation([torch.stack([whole[:, 1:].flatten(), whole[:, :-1].flatten()])]),
        "intact": float(residual.intact),
    }
    # A value that is not finite is as wrong as can be.
    return {name: 0.0 if math.isnan(value) else min(1.0, value) for name, value in found.items()}


def _square(values: Tensor) -> float:
    """Of the sum of squares, too small or too large."""
    total, size = values.square().sum().item(), values.numel()
    return 2 * min(stats.chi2.cdf(total, size), stats.chi2.sf(total, size))


def _correlation(groups: Sequence[Tensor]) -> float:
    """Of the largest correlation between two rows of a group [rows, n], times the number of pairs looked at.

    r^2 of two independent normal rows of mean 0 is Beta(1/2, (n - 1) / 2).
    """
    smallest, pairs = 1.0, 0
    for rows in groups:
        count, size = rows.shape
        if count < 2 or size < 2:
            continue
        rows = torch.nn.functional.normalize(rows, dim=1)
        upper = torch.triu_indices(count, count, 1)
        squares = (rows @ rows.mT)[upper[0], upper[1]].square().clamp(max=1.0)
        smallest = min(smallest, float(special.betainc((size - 1) / 2, 0.5, 1 - squares.max().item())))
        pairs += len(squares)
    return smallest * max(1, pairs)
