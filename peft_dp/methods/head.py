"""Linear probe: the pretrained encoder as it is, only the head trains (the papers' "frozen" or "linear classifier")."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from peft_dp.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to set."""


EXAMPLE = Config()


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Leaves the backbone as it comes: frozen but for the head."""
