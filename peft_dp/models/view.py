"""A model of one's own, seen as a backbone."""

from __future__ import annotations

from torch import nn

from peft_dp import registry
from peft_dp.models.backbone import Backbone


def view(model: nn.Module) -> Backbone:
    """Return a classification model of transformers as a backbone, its sites found by role.

    Raises:
        ValueError: The model is of a family without a file in `backbones/`.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    families = {}
    for name in registry.names("backbones"):
        module = registry.load("backbones", name)
        families[module.CONFIG["model_type"]] = module.FAMILY
    if kind not in families:
        raise ValueError(f"model of type {kind!r} has no known sites; known: {', '.join(sorted(families))}")
    heads = [model.get_submodule(path) for path in families[kind].head if hasattr(model, path)]
    return Backbone(model, model.base_model, families[kind], heads)  # type: ignore[arg-type]
