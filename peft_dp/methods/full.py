"""Full fine-tuning: every parameter of the backbone and the head trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from peft_dp.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to set."""


EXAMPLE = Config()


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Trains all."""
    backbone.model.requires_grad_(True)
