"""The trail of a training; apart from the loop, so that reading a record does not wait for torch."""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    loss: float | None
    clipped: float | None
    examples: int
    tokens: int
    steps: int
    seconds: float
