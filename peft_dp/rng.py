"""One seed, five streams that never touch.

Why: drawing one more dropout mask must not change a batch, and a helper that
seeds the global generator must not repeat the noise (reliability: the same
"seeds" once gave one noise vector).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy
import torch
from torch import Tensor

Stream = Literal["initialisation", "batches", "dropout", "gates", "noise"]
"""What is drawn: head and branches; the order of batches; dropout; what a method draws for a step; noise."""
BLOCK = 2**20
"""Values of noise that are drawn at once: a bound on memory. Another number gives other noise."""


def seed(run_seed: int, stream: Stream) -> int:
    """The 63-bit seed of one stream of a run."""
    digest = hashlib.sha256(f"{run_seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(run_seed: int, stream: Stream, device: str = "cpu") -> torch.Generator:
    """A generator of its own for one stream of a run."""
    return torch.Generator(device).manual_seed(seed(run_seed, stream))


def of_steps(run_seed: int, device: str = "cpu") -> dict[str, torch.Generator]:
    """The streams that steps draw from on the run's device: "gates" and "noise"."""
    return {"gates": generator(run_seed, "gates", device), "noise": generator(run_seed, "noise", device)}


class Entropy:
    """Draws from the operating system's entropy: secret, and never the same twice. Takes no seed."""

    def manual_seed(self, seed: int) -> None:
        """Refuses: whoever knows the seed of a noise can take the noise away."""
        raise ValueError(f"secure noise takes no seed, but {seed} was given: leave the seed out, or take seeded noise")

    def get_state(self) -> Tensor:
        """Return nothing: there is no state, and a run that goes on draws anew."""
        return torch.empty(0, dtype=torch.uint8)

    def set_state(self, state: Tensor) -> None:
        """Take what `get_state` returned."""

    def uniform(self, size: int) -> Tensor:
        """Values [size] in (0, 1), float64, of 52 random bits each."""
        bits = numpy.frombuffer(os.urandom(8 * size), dtype=numpy.uint64) >> numpy.uint64(12)
        values: Tensor = torch.from_numpy((bits + 0.5) * 2.0**-52)
        return values

    def normal(self, shape: torch.Size, std: float) -> Tensor:
        """Normal values in float64, each half the sum of four (Box and Muller 1958).

        Four, for the bits of a single one tell of the sum it is added to (Holohan and Braghin 2021, arXiv 2107.10138).
        """
        total = torch.zeros(shape, dtype=torch.float64)
        for _ in range(4):
            radius, angle = self.uniform(2 * shape.numel()).view(2, *shape)
            total += (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()
        return total.mul_(std / 2)


Source = torch.Generator | Entropy
"""Where draws come from: a seeded generator, or the operating system."""


def chances(source: Source, size: int) -> Tensor:
    """Uniform values [size]."""
    return source.uniform(size) if isinstance(source, Entropy) else torch.rand(size, generator=source)


def permutation(source: Source, size: int) -> Tensor:
    """Return the numbers below `size` in random order."""
    return source.uniform(size).argsort() if isinstance(source, Entropy) else torch.randperm(size, generator=source)


def normal(source: Source, like: Sequence[Tensor], std: float) -> Iterator[Tensor]:
    """Yield normal values in the shape and on the device of each tensor.

    A seeded source gives one flat draw over all values, block by block, so that only their order decides what each
    gets and not the tensors that they lie in. It is made in the widest type of the tensors.
    """
    if isinstance(source, Entropy):
        yield from (source.normal(tensor.shape, std).to(tensor) for tensor in like)
        return
    left = sum(tensor.numel() for tensor in like)
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in like) else torch.float32
    block = torch.empty(0)
    for tensor in like:
        values = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        flat, at = values.view(-1), 0
        while at < len(flat):
            if not len(block):
                block = torch.normal(0.0, std, (min(left, BLOCK),), generator=source, device=tensor.device, dtype=dtype)
                left -= len(block)
            part, block = block[: len(flat) - at], block[len(flat) - at :]
            flat[at : at + len(part)] = part
            at += len(part)
        yield values
