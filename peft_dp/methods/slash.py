"""SLaSh: one vector, randomly projected into a shift of every layer (Gupta et al. 2023, section 3).

z in R^d trains, W_l in R^{d x h} is drawn once for each layer and stays, and the layer becomes
LayerNorm(dropout(dense(x)) + residual + z W_l), the same shift at every position. The shift sits on the
dense layer's output, before the dropout, which is off in all of the paper's runs.
Count: d, whatever the model.

The paper (appendix B.2) prints U(+-1 / sqrt(12 d)), which has not the variance 1/d that it states; the released
code's U(+-sqrt(3 / d)) has, and is used. The code's W = I needs d = h; here any d will do: the
identity is cut or filled up with zeros, so that the first min(d, h) coordinates of every layer shift by z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peft_dp import validate
from peft_dp.models.backbone import Backbone
from peft_dp.models.packing import over_tokens

INITS = ("normal", "uniform", "zero", "identity")
_ROLES = {"output": "output", "intermediate": "intermediate", "attention": "attention_norm"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size and place of the shifts.

    Attributes:
        size: Length d of z.
        position: "output", inside the sum before the layer's last LayerNorm; "intermediate", before the
            GELU; "attention", after the attention block's LayerNorm (Table 7).
        init: "normal" or "uniform" for z and all W_l, of variance 1/d; "zero" for z = 0 and
            normal W_l; "identity" for normal z and W_l = I (Table 8).
        projections: "kept" holds the W_l in memory; "regenerated" draws the same values at each use.
    """

    size: int
    position: Literal["output", "intermediate", "attention"] = "output"
    init: Literal["normal", "uniform", "zero", "identity"] = "normal"
    projections: Literal["kept", "regenerated"] = "kept"

    def __post_init__(self) -> None:
        validate.positive(size=self.size)
        validate.known("position", self.position, _ROLES)
        validate.known("init", self.init, INITS)
        validate.known("projections", self.projections, ("kept", "regenerated"))


EXAMPLE = Config(size=8)
STARTS_ELSEWHERE = "z is random; with init 'zero' it would start as pretrained"


def draw(shape: tuple[int, ...], size: int, init: str, rng: torch.Generator) -> Tensor:
    """Random values of mean 0 and variance 1 / size: uniform, or else normal."""
    if init == "uniform":
        return (2 * torch.rand(shape, generator=rng) - 1) * math.sqrt(3 / size)
    return torch.randn(shape, generator=rng) / math.sqrt(size)


def shared(backbone: Backbone, size: int, init: str, rng: torch.Generator) -> nn.Parameter:
    """A new z [d], in the backbone's type and on its device."""
    z = torch.zeros(size) if init == "zero" else draw((size,), size, init, rng)
    return nn.Parameter(z.to(backbone.embeddings_norm.get_parameter("weight")))


class Projection(nn.Module):
    """z W of a fixed W [d, h], kept in memory or drawn again from its own seed at each use."""

    kept: Tensor | None

    def __init__(self, z: nn.Parameter, width: int, init: str, *, keep: bool, rng: torch.Generator) -> None:
        super().__init__()
        self.shape, self.init = (len(z), width), init
        self.seed = int(torch.randint(2**62, (), generator=rng))
        self.register_buffer("kept", self.matrix(z) if keep else None, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Shift [h] of z [d], or [B, h] of [B, d]."""
        if self.kept is not None:
            return z @ self.kept
        shift: Tensor = _Regenerated.apply(z, self)  # type: ignore[no-untyped-call]
        return shift

    def matrix(self, like: Tensor) -> Tensor:
        """W drawn from its seed, in the type and on the device of a tensor."""
        if self.init == "identity":
            return torch.eye(*self.shape).to(like)
        # On the CPU wherever the model is: a GPU's generator gives other values.
        return draw(self.shape, self.shape[0], self.init, torch.Generator().manual_seed(self.seed)).to(like)


class _Regenerated(torch.autograd.Function):
    """z W without holding W between the forward and the backward pass."""

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
        """Adds the shift to the site's bias."""
        site.get_parameter("bias").add_(self.projection(self.z))


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Shifts every layer by its projection of one new z."""
    z = shared(backbone, config.size, config.init, rng)
    for site in backbone.sites(_ROLES[config.position]):
        width, keep = len(site.get_parameter("bias")), config.projections == "kept"
        backbone.add(site, "slash", _Shift(z, Projection(z, width, config.init, keep=keep, rng=rng)))
