"""Adapters: narrow two-layer networks between the frozen layers.

- Houlsby et al. 2019, the Adapter of SLaSh (Gupta et al. 2023, section 3): two in each
  layer, on the output of the attention's and of the feed-forward block's last linear
  layer, before the residual sum and the LayerNorm: f + up(act(down(f))). Count: 2 L (2 d m + m + d).
- Pfeiffer et al. 2021 in sequence (AdapterHub's SeqBn; Khan and Scheder-Bieschin, section 3):
  one in each layer. From the feed-forward block's output f and its input x, y = LN(f + x)
  and the layer gives LN(up(act(down(y))) + f + x), the same frozen LN both times.
  Count: L (2 d m + m + d).

Weights are N(0, 0.02) both down and up, biases 0: close to the pretrained model at the
start, not equal to it. Where the backbone's dropout is on it comes after a Houlsby
adapter, not before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from peft_dp import validate
from peft_dp.methods.lora import linear
from peft_dp.models.backbone import Backbone

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "swish": functional.silu}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where adapters are and how wide.

    Attributes:
        placement: "houlsby" or "pfeiffer".
        bottleneck: Width m between the two layers.
        activation: "relu" (Khan and Scheder-Bieschin) or "swish" (SLaSh).
    """

    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    bottleneck: int
    activation: Literal["relu", "swish"] = "relu"

    def __post_init__(self) -> None:
        validate.known("placement", self.placement, ("houlsby", "pfeiffer"))
        validate.known("activation", self.activation, _ACTIVATIONS)
        validate.positive(bottleneck=self.bottleneck)


EXAMPLE = Config(bottleneck=4, activation="swish")
STARTS_ELSEWHERE = "both projections are N(0, 0.02), so each bottleneck adds a little"


class _Bottleneck(nn.Module):
    def __init__(self, site: nn.Module, config: Config, rng: torch.Generator) -> None:
        super().__init__()
        bias = site.get_parameter("bias")
        width, inner = len(bias), config.bottleneck
        self.down = linear((0.02 * torch.randn(inner, width, generator=rng)).to(bias), bias.new_zeros(inner))
        self.up = linear((0.02 * torch.randn(width, inner, generator=rng)).to(bias), bias.new_zeros(width))
        self.activation = _ACTIVATIONS[config.activation]

    def project(self, x: Tensor) -> Tensor:
        """up(act(down(x))) of x [B, T, d]."""
        projected: Tensor = self.up(self.activation(self.down(x)))
        return projected


class _Houlsby(_Bottleneck):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.project(y)


class _Pfeiffer(_Bottleneck):
    def __init__(self, norm: nn.LayerNorm, config: Config, rng: torch.Generator) -> None:
        super().__init__(norm, config, rng)

        # A function, for as a child of its own branch the LayerNorm would make a cycle of modules.
        def normalise(x: Tensor) -> Tensor:
            return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

        self.normalise = normalise

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.normalise(self.project(y) + x)


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Puts new adapters into every layer; the original LayerNorms stay frozen."""
    if config.placement == "houlsby":
        for pair in zip(backbone.sites("attention_output"), backbone.sites("output"), strict=True):
            for site in pair:
                backbone.add(site, "adapter", _Houlsby(site, config, rng))
    else:
        for norm in backbone.sites("output_norm"):
            assert isinstance(norm, nn.LayerNorm)
            backbone.add(norm, "adapter", _Pfeiffer(norm, config, rng))
