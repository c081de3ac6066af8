"""Several processes on one machine: how many, and what each may use."""

from __future__ import annotations

import heapq
import os
import re
import subprocess
from collections.abc import Sequence
from itertools import takewhile
from typing import TypeVar

T = TypeVar("T")

NAMED = re.compile(r"\d+|(GPU|MIG)-\S+")
"""What `CUDA_VISIBLE_DEVICES` may name; CUDA stops reading at what it does not know, such as -1."""


def visible() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; else all that nvidia-smi lists."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return []
        names = ",".join(done.stdout.split())
    return list(takewhile(NAMED.fullmatch, (name.strip() for name in names.split(","))))


def number() -> int:
    """One worker a GPU; without any, one a core, since several workers of one thread beat one of several."""
    return len(visible()) or _cores()


def settings(index: int, workers: int) -> dict[str, str]:
    """The environment of one of several workers, to be set before it loads torch.

    Args:
        index: Its number, from 0.
        workers: How many there are; they share the GPUs and the cores.
    """
    share = max(1, _cores() // workers)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(share, int(asked)) if asked.isdigit() else share
    found = {"PEFT_DP_WORKERS": f"{workers}", "OMP_NUM_THREADS": f"{threads}"}
    if gpus := visible():
        found["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    return found


def dealt(tests: Sequence[T], workers: int) -> list[T]:
    """An order for pytest-xdist in which no long test waits behind another, from the longest first.

    It gives each worker the next two to begin with, and then one for each that ends: so each begins with one of the
    longest, and has one of the shortest in store.
    """
    if len(tests) < 2 * workers:
        return list(tests)
    pairs = zip(tests[:workers], reversed(tests[-workers:]), strict=True)
    return [*(test for pair in pairs for test in pair), *tests[workers:-workers]]


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last of some tests ends, that take so long and are given out in this order as pytest-xdist does it."""
    if len(seconds) < 2 * workers:
        return max(sum(seconds[worker::workers]) for worker in range(workers))
    busy = [(seconds[2 * worker], seconds[2 * worker + 1]) for worker in range(workers)]
    heapq.heapify(busy)
    for more in seconds[2 * workers :]:
        now, stored = busy[0]
        heapq.heapreplace(busy, (now + stored, more))
    return max(now + stored for now, stored in busy)


def side_by_side() -> int:
    """How many workers share this machine, this one among them."""
    return int(os.environ.get("PEFT_DP_WORKERS", "1"))


def _cores() -> int:
    # macOS knows no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
