"""BitFit: only bias terms train (Ben Zaken et al. 2022, section 3; private in DP-BiTFiT, Bu et al.).

By default all bias vectors of the encoder, the embeddings' LayerNorm included:
11 d L + d values for L layers of width d, and d more where there is a pooler.
Key biases are among them though softmax makes the output blind to them, as in
the papers' counts. BitFit+ (Weng et al., section 3.2) trains subsets of them,
with or without the LayerNorms' scales: its b_m2, b_q are ("intermediate",
"query"), its g_LN1, g_LN2 the gammas of "attention_norm" and "output_norm".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from peft_dp import validate
from peft_dp.models.backbone import Backbone

GAMMAS = ("attention_norm", "output_norm")
TERMS = ("query", "key", "value", "attention_output", "intermediate", "output", *GAMMAS)
_ALSO = {"output": "attention_output", "output_norm": "attention_norm"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which biases and scales train.

    Attributes:
        biases: "all", or terms: query, key, value, attention_output, attention_norm, intermediate,
            output, output_norm. Only "all" has the bias of the embeddings' LayerNorm.
        gammas: LayerNorms whose scale trains: attention_norm, output_norm.
        pooler: Whether a pooler's bias trains, as in BitFit+'s code for every choice of terms;
            its printed shares leave it out.
        match: "exact" trains what is named. "substring" is the rule of BitFit+'s code, where the
            name of `output` and of `output_norm` is also found in that of `attention_output` and
            of `attention_norm`, which then train too.
    """

    biases: str | tuple[str, ...] = "all"
    gammas: tuple[str, ...] = ()
    pooler: bool = True
    match: str = "exact"

    def __post_init__(self) -> None:
        if isinstance(self.biases, str):
            validate.known("set of biases", self.biases, ["all"])
        else:
            object.__setattr__(self, "biases", tuple(self.biases))
            for term in self.biases:
                validate.known("bias term", term, TERMS)
        object.__setattr__(self, "gammas", tuple(self.gammas))
        for gamma in self.gammas:
            validate.known("gamma", gamma, GAMMAS)
        validate.known("match", self.match, ["exact", "substring"])
        if not (self.biases or self.gammas):
            raise ValueError("neither biases nor gammas are named: name one, or take the method that trains no more")


EXAMPLE = Config(gammas=GAMMAS)


def install(backbone: Backbone, config: Config, rng: torch.Generator) -> None:
    """Trains the chosen biases and scales."""
    whole = config.biases == "all"
    for name, parameter in backbone.encoder.named_parameters():
        if name.endswith("bias") and (config.pooler if name.startswith("pooler.") else whole):
            parameter.requires_grad_(True)
    chosen = [(role, "bias") for role in config.biases if not whole] + [(role, "weight") for role in config.gammas]
    if config.match == "substring":
        chosen += [(_ALSO[role], name) for role, name in chosen if role in _ALSO]
    for role, name in chosen:
        for site in backbone.sites(role):
            site.get_parameter(name).requires_grad_(True)
