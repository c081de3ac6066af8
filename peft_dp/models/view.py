"""A model of one's own, seen as a backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from peft_dp import registry
from peft_dp.models import decoders
from peft_dp.models.backbone import Backbone


def view(model: nn.Module, head: Sequence[str] = ()) -> Backbone:
    """Return a model of transformers as a backbone, its sites found by role.

    Args:
        model: The encoder or decoder, or one with a head.
        head: Paths of the modules that make the head; none for those that a classification model of its family has.

    Raises:
        ValueError: The model is not one of transformers, is of a family without a file in `backbones/`, has no module
            of such a path, or has parameters outside its encoder that are no part of the head.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        within = [name for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]
        remedy = f"give its {within[0]}, and train the rest yourself" if within else "give one"
        raise ValueError(f"{type(model).__name__} is no model of transformers: {remedy}")
    families = dict(decoders.FAMILIES)
    for name in registry.names("backbones"):
        module = registry.load("backbones", name)
        families[module.CONFIG["model_type"]] = module.FAMILY
    kind = model.config.model_type
    if kind not in families:
        raise ValueError(f"model of type {kind!r} has no known sites; known: {', '.join(sorted(families))}")
    encoder = model.base_model
    named = dict(model.named_modules())
    for path in head:
        if path not in named:
            raise ValueError(f"{type(model).__name__} has no module {path!r}: name its head, such as 'classifier'")
    heads = [named[path] for path in head or families[kind].head if path in named]
    frozen = [named[path] for path in families[kind].pretrained_head if path in named]
    known = {id(parameter) for module in (encoder, *heads, *frozen) for parameter in module.parameters()}
    if other := [name for name, parameter in model.named_parameters() if id(parameter) not in known]:
        start = other[0].partition(".")[0]
        raise ValueError(
            f"{other[0]} of {type(model).__name__} is neither in its encoder nor in a head that is known here, so it "
            f"would stay at random: name the head, as in head={start!r}"
        )
    return Backbone(model, encoder, families[kind], heads)
