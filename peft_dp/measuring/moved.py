"""How far a training moves each bias and scale, by term and layer: the maps of BitFit+, Figures 4 to 15."""

from __future__ import annotations

from torch import Tensor

from peft_dp.backbones import Backbone

Vectors = dict[str, list[Tensor]]
"""Term, such as "query.bias" or "output_norm.weight" -> its vector in each layer, lowest first."""


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
