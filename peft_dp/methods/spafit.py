"""SPAFIT: nothing trains in the lowest layers, biases in the middle, LoRA in the upper (Arora and Wang, section 3.2).

Layers count from 0, and SPAFIT-a-b names the last layer of the first two
groups: 0..a are frozen, in a+1..b all eight bias vectors train, and the rest
have LoRA on their attention weights and train the biases of intermediate,
output and output_norm. The text leaves open how layers count and which biases
train; only this reading gives the parameter counts of its table 2, which also
show embeddings and pooler frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from peft_dp import validate
from peft_dp.methods.lora import Branch
from peft_dp.models.backbone import Backbone

VARIANTS = {"I": ("query", "key", "value"), "II": ("query", "key", "value", "attention_output")}
"""Where the upper layers have LoRA."""
BIASES = ("intermediate", "output", "output_norm")
"""Where they train biases."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where the groups end, and what the upper one has.

    Attributes:
        frozen: Last frozen layer (N1); -1 for none.
        bias: Last layer that only trains biases (N2).
        variant: "I" has LoRA on query, key and value, "II" on attention_output too.
        rank: Of LoRA.
        alpha: LoRA's factor is alpha / rank.
    """

    frozen: int
    bias: int
    variant: str
    rank: int = 64
    alpha: float = 128

    def __post_init__(self) -> None:
        if not -1 <= self.frozen <= self.bias:
            raise ValueError(f"frozen must lie between -1 and bias, not at {self.frozen} with bias {self.bias}")
        validate.known("variant", self.variant, VARIANTS)
        validate.positive(rank=self.rank, alpha=self.alpha)


EXAMPLE = Config(frozen=-1, bias=0, variant="II", rank=2, alpha=4)


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Trains biases and adds LoRA, each in its group of layers.

    Raises:
        ValueError: The backbone has no layer above `config.bias`.
    """
    count = len(backbone.layers)
    if config.bias >= count - 1:
        raise ValueError(f"bias {config.bias} leaves no layer for LoRA: the last of {count} layers is {count - 1}")
    for role in backbone.family.sites:
        for number, site in enumerate(backbone.sites(role)):
            if config.frozen < number <= config.bias or (number > config.bias and role in BIASES):
                site.get_parameter("bias").requires_grad_(True)
            elif number > config.bias and role in VARIANTS[config.variant]:
                backbone.add(site, "lora", Branch(site, config.rank, config.alpha, rng))
