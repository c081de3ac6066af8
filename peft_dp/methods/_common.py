"""What several methods are made of."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from peft_dp.models.backbone import Backbone

Linear = Literal["query", "key", "value", "attention_output", "intermediate", "output"]
LINEAR: tuple[Linear, ...] = get_args(Linear)
"""Roles of the linear maps of a layer."""
Share = Annotated[float, Field(gt=0, lt=1)]
"""A share of a whole, neither none of it nor all."""


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a new layer of the weight [out, in] and the bias [out]; made on no device, so that torch draws nothing."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


def transposed(site: nn.Module) -> bool:
    """Return whether a layer's weight is [in, out]: transformers' Conv1D, of which GPT-2 is made."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(site, Conv1D)


def size(site: nn.Module) -> tuple[int, int]:
    """Return the numbers of outputs and inputs of a linear layer."""
    outputs, inputs = site.get_parameter("weight").shape
    return (inputs, outputs) if transposed(site) else (outputs, inputs)


class LowRank(nn.Module):
    """LoRA's product of two thin matrices: adds (alpha / r) B A x to a linear layer's output (see `lora.py`)."""

    def __init__(self, site: nn.Module, rank: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__()
        weight, (outputs, inputs) = site.get_parameter("weight"), size(site)
        a = nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5), generator=rng)
        self.a = linear(a.to(weight))
        self.b = linear(weight.new_zeros(outputs, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the shifted output [B, T, out] of input x [B, T, in] and output y."""
        shifted: Tensor = y + self.scale * self.b(self.a(x))
        return shifted

    def fold(self, site: nn.Module) -> None:
        """Add the product to the layer's weight."""
        product = self.b.weight @ self.a.weight
        site.get_parameter("weight").add_(product.T if transposed(site) else product, alpha=self.scale)


def draw(shape: tuple[int, ...], size: int, init: str, rng: torch.Generator) -> Tensor:
    """Return random values of mean 0 and variance 1 / size: uniform, or else normal."""
    if init == "uniform":
        return (2 * torch.rand(shape, generator=rng) - 1) * math.sqrt(3 / size)
    return torch.randn(shape, generator=rng) / math.sqrt(size)


def prepend(backbone: Backbone, name: str, prompt: nn.Module, length: int, *, cut_first: bool = True) -> None:
    """Put what `prompt()` returns before the first layer's input, and cut the last layer's output back to T positions.

    Args:
        backbone: Changed in place; `prompt` becomes a child of its embeddings.
        name: Name of the child.
        prompt: Returns vectors [n, d] or [B, n, d].
        length: n.
        cut_first: Whether the prompt's positions are cut from the output, or else the last n.
    """

    def insert(embeddings: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([embeddings.get_submodule(name)().expand(len(output), -1, -1), output], dim=1)

    def attend(encoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        return args, kwargs if mask is None else kwargs | {"attention_mask": functional.pad(mask, (length, 0), value=1)}

    backbone.packs = False  # the prompt stands before each example
    backbone.embeddings.add_module(name, prompt)
    backbone.embeddings.register_forward_hook(insert)
    backbone.encoder.register_forward_pre_hook(attend, with_kwargs=True)
    backbone.add(backbone.sites("output_norm")[-1], name, _Cut(length, cut_first))


class _Cut(nn.Module):
    """Takes n of n + T positions away: the first, or else the last."""

    def __init__(self, length: int, first: bool) -> None:
        super().__init__()
        self.kept = slice(length, None) if first else slice(-length)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y[:, self.kept]
