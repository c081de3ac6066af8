"""Full fine-tuning: every parameter of the backbone and the head trains."""

from __future__ import annotations

import torch

from peft_dp.methods._base import Method
from peft_dp.models.backbone import Backbone


class Config(Method):
    """Nothing to set."""

    for_decoders = True

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Train all."""
        backbone.model.requires_grad_(True)


EXAMPLE = Config()
