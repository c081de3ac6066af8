"""RGP: private training of whole weights through carriers of their gradients (Yu et al. 2021, arXiv 2106.09352).

Beside a weight W [out, in] stand L [out, r] with orthonormal columns and R [r, in] with orthonormal rows. W is
reparametrised as L R + (W - L R), the second term held fixed: no output changes, L gets the gradient G R^T and R gets
L^T G, where G is W's own gradient. These small gradients, and the head's, are clipped and noised; from them comes W's

    dL R + L dR - L L^T dL R,

the projection of G on the matrices with the columns of L or the rows of R, and the optimiser updates W with it. At each
step L and R come from W's update so far, W_t - W_0, by a power iteration, at the first step at random: they look at
released weights only, so no privacy is spent.

The figures that SLaSh (Gupta et al. 2023, table 6) cites are those that the README of the authors' code for RoBERTa
gives, at epsilon 8. There the carriers come from W_t itself (`source: "weight"`), rank is 1 and clip 10, and biases,
LayerNorms and embeddings stay frozen, as here. Unlike here, query, key and value share carriers as one matrix, the
head's gradients are divided by 10 before the clip, and L L^T dL R is added, which is not the projection.

Why W is frozen: the method avoids a gradient of W for each example. So the carriers train, and `Backbone.count` counts
them, r (in + out) per weight; `Backbone.updates` names the weights, which the optimiser moves and `save` writes. Steps
on the carriers alone change no output.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from peft_dp.methods._base import Method
from peft_dp.methods._common import LINEAR
from peft_dp.models.backbone import Backbone


class Config(Method):
    """Size and origin of the carriers.

    Attributes:
        rank: Columns of L and rows of R, at most those that a weight has.
        iterations: Iterations of the power method at each step.
        source: Where L and R come from: the weight's "update" since the start, or the "weight".
    """

    rank: PositiveInt
    iterations: PositiveInt = 1
    source: Literal["update", "weight"] = "update"

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Add carriers to every linear weight of the layers."""
        backbone.packs = False  # in private training each example's rows have their own carriers
        moving = {id(parameter) for parameter in backbone.head}
        for role in LINEAR:
            for site in backbone.sites(role):
                weight = site.get_parameter("weight")
                backbone.add(site, "rgp", Branch(weight, self, rng))
                moving.add(id(weight))
        backbone.updates = {name for name, p in backbone.model.named_parameters() if id(p) in moving}

    def begin_step(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Renew the carriers from the weights as they are."""
        for name, branch in _branches(backbone).items():
            branch.renew(backbone.model.get_parameter(name), rng)

    def release(self, backbone: Backbone, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the weights and the head, from those of the carriers and the head."""
        found = {name: gradient for name, gradient in gradients.items() if name in backbone.updates}
        for name, branch in _branches(backbone).items():
            path = name.removesuffix("weight") + "rgp"
            found[name] = branch.weight_gradient(gradients[f"{path}.left"], gradients[f"{path}.right"])
        return found


EXAMPLE = Config(rank=2)


class Branch(nn.Module):
    """The carriers of a linear layer's gradient, which add nothing to its output."""

    example_axis = True

    def __init__(self, weight: Tensor, config: Config, rng: torch.Generator) -> None:
        super().__init__()
        out, width = weight.shape
        rank = min(config.rank, out, width)
        self.iterations = config.iterations
        self.left = nn.Parameter(_orthonormal(torch.randn(out, rank, generator=rng)).to(weight))
        self.right = nn.Parameter(_orthonormal(torch.randn(width, rank, generator=rng)).to(weight).mT.contiguous())
        start = weight.detach().clone() if config.source == "update" else weight.new_zeros(())
        self.start: Tensor
        self.register_buffer("start", start, persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the output [B, T, out] as it was, with a gradient for L and R.

        The gradient of the input x [B, T, in] is that of W alone: W has L R in it already.
        """
        carried = x.detach() @ self.right.mT @ self.left.mT
        return y + (carried - carried.detach())

    def fold(self, site: nn.Module) -> None:
        """Leave the weight, which holds all that training gave it."""

    @torch.no_grad()
    def renew(self, weight: Tensor, rng: torch.Generator) -> None:
        """Set L and R to about the leading singular directions of the update, or of the weight."""
        target = weight - self.start
        left, right = (
            _orthonormal(torch.randn(p.shape, generator=rng, device=p.device, dtype=p.dtype))
            for p in (self.left, self.right.mT)
        )
        if target.any():
            for _ in range(self.iterations):
                left = _orthonormal(target @ right)
                right = _orthonormal(target.mT @ left)
        self.left.copy_(left)
        self.right.copy_(right.mT)

    @torch.no_grad()
    def weight_gradient(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the weight's gradient [out, in] from those of L [out, r] and R [r, in]."""
        return (left - self.left @ (self.left.mT @ left)) @ self.right + self.left @ right


def _branches(backbone: Backbone) -> dict[str, Branch]:
    """Return name of a weight -> the branch with its carriers."""
    modules = backbone.model.named_modules()
    return {path.removesuffix("rgp") + "weight": module for path, module in modules if isinstance(module, Branch)}


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis
