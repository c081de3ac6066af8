"""Diff pruning: a sparse shift of the weights, found by gates (Guo et al. 2021, section 3; Khan and Scheder-Bieschin).

Stage 1 trains theta = pretrained + z w on the layers' linear weights: w starts
at 0, z is a hard-concrete gate (Louizos et al. 2018) for each entry, and where
`structured` one more for the whole tensor. Then the share `keep` of all entries
with the largest |z w| is kept, by one threshold over all tensors: no look at
the data, so no privacy is spent. Stage 2 starts from pretrained + mask w, as
the released code does (w, not z w), and trains the masked entries, gates off.
The head trains throughout and is neither gated nor pruned.

Why the weights are native in stage 2: pretrained + w where a mask lets w train
is a masked weight, and `Backbone.masks` has those.

The released code bounds the mean gradients of w and of alpha by 1 each;
`Optimiser.max_grad_norm` bounds both together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from peft_dp import validate
from peft_dp.models.backbone import Backbone

ROLES = ("query", "key", "value", "attention_output", "intermediate", "output")
START = 5.0
"""Of alpha, as in the released code: nearly every gate is open."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the gates, those of the released code where a default is given.

    Attributes:
        gated_epochs: Epochs of stage 1; stage 2 has the rest of the run.
        keep: Share of the shift's entries that stage 2 trains.
        penalty: Weight of the expected number of open gates in the loss.
        structured: Whether each tensor has one more gate as a whole.
        gate_rate: Peak learning rate of alpha; all else has the optimiser's.
        fixed_rate: Peak learning rate of stage 2; null for the optimiser's.
    """

    gated_epochs: int
    keep: float = 0.005
    penalty: float = 1.25e-7
    structured: bool = True
    gate_rate: float = 0.1
    fixed_rate: float | None = None

    def __post_init__(self) -> None:
        validate.positive(gated_epochs=self.gated_epochs, gate_rate=self.gate_rate)
        validate.fraction(keep=self.keep)
        if self.fixed_rate is not None:
            validate.positive(fixed_rate=self.fixed_rate)
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty must be a finite number of at least 0, not {self.penalty!r}")


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


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Adds a gated shift to every linear weight of the layers."""
    for role in ROLES:
        for site in backbone.sites(role):
            parametrize.register_parametrization(site, "weight", _Gated(site.weight, config.structured))  # type: ignore[arg-type]


def begin_step(backbone: Backbone, rng: torch.Generator) -> None:
    """Draws the gates' noise anew: one draw for all examples of a step."""
    for gate in _gates(backbone):
        gate.draw(rng)


def penalty(backbone: Backbone, config: Config) -> Tensor:
    """The expected number of open gates, times its weight; log(1.5 / 1.5) = 0 is left out."""
    return config.penalty * sum((torch.sigmoid(gate.alpha).sum() for gate in _gates(backbone)), torch.zeros(()))


def rates(backbone: Backbone, config: Config) -> dict[str, float]:
    """Alpha's own rate in stage 1, that of stage 2 if there is one."""
    if _gates(backbone):
        return {name: config.gate_rate for name in backbone.trained() if name.endswith(".alpha")}
    return dict.fromkeys(backbone.trained(), config.fixed_rate) if config.fixed_rate else {}


def phases(backbone: Backbone, config: Config, epochs: int) -> Iterator[int]:
    """Epochs with gates, then with the mask fixed.

    Raises:
        ValueError: Nothing is left for stage 2.
    """
    if config.gated_epochs >= epochs:
        raise ValueError(f"gated_epochs is {config.gated_epochs}, but must be below the run's {epochs} epochs")
    return _phases(backbone, config, epochs)


def _phases(backbone: Backbone, config: Config, epochs: int) -> Iterator[int]:
    yield config.gated_epochs
    _prune(backbone, config.keep)
    yield epochs - config.gated_epochs


@torch.no_grad()
def _prune(backbone: Backbone, keep: float) -> None:
    """Keeps the largest shifts, takes the gates away, and lets native weights train under masks."""
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
