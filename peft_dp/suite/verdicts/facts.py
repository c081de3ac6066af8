"""Quantities of a paper that need no training: counts on a model without weights, noise from the accountant alone."""

from __future__ import annotations

from math import ceil
from typing import Any

import torch

from peft_dp import methods, registry
from peft_dp.models.backbone import Backbone, Classifier
from peft_dp.privacy.plan import quiet

__all__ = ["noise_multiplier", "parameters", "percent"]


def parameters(
    *,
    backbone: str,
    method: str,
    outputs: int,
    config: dict[str, Any] | None = None,
    head: str = "linear",
    part: str = "all",
    plus: int = 0,
) -> int:
    """Trained values of a method on a backbone of the paper's shape.

    Args:
        backbone: Name of a file in `backbones/`.
        method: Name of a file in `methods/`.
        outputs: Width of the head.
        config: Settings of the method's `Config`.
        head: "linear" or "stock", as in `Spec`.
        part: "all", or "encoder" to leave the head out.
        plus: Values that the paper counts and this backbone does not have.
    """
    built = _meta(backbone, outputs, head)
    built.freeze()
    methods.make(method, config or {}).install(built, torch.Generator().manual_seed(0))
    left_out = sum(parameter.numel() for parameter in built.head) if part == "encoder" else 0
    return built.count() - left_out + plus


def percent(*, of: int | None = None, **given: Any) -> float:
    """`parameters` as a percentage of `of`, or of the backbone with its pooler and without a head."""
    return 100 * parameters(**given) / (of or size(given["backbone"]))


def size(backbone: str) -> int:
    """Number of values of a backbone, pooler included, head not."""
    return sum(p.numel() for p in _meta(backbone, 2, "stock").encoder.parameters())


def noise_multiplier(
    *, examples: int, batch: int, steps: int, epsilon: float, delta: float, slack: float, digits: int
) -> float:
    """Return the least noise of so many decimals whose epsilon, by the PRV accountant's bound, is below `epsilon`.

    Args:
        examples: N.
        batch: Expected batch.
        steps: Updates.
        epsilon: Target.
        delta: Failure probability.
        slack: The accountant's `eps_error`: its upper bound lies this far above its estimate.
        digits: Decimals of the noise, which is rounded up, as more noise is safe.
    """
    from opacus.accountants import PRVAccountant
    from scipy.optimize import brentq

    def excess(noise: float) -> float:
        accountant = PRVAccountant()
        accountant.history = [(noise, batch / examples, steps)]
        with quiet():
            return float(accountant.get_epsilon(delta=delta, eps_error=slack)) - epsilon

    least = float(brentq(excess, 0.5, 2.0, xtol=1e-5))
    return ceil(least * 10.0**digits) / 10.0**digits


def _meta(name: str, outputs: int, head: str) -> Backbone:
    """The backbone of that name on the meta device: shapes without values."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    module = registry.load("backbones", name)
    config = AutoConfig.for_model(**module.CONFIG, num_labels=outputs)
    with torch.device("meta"):
        if head == "stock":
            model = AutoModelForSequenceClassification.from_config(config)
            heads = [model.get_submodule(path) for path in module.FAMILY.head]
            return Backbone(model, model.base_model, module.FAMILY, heads)
        options = {"add_pooling_layer": False} if module.FAMILY.pooler else {}
        encoder = AutoModel.from_config(config, **options)
        shell = Classifier(encoder, config.hidden_size, outputs, "cls", torch.Generator())
        return Backbone(shell, encoder, module.FAMILY, [shell.head])
