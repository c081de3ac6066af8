"""Linear probe: the pretrained encoder stays as it is, only the head trains.

Papers call it "frozen" or "linear classifier".
"""

from __future__ import annotations

import torch

from peft_dp.methods._base import Method
from peft_dp.models.backbone import Backbone


class Config(Method):
    """Nothing to set."""

    for_decoders = True

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Leave the backbone as it comes: frozen but for the head."""


EXAMPLE = Config()
