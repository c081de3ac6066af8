"""Gradual unfreezing: layers join from the top (Khan and Scheder-Bieschin, section 3; Howard and Ruder 2018).

The paper trains the last layer and the head for one epoch, then the last two
layers for three. Its learning rate is the schedule "slanted", over all stages.
A stage trains every parameter of its layers; a pretrained pooler stays frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from peft_dp import validate
from peft_dp.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class Config:
    """When which layers train.

    Attributes:
        stages: Pairs (layers that train, counted from the top; epochs), in order; more layers each time.
    """

    stages: Sequence[Sequence[int]] = ((1, 1), (2, 3))

    def __post_init__(self) -> None:
        if not self.stages or any(len(stage) != 2 for stage in self.stages):
            raise ValueError(f"stages must be pairs (layers, epochs), such as [[1, 1], [2, 3]], not {self.stages!r}")
        for layers, epochs in self.stages:
            validate.positive(layers=layers, epochs=epochs)
        numbers = [layers for layers, _ in self.stages]
        if numbers != sorted(set(numbers)):
            raise ValueError(f"stages must train more layers each time, not {numbers}")


EXAMPLE = Config(stages=[[1, 1], [2, 1]])


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Trains the layers of the first stage.

    Raises:
        ValueError: A stage has more layers than the backbone.
    """
    if config.stages[-1][0] > len(backbone.layers):
        raise ValueError(f"stages end with {config.stages[-1][0]} layers, but the backbone has {len(backbone.layers)}")
    _unfreeze(backbone, config.stages[0][0])


def settled(backbone: Backbone, config: Config) -> int:
    """Number of lowest layers that no stage trains."""
    return len(backbone.layers) - config.stages[-1][0]


def phases(backbone: Backbone, config: Config, epochs: int) -> Iterator[int]:
    """Epochs of each stage; its layers train once it is asked for.

    Raises:
        ValueError: The stages do not add up to `epochs`.
    """
    total = sum(stage for _, stage in config.stages)
    if total != epochs:
        raise ValueError(f"the stages' epochs add up to {total}, but the run has {epochs}: make them equal")
    return _staged(backbone, config)


def _staged(backbone: Backbone, config: Config) -> Iterator[int]:
    for layers, epochs in config.stages:
        _unfreeze(backbone, layers)
        yield epochs


def _unfreeze(backbone: Backbone, layers: int) -> None:
    for layer in backbone.layers[-layers:]:
        layer.requires_grad_(True)
