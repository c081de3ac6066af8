"""Peak memory of a run, by the allocator's own count.

On CUDA it is `max_memory_allocated` of the whole run. A CPU has no such counter, and the resident size of a process
does not tell methods apart (freed memory stays with it), so the figure is put together: weights + optimiser state + the
peak of what torch's CPU allocator handed out during one gradient step on the run's longest examples.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch

from peft_dp import rng
from peft_dp.training.gradient import noised_mean
from peft_dp.training.job import Job
from peft_dp.training.tally import Tally


def step_bytes(job: Job) -> int:
    """Return the peak bytes of one gradient step beyond the weights; doubles as the warm-up, and changes nothing.

    The step has the run's longest examples; another step's physical batches may hold more of them, of as many tokens.
    """
    order = sorted(range(len(job.train)), key=lambda index: -job.train.lengths[index])
    job.backbone.model.train()

    def step() -> None:
        noised_mean(job, order[: job.plan.batch], rng.of_steps(0, job.device), Tally(job.device))

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return peak_bytes(step, job.device)


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Return the peak bytes that a step allocates on a device beyond what was held before it."""
    gc.collect()  # else what earlier runs left behind may be freed now and count against the step
    if device == "cuda":
        step()  # what cuBLAS takes at its first product and keeps is no step's
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - held
    # Kineto greets on stderr at each start unless it is told not to before its first.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # torch.profiler's own would make a Python object of each event, which takes longer than the step.
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        step()
    live = peak = 0
    events = profile.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def forget_peak(device: str) -> None:
    """Have the count of a CUDA device's allocator start anew."""
    if device == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats()


def peak_of_run(device: str) -> int:
    """Return the most bytes that were allocated on a CUDA device since `forget_peak`; 0 on a CPU, which does not count.

    Seeds that train together share the peak of all.
    """
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def weight_bytes(job: Job) -> int:
    """Return the bytes of the model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*job.backbone.model.parameters(), *job.backbone.model.buffers()))
