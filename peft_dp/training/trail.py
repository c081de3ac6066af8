"""The trail of a training; apart from the loop, so that reading a record does not wait for torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Amount = Annotated[int, Field(ge=0, le=2**53)]
"""A number that a float holds too."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        loss: Mean loss of the examples seen, before each step; None where it is not finite.
        clipped: Share of the examples whose gradient was longer than the clip; None without privacy.
        examples: Examples seen.
        tokens: Tokens seen, padding not counted.
        steps: Updates made.
        seconds: Wall time by a monotonic clock.
        noise: Root mean square of the values of the noised sums, in clips: the noise multiplier, and what examples add
            to it; None without privacy. It is computed from what is released, so it tells nothing more of the data.
        released: Number of those values, over all steps.
    """

    loss: float | None
    clipped: float | None
    examples: Amount
    tokens: Amount
    steps: Amount
    seconds: float
    noise: float | None = None
    released: Amount = 0
