"""Diff pruning: a sparse shift of the weights, found by gates (Guo et al. 2021, section 3; Khan and Scheder-Bieschin).

Stage 1 trains theta = pretrained + z w on the layers' linear weights: w starts at 0, and z is a hard-concrete gate
(Louizos et al. 2018) for each entry, times one more for the whole tensor where `structured`. Then the share `keep` of
all entries with the largest |z w| is kept, by one threshold over all tensors: this does not look at the data, so no
privacy is spent. There z is deterministic, its random part removed, as both papers say of inference; the released code
prunes the weights as the last step's draw left them (`prune` "last_draw"), where the gate of a whole tensor may be
shut. Stage 2 starts from pretrained + mask w, as the released code does (w, not z w), and trains the masked
entries, with the gates off. The head trains throughout and is neither gated nor pruned.

Why the weights are native in stage 2: pretrained + w where a mask lets w train is a masked weight, and `Backbone.masks`
has those.

The released code bounds the mean gradients of w and of alpha by 1 each; `Optimiser.max_grad_norm` bounds both together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.utils import parametrize

from peft_dp.methods._base import Method
from peft_dp.methods._common import LINEAR, Share
from peft_dp.models.backbone import Backbone

START = 5.0
"""Where alpha starts, as in the released code: nearly every gate is open."""


class Config(Method):
    """Settings of the gates, those of the released code where a default is given.

    Attributes:
        gated_epochs: Epochs of stage 1; stage 2 has the rest of the run.
        keep: Share of the shift's entries that stage 2 trains.
        penalty: Weight of the expected number of open gates in the loss.
        structured: Whether each tensor has one more gate as a whole.
        gate_rate: Peak learning rate of alpha; all else has the optimiser's.
        fixed_rate: Peak learning rate of stage 2; null for the optimiser's.
        prune: The z of the pruning: without its random part, or that of the last step's draw.
    """

    gated_epochs: PositiveInt
    keep: Share = 0.005
    cost: Annotated[NonNegativeFloat, Field(alias="penalty")] = 1.25e-7  # the hook has the setting's name
    structured: bool = True
    gate_rate: PositiveFloat = 0.1
    fixed_rate: PositiveFloat | None = None
    prune: Literal["deterministic", "last_draw"] = "deterministic"

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Add a gated shift to every linear weight of the layers."""
        for role in LINEAR:
            for site in backbone.sites(role):
                gated = _Gated(site.get_parameter("weight"), self.structured)
                parametrize.register_parametrization(site, "weight", gated)

    def begin_step(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Draw the gates' noise anew: one draw for all examples of a step."""
        for gate in _gates(backbone):
            gate.draw(rng)

    def penalty(self, backbone: Backbone) -> Tensor:
        """Return the expected number of open gates, times its weight; log(1.5 / 1.5) = 0 is left out."""
        return self.cost * sum((torch.sigmoid(gate.alpha).sum() for gate in _gates(backbone)), torch.zeros(()))

    def rates(self, backbone: Backbone) -> dict[str, float]:
        """Return alpha's own rate in stage 1, and that of stage 2 if it has one."""
        if _gates(backbone):
            return {name: self.gate_rate for name in backbone.trained() if name.endswith(".alpha")}
        return dict.fromkeys(backbone.trained(), self.fixed_rate) if self.fixed_rate else {}

    def phases(self, backbone: Backbone, epochs: int) -> Iterator[int]:
        """Yield the epochs with gates, then those with the mask fixed.

        Raises:
            ValueError: No epoch is left for stage 2.
        """
        if self.gated_epochs >= epochs:
            raise ValueError(f"gated_epochs is {self.gated_epochs}, but must be below the run's {epochs} epochs")
        return self._phases(backbone, epochs)

    def _phases(self, backbone: Backbone, epochs: int) -> Iterator[int]:
        yield self.gated_epochs
        if self.prune == "deterministic":
            for gate in _gates(backbone):
                gate.noise.zero_()
        _prune(backbone, self.keep)
        yield epochs - self.gated_epochs


EXAMPLE = Config(gated_epochs=1)


class _Gate(nn.Module):
    """Hard-concrete gates, stretched to (-1.5, 1.5), under the noise of the current step."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full(shape, START, device=device))
        self.noise: Tensor  # log u - log(1 - u)
        self.register_buffer("noise", torch.zeros(shape, device=device), persistent=False)

    def draw(self, rng: torch.Generator) -> None:
        noise = torch.rand(self.noise.shape, generator=rng, device=self.noise.device, dtype=self.noise.dtype)
        self.noise.copy_(noise.clamp_(1e-4, 1 - 1e-4).logit_())

    def forward(self) -> Tensor:
        return (3 * torch.sigmoid(self.noise + self.alpha) - 1.5).clamp(0, 1)


class _Gated(nn.Module):
    """Adds z w to a weight."""

    elementwise = True

    def __init__(self, weight: Tensor, structured: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros_like(weight))
        shapes = [tuple(weight.shape), *[(1,)] * structured]
        self.gates = nn.ModuleList(_Gate(shape, weight.device) for shape in shapes)

    def shift(self) -> Tensor:
        shift: Tensor = self.w
        for gate in self.gates:
            shift = shift * gate()
        return shift

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.shift()


@torch.no_grad()
def _prune(backbone: Backbone, keep: float) -> None:
    """Keep the largest shifts, take the gates away, and let native weights train under masks."""
    sites = {path: site for path, site in backbone.model.named_modules() if parametrize.is_parametrized(site, "weight")}
    gated: list[Any] = [site.get_submodule("parametrizations.weight.0") for site in sites.values()]
    sizes = torch.cat([module.shift().abs().flatten() for module in gated])
    kept = torch.zeros_like(sizes, dtype=torch.bool)
    kept[sizes.topk(max(1, round(keep * len(sizes)))).indices] = True
    parts = torch.split(kept, [module.w.numel() for module in gated])
    for (path, site), module, part in zip(sites.items(), gated, parts, strict=True):
        mask = part.view_as(module.w)
        parametrize.remove_parametrizations(site, "weight", leave_parametrized=False)
        site.get_parameter("weight").requires_grad_(True).add_(module.w * mask)
        backbone.masks[f"{path}.weight"] = mask


def _gates(backbone: Backbone) -> list[_Gate]:
    return [module for module in backbone.model.modules() if isinstance(module, _Gate)]
