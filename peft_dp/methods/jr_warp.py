"""JR-WARP_1: one prompt, in every layer a random projection of one vector (Gupta et al. 2023, section 3, appendix A).

The first layer's input gets z W_1 as a position of its own, before the tokens, as WARP's prompt; at that position the
input of every later layer gets z W_l added to what it holds. z in R^d trains; z and W_l are those of SLaSh. Count: d.

The released code finds the read-out's place in the input without the prompt, but reads the states with it: "[MASK]"
reads the token before the mask, "[CLS]" the prompt. `readout="as_released"` does that too; the paper's definition is
the default. The released code also cuts inputs to 511 tokens, which is not needed, as the prompt takes no position of
the embeddings.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from peft_dp.methods._base import Method
from peft_dp.methods._common import prepend
from peft_dp.methods.slash import Init, Projection, shared
from peft_dp.models.backbone import Backbone


class Config(Method):
    """Size of the shared vector.

    Attributes:
        size: Length d of z.
        init: How z and W_l start, as in SLaSh.
        readout: "correct", or "as_released" for the read-out one position too early.
    """

    starts_elsewhere = "the prompt is random, and every token attends to it"

    size: PositiveInt
    init: Init = "normal"
    readout: Literal["correct", "as_released"] = "correct"

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Put the prompt into every layer's input."""
        z = shared(backbone, self.size, self.init, rng)
        first, *later = (Projection(z, backbone.width, self.init, keep=True, rng=rng) for _ in backbone.layers)
        for norm, projection in zip(backbone.sites("output_norm"), later, strict=False):
            backbone.add(norm, "jr_warp", _Push(z, projection))
        prepend(backbone, "jr_warp", _Prompt(z, first), 1, cut_first=self.readout == "correct")


EXAMPLE = Config(size=8)


class _Projected(nn.Module):
    example_axis = True

    def __init__(self, z: nn.Parameter, projection: Projection) -> None:
        super().__init__()
        self.z = z
        self.projection = projection

    def vector(self) -> Tensor:
        """Return z W [1, h], or one per example [B, 1, h]."""
        projected: Tensor = self.projection(self.z)[..., None, :]
        return projected


class _Prompt(_Projected):
    def forward(self) -> Tensor:
        return self.vector()


class _Push(_Projected):
    """Adds z W to the first position."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y[:, :1] + self.vector(), y[:, 1:]], dim=1)
