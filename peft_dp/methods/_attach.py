"""A method on a model of one's own."""

from __future__ import annotations

import torch
from torch import nn

from peft_dp.methods import make
from peft_dp.models.view import view


def attach(model: nn.Module, method: str, *, seed: int = 0, **settings: object) -> dict[str, nn.Parameter]:
    """Freeze a Hugging Face model, put a method on it in place, and return what trains.

    Args:
        model: `AutoModelForSequenceClassification` or `AutoModelForTokenClassification` of BERT, RoBERTa or DistilBERT.
        method: Name of a file in `methods/`.
        seed: Seed of the new parameters.
        settings: Settings of the method, the fields of its `Config`.

    Returns:
        Name -> parameter of all that trains, the head included.

    Raises:
        ValueError: An unknown method or family, or a setting that the method does not have, lacks or cannot take.
    """
    made, backbone = make(method, settings), view(model)
    backbone.freeze()
    made.install(backbone, torch.Generator().manual_seed(seed))
    backbone.to(str(next(model.parameters()).device))  # what a method adds may lie elsewhere
    return backbone.trained()
