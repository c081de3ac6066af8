"""JR-WARP_1: one prompt, in every layer a random projection of one vector (Gupta et al. 2023, section 3, appendix A).

The first layer's input gets z W_1 as a position of its own, before the tokens; at that position every later
layer's input gets z W_l added to what it holds. z in R^d trains; z and W_l start as in SLaSh. Count: d.

The released code finds the read-out's place in the input without the prompt, but reads the states with it:
"[MASK]" reads the token before the mask, "[CLS]" the prompt. `readout="as_released"` does that
too; the paper's definition is the default. The released code also cuts inputs to 511 tokens, which is not
needed, as the prompt takes no position of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from peft_dp import validate
from peft_dp.methods.slash import INITS, Projection, shared
from peft_dp.methods.warp import prepend
from peft_dp.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size of the shared vector.

    Attributes:
        size: Length d of z.
        init: Of z and W_l, as in SLaSh.
        readout: "correct", or "as_released" for the read-out one position too early.
    """

    size: int
    init: Literal["normal", "uniform", "zero", "identity"] = "normal"
    readout: Literal["correct", "as_released"] = "correct"

    def __post_init__(self) -> None:
        validate.positive(size=self.size)
        validate.known("init", self.init, INITS)
        validate.known("readout", self.readout, ("correct", "as_released"))


EXAMPLE = Config(size=8)
STARTS_ELSEWHERE = "the prompt is random, and every token attends to it"


class _Projected(nn.Module):
    example_axis = True

    def __init__(self, z: nn.Parameter, projection: Projection) -> None:
        super().__init__()
        self.z = z
        self.projection = projection

    def vector(self) -> Tensor:
        """The vector z W [1, h], or one for each example [B, 1, h]."""
        projected: Tensor = self.projection(self.z)[..., None, :]
        return projected


class _Prompt(_Projected):
    def forward(self) -> Tensor:
        return self.vector()


class _Push(_Projected):
    """Adds to the first position."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y[:, :1] + self.vector(), y[:, 1:]], dim=1)


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Puts the prompt into every layer's input."""
    z = shared(backbone, config.size, config.init, rng)
    first, *later = (Projection(z, backbone.width, config.init, keep=True, rng=rng) for _ in backbone.layers)
    for norm, projection in zip(backbone.sites("output_norm"), later, strict=False):
        backbone.add(norm, "jr_warp", _Push(z, projection))
    prepend(backbone, "jr_warp", _Prompt(z, first), 1, cut_first=config.readout == "correct")
