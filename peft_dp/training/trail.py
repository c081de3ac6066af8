"""What a training leaves behind; apart from the loop, so that reading a record does not wait for torch.

The trail says what each epoch gave. The trace says where two runs of one spec and seed could part; it is exact, and so
of a private run it is not private.
"""

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
        loss: Mean loss of the examples seen, before each step; None where it is not finite or not to be told.
        clipped: Share of the examples whose gradient was longer than the clip; None without privacy, or likewise.
        examples: Examples seen; where that is not to be told, those expected.
        tokens: Tokens seen, padding not counted; 0 where that is not to be told.
        steps: Updates made.
        seconds: Wall time by a monotonic clock.
        processor_seconds: Processor time of this process, which other load does not stretch.
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
    processor_seconds: float = 0.0
    noise: float | None = None
    released: Amount = 0


Sketch = tuple[float, float]
"""Norm of some tensors, and their sum with alternating signs: equal where they are, and seldom else."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step gave, in the order in which it came about; None where a run has no such thing or it is not finite.

    Attributes:
        batch: Hash of the logical batch's examples, in order.
        tokens: Tokens of the logical batch.
        loss: Mean loss of its examples.
        norms: Mean norm of their gradients before clipping; None without privacy.
        clipped: Number of gradients that were clipped; None without privacy.
        summed: The sum of the gradients, clipped in a private run, without noise.
        released: The same with the noise; None without privacy.
        given: What the optimiser is given: divided by the batch, with a method's penalty.
        update: By how much the values changed whose gradient is no rounding error, as that of key biases is.
    """

    batch: str
    tokens: Amount
    loss: float | None
    norms: float | None
    clipped: Amount | None
    summed: Sketch | None
    released: Sketch | None
    given: Sketch | None
    update: Sketch | None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Where two runs could part.

    Attributes:
        streams: Stream of random numbers that the run draws from -> hash of its first integers.
        order: Hash of all logical batches.
        initial: Sketch of what the optimiser will update, before the first step.
        steps: The first steps.
        answers: What the trained model says of each dev example: classes or tags as one string of digits, or scores.
    """

    streams: dict[str, str]
    order: str
    initial: Sketch | None
    steps: list[Step]
    answers: str | list[float] = ""
