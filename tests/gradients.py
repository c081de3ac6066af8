"""Per-example gradients and their clipped sum of one physical batch, as tests hold them against a loop of one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from peft_dp.models.batch import Batch
from peft_dp.privacy.gradients import per_example_pass, zeros
from peft_dp.training.job import Job


@dataclass(frozen=True)
class Clipped:
    """The clipped sum over one physical batch.

    Attributes:
        sums: Name -> sum over examples of the clipped gradient, in the parameter's shape.
        losses: Loss of each example [B].
        norms: Gradient norm of each example before clipping [B].
    """

    sums: dict[str, Tensor]
    losses: Tensor
    norms: Tensor


def clipped_sum(job: Job, batch: Batch, clip: float, clipping: str = "abadi") -> Clipped:
    """Sum over examples of g_i times its clipping factor, see `factors`; |g_i| is over all trained parameters.

    What shares a row with an example that is not finite may be lost with it; `finite_passes` sees to that.
    """
    backbone = job.backbone
    found = per_example_pass(backbone.model, lambda: job.losses(batch), len(batch), backbone.masks)
    sums = zeros(backbone.model)
    return Clipped(sums, found.losses, found.add_clipped(sums, clip, clipping))


def per_example_gradients(job: Job, batch: Batch) -> Tensor:
    """Gradients of each example [B, P], parameters flattened in the model's order; for tests and small models."""
    return per_example_pass(job.backbone.model, lambda: job.losses(batch), len(batch), job.backbone.masks).each()
