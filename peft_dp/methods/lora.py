"""LoRA: a product of two thin matrices beside a frozen weight (Hu et al. 2022, section 4.1).

A site's y = W x + b becomes y + (alpha / r) B A x with A [r, in] and B [out, r]:
r (in + out) trained values a site. A is Kaiming-uniform with a = sqrt(5), B is
0, so that the model starts as it was; there is no dropout on x. SLaSh (Gupta et
al. 2023, table 2) runs it on query and value with r = 1 and its library's default
alpha, 8. SPAFIT's LoRA-I is r = 64, alpha = 128 on query, key and value; its
LoRA-II has attention_output too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_dp import validate
from peft_dp.models.backbone import Backbone

SITES = ("query", "key", "value", "attention_output", "intermediate", "output")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size and place of the products.

    Attributes:
        rank: Rows of A.
        alpha: The product's factor is alpha / rank.
        sites: Roles of the linear layers that get one.
    """

    rank: int
    alpha: float
    sites: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        validate.positive(rank=self.rank, alpha=self.alpha)
        object.__setattr__(self, "sites", tuple(self.sites))
        for site in self.sites:
            validate.known("linear site", site, SITES)
        if not self.sites:
            raise ValueError(f"sites must name at least one of {', '.join(SITES)}")


EXAMPLE = Config(rank=2, alpha=4)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A new layer of the weight [out, in] and the bias [out]; made on no device, so that torch draws nothing."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


class Branch(nn.Module):
    """Adds (alpha / r) B A x to a linear layer's output."""

    def __init__(self, site: nn.Module, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__()
        weight = site.get_parameter("weight")  # [out, in]
        a = nn.init.kaiming_uniform_(torch.empty(rank, weight.shape[1]), a=math.sqrt(5), generator=rng)
        self.a = linear(a.to(weight))
        self.b = linear(weight.new_zeros(len(weight), rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The shifted output [B, T, out] of input x [B, T, in] and output y."""
        shifted: Tensor = y + self.scale * self.b(self.a(x))
        return shifted

    def fold(self, site: nn.Module) -> None:
        """Adds the product to the layer's weight."""
        site.get_parameter("weight").add_(self.b.weight @ self.a.weight, alpha=self.scale)


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Adds a product to each site of the roles."""
    for role in config.sites:
        for site in backbone.sites(role):
            backbone.add(site, "lora", Branch(site, config.rank, config.alpha, rng))
