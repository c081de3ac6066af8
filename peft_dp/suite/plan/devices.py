"""What devices can do at most: the peak rates and the memory by which the plan reckons."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from peft_dp import validate


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a device can do at most.

    Attributes:
        fp32: FLOP per second in float32 without tensor cores, as torch multiplies unless told otherwise.
        bf16: FLOP per second in bfloat16, without sparsity.
        memory: Bytes.
    """

    fp32: float
    bf16: float
    memory: float


GPUS = {
    "A100": Device(fp32=19.5e12, bf16=312e12, memory=80e9),  # NVIDIA A100 80GB datasheet, 2021
    "H100": Device(fp32=67e12, bf16=989e12, memory=80e9),  # NVIDIA H100 SXM datasheet, 2023
    "H200": Device(fp32=67e12, bf16=989e12, memory=141e9),  # NVIDIA H200 SXM datasheet, 2024
    "RTX8000": Device(fp32=16.3e12, bf16=16.3e12, memory=48e9),  # NVIDIA Quadro RTX 8000 datasheet; has no bfloat16
}
"""Part of a GPU's name, as in records but without spaces -> what it can do."""

CPU = "cpu"
"""The name of this machine's processor, with the threads that torch has now."""

CORE = (150e9, 600e9)
"""FLOP per second that one of its threads is assumed to do, in float32 (two 512-bit units at 2.4 GHz) and bfloat16."""


def limits(name: str) -> Device:
    """Return what a device can do at most; for this machine's processor the rates are assumed.

    Raises:
        ValueError: An unknown device.
    """
    if name == CPU:
        import torch

        threads = torch.get_num_threads()
        return Device(fp32=threads * CORE[0], bf16=threads * CORE[1], memory=_memory())
    validate.known("device", name, [CPU, *GPUS])
    return GPUS[name]


def _memory() -> float:
    """Return the bytes of this machine's memory; infinity where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf
