"""SLaSh: one vector, randomly projected into a shift of every layer (Gupta et al. 2023, section 3).

z in R^d trains, W_l in R^{d x h} is drawn once for each layer and stays, and the layer becomes
LayerNorm(dropout(dense(x)) + residual + z W_l), with the same shift at every position. The shift sits on the dense
layer's output, before the dropout, which is off in all of the paper's runs. Count: d, whatever the model.

The paper (appendix B.2) prints U(+-1 / sqrt(12 d)), whose variance is not the 1/d that it states; the variance of the
released code's U(+-sqrt(3 / d)) is, so this is used. The code's W = I needs d = h; here any d will do: the identity is
cut or filled up with zeros, so that the first min(d, h) coordinates of every layer shift by z.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from peft_dp.methods._base import Method
from peft_dp.methods._common import draw
from peft_dp.models.backbone import Backbone
from peft_dp.models.packing import over_tokens

Init = Literal["normal", "uniform", "zero", "identity"]
_ROLES = {"output": "output", "intermediate": "intermediate", "attention": "attention_norm"}


class Config(Method):
    """Size and place of the shifts.

    Attributes:
        size: Length d of z.
        position: "output", inside the sum before the layer's last LayerNorm; "intermediate", before the
            GELU; "attention", after the attention block's LayerNorm (Table 7).
        init: "normal" or "uniform" for z and all W_l, of variance 1/d; "zero" for z = 0 and
            normal W_l; "identity" for normal z and W_l = I (Table 8).
        projections: "kept" holds the W_l in memory; "regenerated" draws the same values at each use.
    """

    starts_elsewhere = "z is random; with init 'zero' it would start as pretrained"

    size: PositiveInt
    position: Literal["output", "intermediate", "attention"] = "output"
    init: Init = "normal"
    projections: Literal["kept", "regenerated"] = "kept"

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Shift every layer by its projection of one new z."""
        z = shared(backbone, self.size, self.init, rng)
        for site in backbone.sites(_ROLES[self.position]):
            width, keep = len(site.get_parameter("bias")), self.projections == "kept"
            backbone.add(site, "slash", _Shift(z, Projection(z, width, self.init, keep=keep, rng=rng)))


EXAMPLE = Config(size=8)


def shared(backbone: Backbone, size: int, init: str, rng: torch.Generator) -> nn.Parameter:
    """Return a new z [d] in the backbone's type and on its device."""
    z = torch.zeros(size) if init == "zero" else draw((size,), size, init, rng)
    return nn.Parameter(z.to(backbone.embeddings_norm.get_parameter("weight")))


class Projection(nn.Module):
    """Computes z W for a fixed W [d, h], kept in memory or drawn again from its own seed at each use."""

    kept: Tensor | None

    def __init__(self, z: nn.Parameter, width: int, init: str, *, keep: bool, rng: torch.Generator) -> None:
        super().__init__()
        self.shape, self.init = (len(z), width), init
        self.seed = int(torch.randint(2**62, (), generator=rng))
        self.register_buffer("kept", self.matrix(z) if keep else None, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Return the shift [h] of z [d], or [B, h] of [B, d]."""
        if self.kept is not None:
            return z @ self.kept
        shift: Tensor = _Regenerated.apply(z, self)  # type: ignore[no-untyped-call]
        return shift

    def matrix(self, like: Tensor) -> Tensor:
        """Return W, drawn from its seed, in the type and on the device of a tensor."""
        if self.init == "identity":
            return torch.eye(*self.shape).to(like)
        # On the CPU wherever the model is: a GPU's generator gives other values.
        return draw(self.shape, self.shape[0], self.init, torch.Generator().manual_seed(self.seed)).to(like)


class _Regenerated(torch.autograd.Function):
    """Computes z W without holding W between the forward and the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, projection: Projection) -> Tensor:
        ctx.projection = projection
        return z @ projection.matrix(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.projection.matrix(gradient).mT, None


class _Shift(nn.Module):
    example_axis = True

    def __init__(self, z: nn.Parameter, projection: Projection) -> None:
        super().__init__()
        self.z = z
        self.projection = projection

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shifted: Tensor = y + over_tokens(self.projection(self.z), y)
        return shifted

    def fold(self, site: nn.Module) -> None:
        """Add the shift to the site's bias."""
        site.get_parameter("bias").add_(self.projection(self.z))
