"""Values drawn at random train: the controls of BitFit+ (Weng et al., sections 3.1 and 3.2).

The draws are made once, before training; those of weights are its code's:

- uniform: in each tensor of the encoder, floor(size M / total) places with replacement, so that a few coincide. Small
  tensors get none.
- row_column: a LayerNorm's whole weight; of every other weight outside the embeddings a column or, by a fair coin and
  where there are at least as many rows as columns, floor(rows / columns) rows with replacement. These are about as many
  values as there are biases.
- bias: in each bias vector of each layer, floor(size M / total) places without replacement. The paper iterates "through
  every bias vector in each of the 12 layers" and draws as many as b_m2, b_q have, 46,080. Its code draws 43,324, and
  also from the embeddings' LayerNorm and the pooler: `within` "encoder".
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor

from peft_dp.methods._base import Method
from peft_dp.methods._common import Share
from peft_dp.models.backbone import Backbone

BUDGETS = {"uniform": 100_000, "bias": 46_080}
"""M for BERT-base: the code's, and the paper's 12 x 5 x 768."""


class Config(Method):
    """What is drawn, and how much of it.

    Attributes:
        kind: Which of the three draws.
        budget: M of "uniform" and "bias"; null for that of `BUDGETS`.
        share: M as a share of the values to draw from, in place of `budget`.
        within: Where "bias" draws: in the layers, or as the released code in the whole encoder.
    """

    kind: Literal["uniform", "row_column", "bias"]
    budget: PositiveInt | None = None
    share: Share | None = None
    within: Literal["layers", "encoder"] = "layers"

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        given = [value for value in (self.budget, self.share) if value is not None]
        if len(given) > (self.kind in BUDGETS):
            raise ValueError(f"kind {self.kind!r} takes {'budget or share' if self.kind in BUDGETS else 'neither'}")
        return self

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Draw the masks and train what they let through.

        Raises:
            ValueError: The budget is more than there is to draw from.
        """
        layers = {parameter for layer in backbone.layers for parameter in layer.parameters()}
        drawn = {
            name: parameter
            for name, parameter in backbone.encoder.named_parameters()
            if self._draws(name, backbone, in_layer=parameter in layers)
        }
        total = sum(p.numel() for p in drawn.values())
        budget = self.budget or BUDGETS.get(self.kind, 0)
        if self.share is not None:
            budget = round(self.share * total)
        if budget > total:
            raise ValueError(f"a budget of {budget} is more than the {total} values to draw from: give a share instead")
        names = {parameter: name for name, parameter in backbone.model.named_parameters()}
        for parameter in drawn.values():
            size = parameter.numel()
            if self.kind == "row_column":
                mask = _row_column(parameter.shape, rng)
            elif self.kind == "uniform":
                mask = _places(parameter.shape, torch.randint(size, (size * budget // total,), generator=rng))
            else:
                mask = _places(parameter.shape, torch.randperm(size, generator=rng)[: size * budget // total])
            if mask.any():
                parameter.requires_grad_(True)
                backbone.masks[names[parameter]] = mask

    def _draws(self, name: str, backbone: Backbone, *, in_layer: bool) -> bool:
        if self.kind == "row_column":
            return name.endswith("weight") and not name.startswith(f"{backbone.family.embeddings}.")
        return self.kind == "uniform" or (name.endswith("bias") and (in_layer or self.within == "encoder"))


EXAMPLE = Config(kind="uniform", share=0.1)


def _places(shape: torch.Size, places: Tensor) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[places] = True
    return mask


def _row_column(shape: torch.Size, rng: torch.Generator) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    if len(shape) == 1:
        return ~mask
    rows, columns = shape
    if rows < columns or torch.randint(2, (), generator=rng):
        mask[:, torch.randint(columns, (), generator=rng)] = True
    else:
        mask[torch.randint(rows, (rows // columns,), generator=rng)] = True
    return mask
