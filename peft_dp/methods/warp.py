"""WARP_n: n free vectors before the first layer's input (Hambardzumyan et al. 2021; Gupta et al. 2023, section 3).

The vectors come before the output of the embeddings, LayerNorm and dropout included, so they have neither a position
nor a token type, and the tokens keep theirs. After the last layer they are taken away: every read-out and head finds
the tokens where they were. Count: n d.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from peft_dp.methods._base import Method
from peft_dp.methods._common import draw, prepend
from peft_dp.models.backbone import Backbone


class Config(Method):
    """Number of vectors.

    Attributes:
        length: Number n of vectors.
        init: "normal" or "uniform", of variance 1 / d.
    """

    starts_elsewhere = "the vectors are random, and every token attends to them"

    length: PositiveInt
    init: Literal["normal", "uniform"] = "normal"

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Put new vectors before the first layer's input."""
        vectors = draw((self.length, backbone.width), backbone.width, self.init, rng)
        like = backbone.embeddings_norm.get_parameter("weight")
        prepend(backbone, "warp", _Prompt(vectors.to(like)), self.length)


EXAMPLE = Config(length=3)


class _Prompt(nn.Module):
    example_axis = True

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    def forward(self) -> Tensor:
        """[n, d]."""
        return self.vectors
