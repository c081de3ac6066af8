"""How far a training moves each bias and scale, by term and layer: the maps of BitFit+, Figures 4 to 15."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from peft_dp.models.backbone import Backbone

Vectors = dict[str, list[Tensor]]
"""Term, such as "query.bias" or "output_norm.weight" -> its vector in each layer, lowest first."""

Copies = Sequence[tuple[Tensor, Tensor]]
"""Each parameter that the optimiser updates first, and a copy of it."""


def vectors(backbone: Backbone) -> Vectors:
    """Copies of the biases and scales as they are now."""
    found: Vectors = {}
    for role in backbone.family.sites:
        for name in ("bias", "weight"):
            held = [getattr(site, name) for site in backbone.sites(role)]
            if held[0].dim() == 1:
                found[f"{role}.{name}"] = [value.detach().clone() for value in held]
    return found


def moved(before: Vectors, backbone: Backbone) -> dict[str, list[float]]:
    """Mean absolute change of each vector since `before`, lowest layer first; terms that stayed are left out."""
    changes = {
        term: [(new - old).abs().mean().item() for old, new in zip(before[term], now, strict=True)]
        for term, now in vectors(backbone).items()
    }
    return {term: change for term, change in changes.items() if any(change)}


def copies(backbone: Backbone) -> Copies:
    """Copies of what is updated as it is now, in the machine's memory and not its device's."""
    return [(parameter, parameter.detach().to("cpu", copy=True)) for parameter in backbone.updated().values()]


def check(before: Copies, run: str) -> None:
    """Checks that a run has moved anything.

    Raises:
        FloatingPointError: Every parameter is what it was, to the last bit.
    """
    if all(torch.equal(parameter.detach().cpu(), old) for parameter, old in before):
        why = "no parameter has moved, so every gradient was zero or every rate"
        raise FloatingPointError(f"{run}: trained, but nothing learnt: {why}: look at optimiser.rate, warmup and steps")
