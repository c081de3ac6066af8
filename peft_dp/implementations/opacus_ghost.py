"""Opacus by ghost clipping: norms in a first backward pass, the clipped sum in a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from peft_dp.implementations._opacus import Opacus


class Ghost(Opacus):
    """Norms without gradients, then the losses weighted by the clip factors."""

    mode = "ghost"

    def norms(self, module: Any, trained: Sequence[nn.Parameter]) -> Tensor:
        """Return the norms that the first pass has found."""
        found: Tensor = module.per_sample_gradient_norms
        return found


IMPLEMENTATION = Ghost()
