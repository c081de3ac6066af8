"""Compacter: adapters whose weights are sums of Kronecker products (Karimi Mahabadi et al. 2021, section 3).

Houlsby's two adapters per layer, f + up(gelu(down(f))), have the weights

    W = sum over i of A_i (x) s_i t_i,   i = 1 .. n,

where A_i is n x n and shared by all adapters, and s_i t_i is of low rank: for down, s_i is d/n x r and t_i is r x m/n;
for up the other way round. Each adapter has its own biases. Count: n^3 + 2 L (2 r (d + m) + m + d).

A_i starts at N(0, 1e-4), s_i and t_i start uniform as by Glorot with gain sqrt 2, biases at 0: close to the pretrained
model, not equal to it. LayerNorms stay frozen, where the authors train them.

The private Compacter of SLaSh's Table 6 is by Yu et al. 2022 (n = 8, m = 96 in their example). Their released code
differs: each projection has its own A_i, there are no biases, all factors are Glorot-normal.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from peft_dp.methods._base import Method
from peft_dp.models.backbone import Backbone


class Config(Method):
    """Size of the adapters.

    Attributes:
        n: Number of Kronecker products; divides the bottleneck and the model's width.
        bottleneck: Width m between the two projections.
        rank: Rank r of the right factors.
    """

    starts_elsewhere = "its factors are random on both sides, so each bottleneck adds a little"

    n: PositiveInt
    bottleneck: PositiveInt
    rank: PositiveInt = 1

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.bottleneck % self.n:
            raise ValueError(f"bottleneck must be a multiple of n = {self.n}, not {self.bottleneck}")
        return self

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Put two adapters into every layer.

        Raises:
            ValueError: n does not divide the model's width.
        """
        backbone.packs = False  # in private training each example's rows have their own factors
        width, n = backbone.width, self.n
        if width % n:
            raise ValueError(f"n must divide the model's width {width}, but is {n}")
        like = backbone.embeddings_norm.get_parameter("weight")
        rules = nn.Parameter(1e-4 * torch.randn(n, n, n, generator=rng).to(like))
        for pair in zip(backbone.sites("attention_output"), backbone.sites("output"), strict=True):
            for site in pair:
                backbone.add(site, "compacter", _Adapter(rules, width, self, rng))


EXAMPLE = Config(n=2, bottleneck=4)


class _Projection(nn.Module):
    """Computes x W + b from the factors of W, which is never formed."""

    example_axis = True

    def __init__(self, rules: nn.Parameter, inputs: int, outputs: int, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        n = len(rules)
        self.rules = rules  # [n, n, n]
        self.left = nn.Parameter(_glorot(n, inputs // n, rank, rng).to(rules))
        self.right = nn.Parameter(_glorot(n, rank, outputs // n, rng).to(rules))
        self.bias = nn.Parameter(rules.new_zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.reshape(*x.shape[:-1], self.rules.shape[-1], -1)  # [B, T, n, inputs / n]
        # Left, rules, right: no other order has fewer intermediate values.
        inner = torch.einsum("...tap,...ipr->...tair", blocks, self.left)
        inner = torch.einsum("...tair,...iab->...tbir", inner, self.rules)
        return torch.einsum("...tbir,...irq->...tbq", inner, self.right).flatten(-2) + self.bias[..., None, :]


class _Adapter(nn.Module):
    def __init__(self, rules: nn.Parameter, width: int, config: Config, rng: torch.Generator) -> None:
        super().__init__()
        self.down = _Projection(rules, width, config.bottleneck, config.rank, rng)
        self.up = _Projection(rules, config.bottleneck, width, config.rank, rng)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        inner: Tensor = self.up(functional.gelu(self.down(y), approximate="tanh"))
        return y + inner


def _glorot(n: int, rows: int, columns: int, rng: torch.Generator) -> Tensor:
    bound = math.sqrt(2) * math.sqrt(6 / (rows + columns))
    return (2 * torch.rand(n, rows, columns, generator=rng) - 1) * bound
