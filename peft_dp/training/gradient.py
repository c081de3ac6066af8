"""The gradient of one step, private or not: a plan decides."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from peft_dp import rng
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.taps import Watched
from peft_dp.training.job import Job
from peft_dp.training.tally import Tally
from peft_dp.training.tracer import Tracer
from peft_dp.validate import Missing


def noised_mean(
    job: Job,
    indices: list[int],
    streams: Mapping[str, rng.Source],
    tally: Tally,
    tracer: Tracer | None = None,
    watched: Watched | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of one step, by name of parameter: (clipped sum over the logical batch + noise) / batch.

    Under Poisson sampling the divisor is the expected batch, a constant: the actual one would tell how many examples
    were drawn. A method's penalty does not look at the data: its gradient is added after the noise. What a method
    makes of the released gradient (`release`) spends no privacy.

    Args:
        job: What trains.
        indices: The examples of the logical batch.
        streams: "noise", and "gates" for what a method draws for a step.
        tally: Counts the physical batches.
        tracer: Takes down the sums; None for nobody.
        watched: What trains, if that is known already.

    Raises:
        Missing: One example alone does not fit into memory.
    """
    gates = streams["gates"]
    assert isinstance(gates, torch.Generator)
    job.method.begin_step(job.backbone, gates)
    size = job.plan.batch if job.plan.sampling == "poisson" else len(indices)
    with memory_named(job, indices):
        mean = noised_sum(
            job.backbone.model,
            lambda cut: job.losses(job.batch(job.train, cut)),
            job.cut(job.train, indices),
            job.plan,
            streams["noise"],
            masks=job.backbone.masks,
            divisor=size,
            watch=lambda cut, losses, norms: tally.add(job.train.count(cut), losses, norms),
            before_noise=tracer.summed if tracer else None,
            watched=watched,
        )
    if job.plan.private:
        tally.release(mean, size)
        if tracer:
            tracer.released(mean, size)
    penalty = job.method.penalty(job.backbone)
    if penalty is not None:
        _add_gradient(mean, penalty, job.backbone.trained())
    return job.method.release(job.backbone, mean)


@contextmanager
def memory_named(job: Job, indices: Sequence[int]) -> Iterator[None]:
    """Turn an out-of-memory error within the block into one that names the run, the device and the longest example.

    Raises:
        Missing: The device is out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold tensors, and pytest holds its last failure
        longest = max((job.train.count([index]) for index in indices), default=0)
        where = f"{job.title}: {job.device} is out of memory"
        what = f"{where} with as few examples as can pass, of up to {longest} tokens"
        raise Missing(f"{what}: end what else uses it, or take a device with more") from None


def _add_gradient(mean: dict[str, Tensor], penalty: Tensor, trained: dict[str, nn.Parameter]) -> None:
    if penalty.requires_grad:
        found = torch.autograd.grad(penalty, list(trained.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(trained, found, strict=True):
            mean[name] += gradient
