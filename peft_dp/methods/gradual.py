"""Gradual unfreezing: layers join from the top (Khan and Scheder-Bieschin, section 3; Howard and Ruder 2018).

The paper trains the last layer and the head for one epoch, then the last two layers for three. Its learning rate is the
schedule "slanted", over all stages. A stage trains every parameter of its layers; a pretrained pooler stays frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

import torch
from pydantic import Field, PositiveInt, model_validator

from peft_dp.methods._base import Method
from peft_dp.models.backbone import Backbone


class Config(Method):
    """When which layers train.

    Attributes:
        stages: Pairs (layers that train, counted from the top; epochs), in order; more layers each time.
    """

    stages: Annotated[tuple[tuple[PositiveInt, PositiveInt], ...], Field(min_length=1)] = ((1, 1), (2, 3))

    @model_validator(mode="after")
    def _growing(self) -> Self:
        numbers = [layers for layers, _ in self.stages]
        if numbers != sorted(set(numbers)):
            raise ValueError(f"stages must train more layers each time, not {numbers}")
        return self

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Train the layers of the first stage.

        Raises:
            ValueError: A stage has more layers than the backbone.
        """
        most, count = self.stages[-1][0], len(backbone.layers)
        if most > count:
            raise ValueError(f"stages end with {most} layers, but the backbone has {count}")
        _unfreeze(backbone, self.stages[0][0])

    def settled(self, backbone: Backbone) -> int:
        """Return the number of lowest layers that no stage trains."""
        return len(backbone.layers) - self.stages[-1][0]

    def phases(self, backbone: Backbone, epochs: int) -> Iterator[int]:
        """Yield the epochs of each stage; its layers train once it is asked for.

        Raises:
            ValueError: The stages do not add up to `epochs`.
        """
        total = sum(stage for _, stage in self.stages)
        if total != epochs:
            raise ValueError(f"the stages' epochs add up to {total}, but the run has {epochs}: make them equal")
        return self._staged(backbone)

    def _staged(self, backbone: Backbone) -> Iterator[int]:
        for layers, epochs in self.stages:
            _unfreeze(backbone, layers)
            yield epochs


EXAMPLE = Config(stages=((1, 1), (2, 1)))


def _unfreeze(backbone: Backbone, layers: int) -> None:
    for layer in backbone.layers[-layers:]:
        layer.requires_grad_(True)
