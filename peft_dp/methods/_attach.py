"""A method on a model of one's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from peft_dp import registry
from peft_dp.methods import load, make
from peft_dp.methods._attached import BACKBONE, Attached, note, tensors
from peft_dp.models.view import view


def attach(
    model: nn.Module, method: str, *, seed: int = 0, head: str | Sequence[str] = (), **settings: object
) -> dict[str, nn.Parameter]:
    """Freeze a Hugging Face model, put a method on it in place, and return what trains.

    Args:
        model: A model of transformers, with a head or without: of a family in `backbones/` (BERT, RoBERTa, DistilBERT),
            or a decoder of a family in `models/decoders.py` (GPT-2, Llama, Mistral, Qwen2), whose language-model head
            stays frozen.
        method: Name of a file in `methods/` that changes nothing but the model.
        seed: Seed of the new parameters.
        head: Path of the module that makes the head, or several. A classification model's need not be named.
        settings: Settings of the method, the fields of its `Config`.

    Returns:
        Name -> parameter of all that trains, the head included.

    Raises:
        ValueError: An unknown method or family; a setting that the method does not have, lacks or cannot take; a head
            that is not known; a model that has a method already or that the method does not fit; nothing to train; or a
            method part of whose work is done by this project's training loop. Nothing trains in another way then than
            before.
    """
    made = make(method, settings)
    if not made.plain:
        raise ValueError(_LOOP.format(method))
    for name, module in model.named_modules():
        if type(module).__module__.partition(".")[0] in ("peft_dp", "peft", "adapters"):
            where = f"{type(module).__name__} at {name}" if name else type(module).__name__
            raise ValueError(f"the model has a method on it already ({where}): attach to a new one")
    backbone = view(model, [head] if isinstance(head, str) else head)
    if backbone.family.causal and not made.for_decoders:
        fit = [name for name in registry.names("methods") if load(name).Config.for_decoders]
        raise ValueError(f"{method} is not made for decoders such as {type(model).__name__}: take {', '.join(fit)}")
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    names = set(tensors(model))
    try:
        backbone.freeze()
        made.install(backbone, torch.Generator().manual_seed(seed))
        if backbone.masks:
            raise ValueError(_LOOP.format(method))
        if not backbone.trained():
            raise ValueError(f"{method} trains only the head, and {type(model).__name__} has none that trains: name it")
    except (AttributeError, ValueError) as error:
        for parameter, trained in before.items():
            parameter.requires_grad_(trained)
        if isinstance(error, AttributeError):  # torch's, of a parameter or module that a site lacks
            raise ValueError(f"{type(model).__name__} lacks what {method} works on: {error}") from error
        raise
    backbone.to(str(next(model.parameters()).device))  # what a method adds may lie elsewhere
    added = tuple(name for name in tensors(model) if name not in names)
    heads = (head,) if isinstance(head, str) else tuple(head)
    note(model, Attached(method=method, settings=made.model_dump(mode="json"), seed=seed, head=heads, added=added))
    model.__dict__[BACKBONE] = backbone
    return backbone.trained()


_LOOP = (
    "{} is more than modules in a model: its masks, phases, gates or released gradients are made by the training loop "
    "of peft_dp.run; add the model as a backbone (docs/extend.md), or take another method"
)
