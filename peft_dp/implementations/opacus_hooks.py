"""Opacus by hooks: a gradient for each example, kept for all parameters until it is clipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_dp.implementations._opacus import Opacus


class Hooks(Opacus):
    """Per-example gradients, then clipping in the optimiser."""

    mode = "hooks"

    def norms(self, module: Any, trained: Sequence[nn.Parameter]) -> Tensor:
        """Return the norms of what the hooks have put beside the parameters."""
        squares = [parameter.grad_sample.flatten(1).square().sum(1) for parameter in trained]  # type: ignore[attr-defined]
        return torch.stack(squares).sum(0).sqrt()


IMPLEMENTATION = Hooks()
