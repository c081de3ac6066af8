"""Two-phase training: all parameters first, then bias terms only (DP-BiTFiT, Bu et al., section 4.4).

The head trains in both phases, and both draw on one privacy budget. The second phase starts with a new optimiser; the
learning rate goes on.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import PositiveInt

from peft_dp.methods import bitfit, full
from peft_dp.methods._base import Method
from peft_dp.models.backbone import Backbone


class Config(Method):
    """Length of the first phase.

    Attributes:
        full_epochs: Epochs in which everything trains; biases have the rest of the run.
    """

    full_epochs: PositiveInt

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Train all, as the first phase does."""
        full.Config().install(backbone, rng)

    def phases(self, backbone: Backbone, epochs: int) -> Iterator[int]:
        """Yield the epochs of full fine-tuning, then those of bias-only training.

        Raises:
            ValueError: No epoch is left for the second phase.
        """
        if self.full_epochs >= epochs:
            raise ValueError(f"full_epochs is {self.full_epochs}, but must be below the run's {epochs} epochs")
        return self._phases(backbone, epochs)

    def _phases(self, backbone: Backbone, epochs: int) -> Iterator[int]:
        yield self.full_epochs
        backbone.freeze()
        # Nothing is drawn: neither method has new parameters.
        bitfit.Config().install(backbone, torch.Generator())
        yield epochs - self.full_epochs


EXAMPLE = Config(full_epochs=1)
