"""What a run may use of a machine: folders, a device, GPUs and cores."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from peft_dp.validate import short


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where this machine keeps things; no part of a spec, since the result must not depend on it.

    Attributes:
        data: Folder of data sets; None for generated data and the hub.
        backbones: Folder of pretrained models; None for packages and the hub.
        device: "auto" (CUDA if there is any), "cpu" or "cuda".
    """

    data: Path | None = None
    backbones: Path | None = None
    device: str = "auto"


_GPU_NAME = re.compile(r"\d+|(GPU|MIG)-\S+")
"""What `CUDA_VISIBLE_DEVICES` may name; CUDA stops reading at what it does not know, such as -1."""


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; else all that nvidia-smi lists.

    A machine without GPUs or without nvidia-smi has none.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return []
        names = ",".join(done.stdout.split())
    return list(takewhile(_GPU_NAME.fullmatch, (name.strip() for name in names.split(","))))


def default_workers() -> int:
    """Return how many workers to start: one per GPU; without GPUs, one per core.

    Several workers of one thread train small models faster than one worker of several threads.
    """
    return len(visible_gpus()) or _cores()


def worker_environment(index: int, workers: int) -> dict[str, str]:
    """Return the environment variables of one of several workers, to be set before it loads torch.

    Args:
        index: Number of the worker, from 0.
        workers: How many there are; they share the GPUs and the cores.
    """
    share = max(1, _cores() // workers)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(share, int(asked)) if asked.isdigit() else share
    variables = {"PEFT_DP_WORKERS": f"{workers}", "OMP_NUM_THREADS": f"{threads}"}
    if gpus := visible_gpus():
        variables["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    return variables


def worker_count() -> int:
    """Return how many workers share this machine, this process among them.

    Raises:
        ValueError: `PEFT_DP_WORKERS` is set, and is no number of workers.
    """
    asked = os.environ.get("PEFT_DP_WORKERS", "1")
    if not (asked.isascii() and asked.isdigit() and int(asked)):
        raise ValueError(f"PEFT_DP_WORKERS must be a whole number of at least 1, not {short(asked)}: unset it")
    return int(asked)


def _cores() -> int:
    # macOS knows no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
