"""Two-phase training: all parameters first, then bias terms only (DP-BiTFiT, Bu et al., section 4.4).

The head trains in both phases, and both draw on one privacy budget. The
optimiser starts anew with the second phase; the learning rate goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from peft_dp import validate
from peft_dp.methods import bitfit, full
from peft_dp.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Config:
    """Length of the first phase.

    Attributes:
        full_epochs: Epochs in which everything trains; biases have the rest of the run.
    """

    full_epochs: int

    def __post_init__(self) -> None:
        validate.positive(full_epochs=self.full_epochs)


EXAMPLE = Config(full_epochs=1)


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Trains all, as the first phase does."""
    full.install(backbone, full.Config(), rng)


def phases(backbone: Backbone, config: Config, epochs: int) -> Iterator[int]:
    """Epochs of full fine-tuning, then of bias-only training.

    Raises:
        ValueError: Nothing is left for the second phase.
    """
    if config.full_epochs >= epochs:
        raise ValueError(f"full_epochs is {config.full_epochs}, but must be below the run's {epochs} epochs")
    return _phases(backbone, config.full_epochs, epochs)


def _phases(backbone: Backbone, first: int, epochs: int) -> Iterator[int]:
    yield first
    backbone.freeze()
    # Nothing is drawn: neither method has new parameters.
    bitfit.install(backbone, bitfit.Config(), torch.Generator())
    yield epochs - first
