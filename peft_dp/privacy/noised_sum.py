"""The noised sum of a logical batch: what a private step may see of its examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from peft_dp import rng
from peft_dp.models.backbone import trained_parameters
from peft_dp.privacy.gradients import Losses, PerExample, Sums, finite_passes, halved, per_example_pass, zeros
from peft_dp.privacy.plan import Plan
from peft_dp.privacy.taps import Watched

Watch = Callable[[list[int], Tensor, Tensor], None]
"""Called for each physical batch with its example indices, losses [B] and gradient norms [B] (empty if not private)."""


def noised_sum(
    model: nn.Module,
    losses: Losses,
    cuts: Iterable[list[int]],
    plan: Plan,
    source: rng.Source,
    *,
    masks: Mapping[str, Tensor] | None = None,
    divisor: float = 1.0,
    watch: Watch | None = None,
    before_noise: Callable[[Mapping[str, Tensor], float], None] | None = None,
    watched: Watched | None = None,
    per_example_pass: Callable[..., PerExample] = per_example_pass,
) -> dict[str, Tensor]:
    """Name of each trained parameter -> sum of the clipped gradients of a logical batch, noise added once, divided.

    The noise does not depend on how many examples were drawn, nor on how they are cut.

    Args:
        model: Those of its parameters train that require a gradient.
        losses: Gives the losses of a physical batch.
        cuts: The logical batch, cut into physical ones; empty for a batch that drew nobody.
        plan: Clip and noise; with clip = inf and noise 0 this is the ordinary gradient.
        source: Of the noise.
        masks: As in `gradients.per_example_pass`.
        divisor: What the noised sum is divided by.
        watch: Sees each physical batch.
        before_noise: Sees the sum, by name of parameter, before noise is added, and what it is still to be multiplied
            with; nothing private may come of it.
        watched: What trains, if that is known already; else the model is walked through.
        per_example_pass: Gives the per-example gradients; the audit puts its canaries there.

    Raises:
        ValueError: As `gradients.per_example_pass`.
        torch.OutOfMemoryError: One example alone is too large; of more than one, the halves are passed.
    """
    masks = masks or {}
    watch = watch or (lambda cut, losses, norms: None)
    if not plan.private:
        mean = _mean(model, losses, cuts, divisor, watch)
        if before_noise:
            before_noise(mean, divisor)
        return {name: value * masks[name] if name in masks else value for name, value in mean.items()}
    sums = Sums.like(watched.trained) if watched else zeros(model)
    passes = partial(per_example_pass, watched=watched) if watched else per_example_pass
    for cut in cuts:
        for part, found in finite_passes(model, losses, cut, masks, passes):
            watch(part, found.losses, found.add_clipped(sums, plan.clip, plan.clipping))
            del found  # before the next physical batch, not after it
    if before_noise:
        before_noise(sums, 1.0)
    # From the operating system part by part, for such draws take much memory.
    like = [sums.flat] if isinstance(source, torch.Generator) else [*sums.values()]
    for total, noise in zip(like, rng.normal(source, like, plan.noise_multiplier * plan.clip), strict=True):
        total += noise
    for name, total in sums.items():
        if name in masks:
            total *= masks[name]
    sums.flat /= divisor
    return sums


def _mean(
    model: nn.Module, losses: Losses, cuts: Iterable[list[int]], divisor: float, watch: Watch
) -> dict[str, Tensor]:
    """Return the ordinary gradient, divided; of one physical batch as the backward pass gives it."""
    trained = trained_parameters(model)
    found: dict[str, Tensor] = {}

    def ordinary(cut: list[int]) -> tuple[Tensor, Sequence[Tensor]]:
        each = losses(cut)
        # Divided where it is one value.
        return each.detach(), torch.autograd.grad(each.sum() / divisor, list(trained.values()))

    for physical in cuts:
        for part, (each, gradients) in halved(ordinary, physical):
            found = {
                name: found[name] + gradient if found else gradient
                for name, gradient in zip(trained, gradients, strict=True)
            }
            watch(part, each, each.new_empty(0))
            del gradients  # before the next physical batch, not after it
    seen: set[int] = set()
    for name, value in found.items():
        # Two parameters that are added share one gradient, that of a sum is one value: no change in place may spread.
        if value.data_ptr() in seen or 0 in value.stride():
            found[name] = value.clone(memory_format=torch.contiguous_format)
        seen.add(value.data_ptr())
    return found or zeros(model)
