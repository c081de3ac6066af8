"""A step by other engines on a job's own model and examples, for comparison; one sentence to a row, padded.

Opacus by hooks (a gradient for each example, kept for all parameters) and by
ghost clipping (norms first, then a second backward pass), each with Opacus's own
optimiser over SGD. Physical batches go through as `BatchMemoryManager` passes
them: noise once, at the last. How a logical batch is cut is for the caller to say.
Without privacy, the loop of a Trainer: a step for each batch, padded to its longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

from peft_dp.training.job import Job

Step = Callable[[Sequence[int]], None]
"""Makes one private step over a logical batch."""


Cut = Callable[[Sequence[int]], Iterable[list[int]]]
"""Cuts a logical batch into physical ones."""


def as_drawn(indices: Sequence[int]) -> Iterator[list[int]]:
    """Physical batches of 32 in the order drawn, as a data loader with dynamic padding has them."""
    for at in range(0, len(indices), 32):
        yield list(indices[at : at + 32])


def trainer(job: Job) -> Step:
    """Steps over batches of the job's size in the order given, as transformers' Trainer makes them, with AdamW."""
    trained = list(job.backbone.trained().values())
    optimiser = torch.optim.AdamW(trained, lr=job.spec.optimiser.rate)

    def steps(indices: Sequence[int]) -> None:
        for at in range(0, len(indices), job.spec.batch):
            losses = _losses(job, list(indices[at : at + job.spec.batch]))
            losses.mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad()

    return steps


def hooks(job: Job, cut: Cut) -> Step:
    """Opacus's per-example gradients by hooks; changes the job's model for good."""
    GradSampleModule(job.backbone.model)
    optimiser = DPOptimizer(_sgd(job), **_options(job))

    def backward(losses: torch.Tensor) -> None:
        losses.sum().backward()  # type: ignore[no-untyped-call]

    return lambda indices: _step(job, optimiser, list(cut(indices)), backward)


def ghost(job: Job, cut: Cut) -> Step:
    """Opacus's ghost clipping; changes the job's model for good."""
    module = GradSampleModuleFastGradientClipping(
        job.backbone.model, use_ghost_clipping=True, max_grad_norm=job.plan.clip, loss_reduction="sum"
    )
    optimiser = DPOptimizerFastGradientClipping(_sgd(job), **_options(job))

    def backward(losses: torch.Tensor) -> None:
        DPTensorFastGradientClipping(module, optimiser, losses, "sum").backward()

    return lambda indices: _step(job, optimiser, list(cut(indices)), backward)


def _losses(job: Job, cut: list[int]) -> torch.Tensor:
    """Under autocast alone: what else the job does for speed is its own."""
    batch = job.train.batch(cut, job.device)
    with torch.autocast(job.device, torch.bfloat16, enabled=job.spec.precision == "bf16"):
        logits = job.backbone.logits(batch)
    return job.loss(logits.float(), batch.labels)


def _sgd(job: Job) -> torch.optim.Optimizer:
    return torch.optim.SGD(job.backbone.trained().values(), lr=job.spec.optimiser.rate)


def _options(job: Job) -> dict[str, object]:
    return {
        "noise_multiplier": job.plan.noise_multiplier,
        "max_grad_norm": job.plan.clip,
        "expected_batch_size": job.plan.batch,
        "loss_reduction": "sum",
    }


def _step(job: Job, optimiser: DPOptimizer, cuts: list[list[int]], backward: Callable[[torch.Tensor], None]) -> None:
    for cut in cuts:
        optimiser.signal_skip_step(do_skip=cut is not cuts[-1])
        backward(_losses(job, cut))
        optimiser.step()
        optimiser.zero_grad()
