"""WARP_n: n free vectors before the first layer's input (Hambardzumyan et al. 2021; Gupta et al. 2023, section 3).

They come before the output of the embeddings, LayerNorm and dropout included, so that they have neither a
position nor a token type and the tokens keep theirs. After the last layer they are taken away: every read-out
and head finds the tokens where they were. Count: n d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from peft_dp import validate
from peft_dp.methods.slash import draw
from peft_dp.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Config:
    """Number of vectors.

    Attributes:
        length: Number n of vectors.
        init: "normal" or "uniform", of variance 1 / d.
    """

    length: int
    init: Literal["normal", "uniform"] = "normal"

    def __post_init__(self) -> None:
        validate.positive(length=self.length)
        validate.known("init", self.init, ("normal", "uniform"))


EXAMPLE = Config(length=3)
STARTS_ELSEWHERE = "the vectors are random, and every token attends to them"


class _Prompt(nn.Module):
    example_axis = True

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    def forward(self) -> Tensor:
        """[n, d]."""
        return self.vectors


class _Cut(nn.Module):
    """The states of n + T positions without the first n, or without the last."""

    def __init__(self, length: int, first: bool) -> None:
        super().__init__()
        self.kept = slice(length, None) if first else slice(-length)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y[:, self.kept]


def prepend(backbone: Backbone, name: str, prompt: nn.Module, length: int, *, cut_first: bool = True) -> None:
    """Puts what `prompt()` gives before the first layer's input, and cuts the last layer's output back to T.

    Args:
        backbone: Changed in place; `prompt` becomes its embeddings' child of that name.
        name: Of the child.
        prompt: Gives vectors [n, d] or [B, n, d].
        length: n.
        cut_first: Whether the prompt's positions are cut from the output, or else the last n.
    """

    def insert(embeddings: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([prompt().expand(len(output), -1, -1), output], dim=1)

    def attend(encoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        return args, kwargs if mask is None else kwargs | {"attention_mask": functional.pad(mask, (length, 0), value=1)}

    backbone.packs = False  # the prompt is before each example
    backbone.embeddings.add_module(name, prompt)
    backbone.embeddings.register_forward_hook(insert)
    backbone.encoder.register_forward_pre_hook(attend, with_kwargs=True)
    backbone.add(backbone.sites("output_norm")[-1], name, _Cut(length, cut_first))


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Puts new vectors before the first layer's input."""
    vectors = draw((config.length, backbone.width), backbone.width, config.init, rng)
    like = backbone.embeddings_norm.get_parameter("weight")
    prepend(backbone, "warp", _Prompt(vectors.to(like)), config.length)
