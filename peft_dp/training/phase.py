"""A phase of a run: its optimiser, and the learning rate, which goes on from phase to phase.

The optimiser starts anew with each phase, since its state belongs to what trained before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_dp.privacy.gradients import check_independent, laid_out
from peft_dp.privacy.taps import Watched
from peft_dp.spec import Optimiser
from peft_dp.training.gradient import memory_named
from peft_dp.training.job import Job


class Phase:
    """A stretch of a run in which the same parameters train, with an optimiser of its own.

    Args:
        job: What trains.
        steps: Number of steps that the run has made before.

    Attributes:
        watched: What trains, for private steps; None for others.

    Raises:
        ValueError: The job is private, and its model does not keep examples apart; see `check_independent`.
        Missing: The device is out of memory.
    """

    def __init__(self, job: Job, steps: int) -> None:
        if job.plan.private:
            with memory_named(job, [0, 1]):
                check_independent(job.backbone.model, lambda: job.losses(job.batch(job.train, [0, 1])))
        self.watched = Watched(job.backbone.model) if job.plan.private else None
        self._bound = job.spec.optimiser.max_grad_norm
        self._updated = job.backbone.updated()
        self._optimiser = OPTIMISERS[job.spec.optimiser.name](_groups(job), job.spec.optimiser)
        factor = rate_factor(job.spec.optimiser, job.plan.steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, lambda step: factor(steps + step))

    def step(self, gradient: Mapping[str, Tensor]) -> None:
        """Update what the optimiser holds by a gradient, given by name of parameter."""
        for name, parameter in self._updated.items():
            parameter.grad = laid_out(gradient[name], parameter)
        if self._bound:
            torch.nn.utils.clip_grad_norm_(self._updated.values(), self._bound)
        self._optimiser.step()
        self._schedule.step()

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of the optimiser; the rate follows from the number of steps."""
        held = self._optimiser.state_dict()["state"]
        return {f"optimiser/{at}/{key}": value for at, values in held.items() for key, value in values.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take the tensors that `state` returned; others may lie among them."""
        whole = self._optimiser.state_dict()
        parameters = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        for name, value in saved.items():
            if name.startswith("optimiser/"):
                _, at, key = name.split("/")
                like = parameters[int(at)]
                if value.shape == like.shape:  # laid out like the parameter, as it was: sums may round by the layout
                    value = torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)
                whole["state"].setdefault(int(at), {})[key] = value
        self._optimiser.load_state_dict(whole)

    def close(self) -> int:
        """Drop the gradients; return the bytes that the optimiser holds."""
        self._optimiser.zero_grad()
        states = [value for state in self._optimiser.state.values() for value in state.values()]
        return sum(value.nbytes for value in states if isinstance(value, Tensor))


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda groups, o: torch.optim.AdamW(groups, lr=o.rate, weight_decay=o.weight_decay, fused=True),
    "sgd": lambda groups, o: torch.optim.SGD(groups, lr=o.rate, weight_decay=o.weight_decay, fused=True),
}
"""Name -> what makes that optimiser of groups of parameters and a spec's settings; fused, for a pass over all values
takes a sixth of the time then."""


def _groups(job: Job) -> list[dict[str, Any]]:
    """Return what is updated, by learning rate and weight decay: a decay would move values that a mask holds."""
    rates, optimiser = job.method.rates(job.backbone), job.spec.optimiser
    groups = defaultdict[tuple[float, float], list[nn.Parameter]](list)
    for name, parameter in job.backbone.updated().items():
        decay = 0.0 if name in job.backbone.masks else optimiser.weight_decay
        groups[rates.get(name, optimiser.rate), decay].append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def rate_factor(optimiser: Optimiser, steps: int) -> Callable[[int], float]:
    """Return step -> factor of the peak rate, for a run of `steps` steps.

    It rises from 0 over the warm-up's share of the steps, then falls to 0 ("linear") or stays ("constant"). "slanted"
    rises and falls by itself.
    """
    if optimiser.schedule == "slanted":
        return lambda step: _slanted(step, steps)
    rising = optimiser.warmup * steps

    def factor(step: int) -> float:
        if step < rising:
            return step / rising
        return (steps - step) / (steps - rising) if optimiser.schedule == "linear" else 1.0

    return factor


def _slanted(step: int, steps: int) -> float:
    """Return the slanted triangle of Howard and Ruder 2018, equation 3.

    It rises from 1/32 over a tenth of the steps, then falls to 1/32 again. Their formula falls below 0 where a tenth
    of the steps is no whole number; here it stays at 1/32.
    """
    cut = max(1, steps // 10)
    height = step / cut if step < cut else max(0.0, 1 - (step - cut) / (9 * cut))
    return (1 + 31 * height) / 32
