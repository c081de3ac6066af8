"""transformers' Trainer with each logical batch in two physical ones, over which it accumulates gradients.

The loss is given to Trainer, as a part of the logical batch's mean: the models' own loss ignores the number of examples
that Trainer passes it, so that the sum of two means would be twice the gradient (tests/implementations).
"""

from __future__ import annotations

from peft_dp.implementations.trainer import Trainer


class Accumulated(Trainer):
    """Trainer over two physical batches per step."""

    parts = 2


IMPLEMENTATION = Accumulated()
