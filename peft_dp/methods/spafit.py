"""SPAFIT: nothing trains in the lowest layers, biases in the middle, LoRA in the upper (Arora and Wang, section 3.2).

Layers count from 0, and SPAFIT-a-b names the last layer of the first two groups: layers 0 to a are frozen, layers a+1
to b train all eight bias vectors, and the rest have LoRA on their attention weights and train the biases of
intermediate, output and output_norm. The text leaves open how layers count and which biases train. This reading alone
gives the parameter counts of its table 2, which also show that embeddings and pooler are frozen.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from peft_dp.methods._base import Method
from peft_dp.methods._common import LowRank
from peft_dp.models.backbone import Backbone

VARIANTS = {"I": ("query", "key", "value"), "II": ("query", "key", "value", "attention_output")}
"""Where the upper layers have LoRA."""
BIASES = ("intermediate", "output", "output_norm")
"""Where the upper layers train biases."""


class Config(Method):
    """Where the groups of layers end, and what the upper one has.

    Attributes:
        frozen: Last frozen layer (N1); -1 for none.
        bias: Last layer that only trains biases (N2).
        variant: "I" has LoRA on query, key and value; "II" has it on attention_output too.
        rank: Rank of LoRA.
        alpha: LoRA's factor is alpha / rank.
    """

    frozen: Annotated[int, Field(ge=-1)]
    bias: Annotated[int, Field(ge=-1)]
    variant: Literal["I", "II"]
    rank: PositiveInt = 64
    alpha: PositiveFloat = 128.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.frozen > self.bias:
            raise ValueError(f"frozen must be at most bias, not {self.frozen} with bias {self.bias}")
        return self

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Train biases and add LoRA, each in its group of layers.

        Raises:
            ValueError: The backbone has no layer above `bias`.
        """
        count = len(backbone.layers)
        if self.bias >= count - 1:
            raise ValueError(f"bias {self.bias} leaves no layer for LoRA: the last of {count} layers is {count - 1}")
        for role in backbone.family.sites:
            for number, site in enumerate(backbone.sites(role)):
                if self.frozen < number <= self.bias or (number > self.bias and role in BIASES):
                    site.get_parameter("bias").requires_grad_(True)
                elif number > self.bias and role in VARIANTS[self.variant]:
                    backbone.add(site, "lora", LowRank(site, self.rank, self.alpha, rng))


EXAMPLE = Config(frozen=-1, bias=0, variant="II", rank=2, alpha=4)
