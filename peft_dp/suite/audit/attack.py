"""An alarm on the claimed epsilon: what an attacker who plants gradients finds out from the noised sums.

A canary is a row of the batch whose gradient is replaced, after it is formed and
before it is clipped, by ten times the clip on one coordinate that no other canary
has. Each is in the batch of every step or in none, by a fair coin. The attacker
sees the noised sums and scores a canary by its coordinate, summed over the steps.
Model, method, masks, accountant, clipping and the cut into physical batches are the
cell's; of a method with phases, the first.

One statement decides. Noise is normal, so the scores of canaries in and out are two
normal samples of one spread, mu apart, and epsilon follows from mu (Dong et al. 2022,
arXiv 1905.02383, corollary 2.13). Canaries have coordinates of their own, so their
scores are independent, within a draw and between draws: the scores of all draws make
one sample, and its lower limit of mu is above the true mu in one audit of a thousand.

Beside it stand, for each draw, bounds that need not know the scores' distribution,
from how many guesses of who was in are right: of any mechanism (Steinke et al. 2023,
arXiv 2305.08846), and of one whose trade-off function is a Gaussian's (Mahloujifar et
al. 2024, arXiv 2410.22235). Each is above the truth in at most one draw of twenty.

With three draws of 10,000 canaries noise a tenth too small is caught 9 times of 10.
All canaries are in or out throughout, so nothing here sees the sampler, and nothing
sees noise used twice.

A canary's input is an example of the cell cut to one token, as its gradient does
not depend on that. Eight whole examples are always there, so that a physical batch
holds both; more would only blur the scores of an attacker who does not know them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peft_dp import rng
from peft_dp.models.batch import Encoded
from peft_dp.privacy.gradients import PerExample, per_example_pass
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.per_example import Part
from peft_dp.privacy.plan import Plan, private_plan, spent
from peft_dp.spec import Privacy
from peft_dp.suite.audit.bounds import (
    DELTA,
    ERROR,
    distance,
    gaussian_bound,
    gaussian_epsilon,
    lower_bound,
    one_run_bound,
    power,
)
from peft_dp.training.job import Job

CANARIES = 10_000
FEWEST = 100
EPSILON, STEPS = 2.0, 4
TIMES = 10.0
"""Length of a canary's gradient, over the clip."""
EXAMPLES = 8
DRAWS = 3


@dataclass(frozen=True)
class Target:
    """A model that is attacked, and the rows that pass through it: those of the canaries, then some as they are.

    Attributes:
        rows: Number of all rows.
        model: What trains.
        trained: Name -> parameter that trains.
        masks: As in `gradients.per_example_pass`.
        losses: Gives the loss of each row [B].
        cut: Cuts rows into physical batches.
        device: Where the model is.
        begin_step: Begins a step, given the stream of gates.
    """

    rows: int
    model: nn.Module
    trained: Mapping[str, nn.Parameter]
    losses: Callable[[list[int]], Tensor]
    cut: Callable[[list[int]], Iterable[list[int]]]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    device: str = "cpu"
    begin_step: Callable[[torch.Generator], None] = lambda gates: None

    def open(self) -> dict[str, int]:
        """Return the number of values that each parameter trains."""
        return {
            name: int(self.masks[name].sum()) if name in self.masks else p.numel() for name, p in self.trained.items()
        }


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the noised sums tell, beside what is claimed.

    Attributes:
        claimed: Epsilon of the audited steps, by the cell's accountant.
        delta: Failure probability of that and of all below.
        accountant: Name of the accountant.
        draws: Number of draws of canaries and noise.
        canaries: Number of canaries of a draw.
        mu: Distance of the scores of canaries in and out, in standard deviations: the Gaussian mechanism's mu.
        estimate: Epsilon of that mu.
        limit: Epsilon of mu's lower limit, above the true one with chance `error`.
        error: As it says.
        bounds: Lower bound on epsilon of a mechanism with a Gaussian's trade-off function, of each draw, at 95 %.
        power: What that bound comes to where the mechanism is right and so many guesses are as are expected.
        any_mechanism: Lower bound on epsilon of any mechanism, of each draw, at 95 %.
    """

    claimed: float
    delta: float
    accountant: str
    draws: int
    canaries: int
    mu: float
    estimate: float
    limit: float
    error: float
    bounds: tuple[float, ...]
    power: float
    any_mechanism: tuple[float, ...]

    @property
    def alarms(self) -> bool:
        """Whether the claim is refuted."""
        return self.limit > self.claimed


def audit(job: Job, canaries: int = CANARIES) -> Audit:
    """Attack a job, as `attack` says.

    Args:
        job: A private one.
        canaries: How many per draw at most; no more than the job trains values.

    Raises:
        ValueError: The job is not private, or the canaries are too few to show anything.
    """
    if job.spec.privacy is None:
        raise ValueError("a run without privacy claims no epsilon: give its spec a privacy")
    tensors = len(job.backbone.trained())
    if canaries < (least := max(FEWEST, tensors)):
        raise ValueError(f"canaries {canaries} are too few for {tensors} tensors that train: take at least {least}")
    canaries = min(canaries, job.backbone.count())
    return attack(target(job, canaries), job.spec.privacy, canaries, job.spec.seed)


def target(job: Job, canaries: int) -> Target:
    """Return a job as what is attacked; a canary's row is one of its examples, cut to one token."""
    rows = _rows(job.train, canaries)
    return Target(
        rows=len(rows),
        model=job.backbone.model,
        trained=job.backbone.trained(),
        losses=lambda some: job.losses(job.batch(rows, some)),
        cut=lambda some: job.cut(rows, some),
        masks=job.backbone.masks,
        device=job.device,
        begin_step=lambda gates: job.method.begin_step(job.backbone, gates),
    )


def attack(target: Target, privacy: Privacy, canaries: int, seed: int) -> Audit:
    """Take four full-batch steps of canaries per draw, which leave the weights alone, at a noise for an epsilon of 2.

    Args:
        target: What is attacked.
        privacy: Clip, clipping and accountant; its epsilon and delta are the attack's own.
        canaries: How many per draw, no more than the target trains values.
        seed: Of coins, noise, gates and dropout.
    """
    draw = numpy.random.default_rng(seed)
    plan = private_plan(replace(privacy, epsilon=EPSILON, delta=DELTA, sampling="poisson"), canaries, canaries, STEPS)
    noise = rng.generator(seed, "noise", target.device)
    draws = []
    for _ in range(DRAWS):
        planted = _Canaries.plant(target, canaries, plan.clip, draw)
        inside = draw.random(canaries) < 0.5
        draws.append((_scores(target, plan, planted, inside, noise, seed), inside))
    mu, limit = distance(*map(numpy.concatenate, zip(*draws, strict=True)))
    return Audit(
        claimed=spent(plan, plan.steps),
        delta=plan.delta,
        accountant=plan.accountant,
        draws=DRAWS,
        canaries=canaries,
        mu=mu,
        estimate=gaussian_epsilon(mu, plan.delta),
        limit=gaussian_epsilon(limit, plan.delta),
        error=ERROR,
        bounds=tuple(lower_bound(*one, gaussian_bound) for one in draws),
        power=power(canaries, math.sqrt(plan.steps) / plan.noise_multiplier),
        any_mechanism=tuple(lower_bound(*one, one_run_bound) for one in draws),
    )


@dataclass(frozen=True)
class _Canaries:
    """Where each canary's gradient is.

    Attributes:
        names: Of the trained parameters.
        owners: Which of them each row is in [M + 8]; -1 for the examples, which come last.
        places: Index in the flattened parameter [M + 8].
        size: The gradient there.
    """

    names: list[str]
    owners: Tensor
    places: Tensor
    size: float

    @classmethod
    def plant(cls, target: Target, canaries: int, clip: float, draw: numpy.random.Generator) -> _Canaries:
        """One for each parameter, the others by the number of values that it trains; no two at one place."""
        masks, open_ = target.masks, target.open()
        others = numpy.cumsum([0, *(size - 1 for size in open_.values())])
        counts = 1 + numpy.diff(others * (canaries - len(open_)) // max(others[-1], 1))
        places = []
        for (name, size), count in zip(open_.items(), counts, strict=True):
            drawn = torch.from_numpy(draw.choice(size, count, replace=False))
            places.append(masks[name].flatten().nonzero().flatten().cpu()[drawn] if name in masks else drawn)
        owners = torch.repeat_interleave(torch.from_numpy(counts))
        order = torch.from_numpy(draw.permutation(canaries))
        owners, flat = (
            nn.functional.pad(values[order], (0, EXAMPLES), value=-1) for values in (owners, torch.cat(places))
        )
        return cls([*open_], owners, flat, TIMES * clip)

    def replace(self, found: PerExample, cut: list[int]) -> PerExample:
        """A physical batch with the gradients of its canaries in place of their rows' own."""
        owners, places = (values[cut].to(found.losses.device) for values in (self.owners, self.places))
        rows = {name: (owners == at).nonzero().flatten() for at, name in enumerate(self.names)}
        parts: dict[str, Any] = {
            name: _Planted(
                part.without(owners >= 0),
                rows[name],
                places[rows[name]],
                found.losses.new_full((len(rows[name]),), self.size),
            )
            for name, part in found.parts.items()
        }
        return replace(found, parts=parts)


@dataclass(frozen=True)
class _Planted:
    """A parameter's gradient of each example, with single values added to it."""

    part: Part
    rows: Tensor  # [K]
    places: Tensor  # [K], in the flattened parameter
    values: Tensor  # [K]

    def without(self, lost: Tensor) -> _Planted:
        return replace(self, part=self.part.without(lost), values=self.values.masked_fill(lost[self.rows], 0))

    def square_norm(self) -> Tensor:
        return self.part.square_norm().index_add(0, self.rows, self.values.square())

    def add_to(self, total: Tensor, weights: Tensor) -> None:
        self.part.add_to(total, weights)
        total.view(-1).index_add_(0, self.places, self.values * weights[self.rows])


def _scores(
    target: Target, plan: Plan, canaries: _Canaries, inside: NDArray[numpy.bool_], noise: torch.Generator, seed: int
) -> NDArray[numpy.float64]:
    """Each canary's coordinate of the noised sums, over all steps [M]."""
    cuts = list(target.cut([*inside.nonzero()[0].tolist(), *range(len(inside), target.rows)]))
    now: list[int] = []  # the physical batch that passes through the model

    def losses(cut: list[int]) -> Tensor:
        now[:] = cut
        return target.losses(cut)

    def planted(model: nn.Module, call: Callable[[], Tensor], examples: int, masks: Mapping[str, Tensor]) -> PerExample:
        found = per_example_pass(model, call, examples, masks)
        return canaries.replace(found, now)

    scores = torch.zeros(len(inside), dtype=torch.float64)
    target.model.train()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(rng.seed(seed, "dropout"))
        gates = rng.generator(seed, "gates", target.device)
        for _ in range(plan.steps):
            target.begin_step(gates)
            sums = noised_sum(target.model, losses, cuts, plan, noise, masks=target.masks, per_example_pass=planted)
            for at, name in enumerate(canaries.names):
                mine = (canaries.owners == at).nonzero().flatten()
                scores[mine] += sums[name].cpu().flatten()[canaries.places[mine]]
    return scores.numpy()


def _rows(train: Encoded, canaries: int) -> Encoded:
    """The data's examples cut to one token, again and again, for the canaries; then some as they are."""
    order = [at % len(train) for at in range(canaries)]
    whole = [*range(min(EXAMPLES, len(train)))]
    ids, types = (
        [*(values[at][:1] for at in order), *(values[at] for at in whole)] for values in (train.ids, train.types)
    )
    return Encoded(ids, types, train.labels[[*order, *whole]], train.pad)
