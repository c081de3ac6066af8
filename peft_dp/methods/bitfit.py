"""BitFit: only bias terms train (Ben Zaken et al. 2022, section 3; private in DP-BiTFiT, Bu et al.).

By default these are all bias vectors of the encoder, that of the embeddings' LayerNorm included: 11 d L + d values for
L layers of width d, and d more where there is a pooler. Key biases are among them, as in the papers' counts, though
softmax makes the output blind to them. Khan and Scheder-Bieschin train the biases "in the transformer layers", SPAFIT's
authors those "in all the layers": that is "layers", without the embeddings' LayerNorm, and for SPAFIT `pooler` off.

BitFit+ (Weng et al., section 3.2) trains subsets of them, with or without the scales of LayerNorms: its b_m2, b_q are
("intermediate", "query"), its g_LN1, g_LN2 are the gammas of "attention_norm" and "output_norm".
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

import torch
from pydantic import Discriminator, Tag, model_validator

from peft_dp.methods._base import Method
from peft_dp.methods._common import LINEAR, Linear
from peft_dp.models.backbone import Backbone

Gamma = Literal["attention_norm", "output_norm"]
Term = Literal[Linear, Gamma]
Biases = Annotated[
    Annotated[Literal["all", "layers"], Tag("set")] | Annotated[tuple[Term, ...], Tag("terms")],
    Discriminator(lambda biases: "set" if isinstance(biases, str) else "terms"),
]
_ALSO = {"output": "attention_output", "output_norm": "attention_norm"}


class Config(Method):
    """Which biases and scales train.

    Attributes:
        biases: "all", or "layers" for all terms of the layers, or terms. Only "all" has the bias of the embeddings'
            LayerNorm.
        gammas: LayerNorms whose scale trains.
        pooler: Whether a pooler's bias trains, as in BitFit+'s code for every choice of terms;
            its printed shares leave it out.
        match: "exact" trains what is named. "substring" is the rule of BitFit+'s code, where the
            name of `output` and of `output_norm` is also found in that of `attention_output` and
            of `attention_norm`, which then train too.
    """

    for_decoders = True

    biases: Biases = "all"
    gammas: tuple[Gamma, ...] = ()
    pooler: bool = True
    match: Literal["exact", "substring"] = "exact"

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not (self.biases or self.gammas):
            raise ValueError("neither biases nor gammas are named: name one, or take the method 'head'")
        return self

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Train the chosen biases and scales."""
        for name, parameter in backbone.encoder.named_parameters():
            if name.endswith("bias") and (self.pooler if name.startswith("pooler.") else self.biases == "all"):
                parameter.requires_grad_(True)
        sets: dict[str, tuple[Term, ...]] = {"all": (), "layers": (*LINEAR, *get_args(Gamma))}
        terms = sets[self.biases] if isinstance(self.biases, str) else self.biases
        chosen: list[tuple[str, str]] = [(role, "bias") for role in terms]
        chosen += [(role, "weight") for role in self.gammas]
        if self.match == "substring":
            chosen += [(_ALSO[role], name) for role, name in chosen if role in _ALSO]
        for role, name in chosen:
            for site in backbone.sites(role):
                site.get_parameter(name).requires_grad_(True)
        if not any(p.requires_grad for p in backbone.encoder.parameters()):
            raise ValueError(f"{type(backbone.encoder).__name__} has no bias: name gammas to train, or take lora")


EXAMPLE = Config(gammas=("attention_norm", "output_norm"))
