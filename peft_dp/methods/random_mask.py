"""Values drawn at random train: the controls of BitFit+ (Weng et al., sections 3.1 and 3.2).

The draws are those of its code, made once, before training:

- uniform: of each tensor of the encoder, floor(size M / total) places with
  replacement, so that a few coincide. Small tensors get none.
- row_column: of each weight outside the embeddings, a LayerNorm's whole, else
  a column, or, by a fair coin and where there are at least as many rows as
  columns, floor(rows / columns) rows with replacement: about as many values as
  there are biases.
- bias: of each bias vector, floor(size M / total) places without replacement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peft_dp import validate
from peft_dp.models.backbone import Backbone

BUDGETS = {"uniform": 100_000, "bias": 43_324}
"""The code's M, for BERT-base. The paper equates the second with b_m2, b_q, which are 46,080."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is drawn, and how much of it.

    Attributes:
        kind: "uniform", "row_column" or "bias".
        budget: M of "uniform" and "bias"; None for the code's.
        share: M as a share of the values to draw from, in its place.
    """

    kind: str
    budget: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        validate.known("kind of mask", self.kind, [*BUDGETS, "row_column"])
        given = [value for value in (self.budget, self.share) if value is not None]
        if len(given) > (self.kind in BUDGETS):
            raise ValueError(f"kind {self.kind!r} takes {'budget or share' if self.kind in BUDGETS else 'neither'}")
        if self.budget is not None:
            validate.positive(budget=self.budget)
        if self.share is not None:
            validate.fraction(share=self.share)


EXAMPLE = Config(kind="uniform", share=0.1)


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Draws the masks and trains what they let through.

    Raises:
        ValueError: The budget is more than there is to draw from.
    """
    drawn = {name: p for name, p in backbone.encoder.named_parameters() if _drawn(name, config.kind, backbone)}
    total = sum(p.numel() for p in drawn.values())
    budget = config.budget or BUDGETS.get(config.kind, 0)
    if config.share is not None:
        budget = round(config.share * total)
    if budget > total:
        raise ValueError(f"a budget of {budget} is more than the {total} values to draw from: give a share instead")
    names = {parameter: name for name, parameter in backbone.model.named_parameters()}
    for parameter in drawn.values():
        size = parameter.numel()
        if config.kind == "row_column":
            mask = _row_column(parameter.shape, rng)
        elif config.kind == "uniform":
            mask = _places(parameter.shape, torch.randint(size, (size * budget // total,), generator=rng))
        else:
            mask = _places(parameter.shape, torch.randperm(size, generator=rng)[: size * budget // total])
        if mask.any():
            parameter.requires_grad_(True)
            backbone.masks[names[parameter]] = mask


def _drawn(name: str, kind: str, backbone: Backbone) -> bool:
    if kind == "row_column":
        return name.endswith("weight") and not name.startswith(f"{backbone.family.embeddings}.")
    return kind == "uniform" or name.endswith("bias")


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
