"""A method on a model of one's own."""

from __future__ import annotations

import torch
from torch import nn

from peft_dp import registry
from peft_dp.models.backbone import Backbone


def view(model: nn.Module) -> Backbone:
    """A classification model of transformers, seen as sites by role.

    Raises:
        ValueError: A model of a family without a file in `backbones/`.
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


def attach(model: nn.Module, method: str, *, seed: int = 0, **config: object) -> dict[str, nn.Parameter]:
    """Freezes a Hugging Face model, puts a method on it in place, and gives what trains.

    Args:
        model: `AutoModelForSequenceClassification` or `AutoModelForTokenClassification` of BERT, RoBERTa or DistilBERT.
        method: Name of a file in `methods/`.
        seed: Of the new parameters.
        config: Settings of the method's `Config`.

    Returns:
        Name -> parameter of all that trains, the head included.

    Raises:
        ValueError: Unknown method or family, or a setting out of range.
        TypeError: A setting the method does not have.
    """
    backbone = view(model)
    module = registry.load("methods", method)
    backbone.freeze()
    module.install(backbone, module.Config(**config), torch.Generator().manual_seed(seed))
    backbone.to(str(next(model.parameters()).device))  # what a method adds may lie elsewhere
    return backbone.trained()
