"""A method as a typed value: its settings, how it is installed, and what it may change of training.

Why a method imports nothing to be registered: `load` in `methods/__init__.py` finds it by its file's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from peft_dp.spec import STRICT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from peft_dp.models.backbone import Backbone


class Method(BaseModel, ABC):
    """What trains. The fields of a subclass are the method's settings; a hook that it leaves alone does nothing."""

    model_config = ConfigDict(**STRICT, frozen=True, serialize_by_alias=True)

    starts_elsewhere: ClassVar[str] = ""
    """Why the model computes something else than the pretrained one right after `install`; empty where it does not."""

    for_decoders: ClassVar[bool] = False
    """Whether it can be put on a decoder too."""

    @abstractmethod
    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Make just what the method trains require a gradient, in a backbone that is frozen but for its head.

        Args:
            backbone: The pretrained backbone, changed in place.
            rng: New parameters are drawn from it and from nothing else.

        Raises:
            ValueError: The settings do not fit this backbone.
        """

    def phases(self, backbone: Backbone, epochs: int) -> Iterator[int]:
        """Check `epochs` at once, then return an iterator over the epochs of each phase, which add up to `epochs`.

        Before it yields a phase, the iterator arranges what trains in it; `install` arranges the first. Values may
        decide what parameters, buffers and masks hold, but not which there are: a killed run is arranged again before
        its values are filled in.

        Raises:
            ValueError: The phases do not add up to `epochs`.
        """
        return iter([epochs])

    def settled(self, backbone: Backbone) -> int:
        """Return the number of lowest layers that no phase trains, so that they are computed once for all phases."""
        return 0

    def rates(self, backbone: Backbone) -> dict[str, float]:
        """Return the peak learning rate of each trained parameter whose rate is not the optimiser's."""
        return {}

    def begin_step(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Draw what all examples of a step share from `rng`, the run's stream of gates."""

    def penalty(self, backbone: Backbone) -> Tensor | None:
        """Return a term of the loss that does not look at the data, or None."""
        return None

    def release(self, backbone: Backbone, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients of what the optimiser updates, from those of what trains, noise included.

        For a method whose `install` names other parameters in `backbone.updates`. It looks at nothing else of the data.
        """
        return gradients

    @property
    def plain(self) -> bool:
        """Whether a run is one phase of ordinary steps: the loss alone gives each step's gradient."""
        kind = type(self)
        return (
            kind.phases is Method.phases
            and kind.begin_step is Method.begin_step
            and kind.penalty is Method.penalty
            and kind.release is Method.release
        )
