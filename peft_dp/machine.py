"""What a run may use of a machine: folders, a device, GPUs and cores."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path


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


def side_by_side() -> int:
    """How many workers share this machine, this one among them."""
    return int(os.environ.get("PEFT_DP_WORKERS", "1"))


def _cores() -> int:
    # macOS knows no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
