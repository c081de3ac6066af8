"""Adapters: narrow two-layer networks between the frozen layers.

- Houlsby et al. 2019, the Adapter of SLaSh (Gupta et al. 2023, section 3): two per layer, on the output of the last
  linear layer of the attention and of the feed-forward block, before the residual sum and the LayerNorm:
  f + up(act(down(f))). Count: 2 L (2 d m + m + d).
- Pfeiffer et al. 2021 in sequence (AdapterHub's SeqBn; Khan and Scheder-Bieschin, section 3): one per layer. From the
  feed-forward block's output f and its input x, y = LN(f + x), and the layer gives LN(up(act(down(y))) + f + x), with
  the same frozen LN both times. Count: L (2 d m + m + d).

Weights start at N(0, 0.02), down and up alike, and biases at 0: close to the pretrained model, not equal to it. Where
the backbone's dropout is on, it comes after a Houlsby adapter, not before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from peft_dp.methods._base import Method
from peft_dp.methods._common import linear
from peft_dp.models.backbone import Backbone

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "swish": functional.silu}


class Config(Method):
    """Where adapters are and how wide.

    Attributes:
        placement: "houlsby" or "pfeiffer".
        bottleneck: Width m between the two layers.
        activation: "relu" (Khan and Scheder-Bieschin) or "swish" (SLaSh).
    """

    for_decoders = True

    starts_elsewhere = "both projections are N(0, 0.02), so each bottleneck adds a little"

    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    bottleneck: PositiveInt
    activation: Literal["relu", "swish"] = "relu"

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Put new adapters into every layer; the original LayerNorms stay frozen.

        Raises:
            ValueError: Pfeiffer's placement on a decoder.
        """
        if self.placement == "houlsby":
            for pair in zip(backbone.sites("attention_output"), backbone.sites("output"), strict=True):
                for site in pair:
                    backbone.add(site, "adapter", _Houlsby(site, backbone.width, self, rng))
        else:
            if backbone.family.causal:
                raise ValueError("a decoder has no LayerNorm behind its feed-forward block: take placement 'houlsby'")
            for norm in backbone.sites("output_norm"):
                assert isinstance(norm, nn.LayerNorm)
                backbone.add(norm, "adapter", _Pfeiffer(norm, backbone.width, self, rng))


EXAMPLE = Config(bottleneck=4, activation="swish")


class _Bottleneck(nn.Module):
    def __init__(self, site: nn.Module, width: int, config: Config, rng: torch.Generator) -> None:
        super().__init__()
        like, inner = site.get_parameter("weight"), config.bottleneck
        self.down = linear((0.02 * torch.randn(inner, width, generator=rng)).to(like), like.new_zeros(inner))
        self.up = linear((0.02 * torch.randn(width, inner, generator=rng)).to(like), like.new_zeros(width))
        self.activation = _ACTIVATIONS[config.activation]

    def project(self, x: Tensor) -> Tensor:
        """Return up(act(down(x))) of x [B, T, d]."""
        projected: Tensor = self.up(self.activation(self.down(x)))
        return projected


class _Houlsby(_Bottleneck):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.project(y)


class _Pfeiffer(_Bottleneck):
    def __init__(self, norm: nn.LayerNorm, width: int, config: Config, rng: torch.Generator) -> None:
        super().__init__(norm, width, config, rng)

        # A function, for as a child of its own branch the LayerNorm would make a cycle of modules.
        def normalise(x: Tensor) -> Tensor:
            return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

        self.normalise = normalise

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.normalise(self.project(y) + x)
