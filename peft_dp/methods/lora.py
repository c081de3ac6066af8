"""LoRA: a product of two thin matrices beside a frozen weight (Hu et al. 2022, section 4.1).

The output y = W x + b of a site becomes y + (alpha / r) B A x with A [r, in] and B [out, r]: r (in + out) trained
values per site. A is Kaiming-uniform with a = sqrt(5) and B is 0, so the model starts as it was; x gets no dropout.

SLaSh (Gupta et al. 2023, table 2) uses query and value with r = 1 and its library's default alpha, 8. SPAFIT's LoRA-I
is r = 64 and alpha = 128 on query, key and value; its LoRA-II adds attention_output.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from peft_dp.methods._base import Method
from peft_dp.methods._common import Linear, LowRank
from peft_dp.models.backbone import Backbone


class Config(Method):
    """Size and place of the products.

    Attributes:
        rank: Rows of A.
        alpha: The product's factor is alpha / rank.
        sites: Roles of the linear layers that get one.
    """

    for_decoders = True

    rank: PositiveInt
    alpha: PositiveFloat
    sites: Annotated[tuple[Linear, ...], Field(min_length=1)] = ("query", "value")

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Add a product to each site of the roles."""
        for role in self.sites:
            for site in backbone.sites(role):
                if not hasattr(site, "lora"):  # a decoder's query, key and value may be one map
                    backbone.add(site, "lora", LowRank(site, self.rank, self.alpha, rng))


EXAMPLE = Config(rank=2, alpha=4)
