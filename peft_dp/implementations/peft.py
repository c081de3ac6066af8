"""peft: the methods that it shares with the papers, in its modules and by its names, trained by this project's loop.

LoRA is its LoRA; BitFit of the LayerNorms alone, biases and scales, is its LN tuning. The random values of LoRA's A are
ours, as drawn for our own LoRA; all else is as peft starts it. (Its BEFT learns a shift of each bias and not the bias,
its SHiRA a shift of single weights: neither starts from our values, so neither is a replay.)
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import nn

from peft_dp.implementations._base import Implementation
from peft_dp.methods import Method, bitfit, lora
from peft_dp.models.backbone import Backbone
from peft_dp.spec import Spec
from peft_dp.validate import Unsupported

NORMS = ("attention_norm", "output_norm")


class Injected(Method):
    """A method as peft puts it on a model.

    Attributes:
        own: The method of this project.
    """

    own: lora.Config | bitfit.Config

    def install(self, backbone: Backbone, rng: torch.Generator) -> None:
        """Have peft inject its modules, then train them and the head."""
        from peft import LNTuningConfig, LoraConfig, PeftConfig, inject_adapter_in_model

        paths = {id(module): path for path, module in backbone.model.named_modules()}

        def targets(roles: tuple[str, ...]) -> list[str]:
            return [paths[id(site)] for role in roles for site in backbone.sites(role)]

        config: PeftConfig
        if isinstance(self.own, lora.Config):
            sites = targets(self.own.sites)
            config = LoraConfig(r=self.own.rank, lora_alpha=self.own.alpha, lora_dropout=0.0, target_modules=sites)  # type: ignore[arg-type]
        else:
            config = LNTuningConfig(target_modules=targets(NORMS))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # LN tuning's own
            inject_adapter_in_model(config, backbone.model)
        for parameter in backbone.head:
            parameter.requires_grad_(True)
        if isinstance(self.own, lora.Config):
            for path in sites:
                a = backbone.model.get_parameter(f"{path}.lora_A.default.weight")
                with torch.no_grad():
                    a.copy_(nn.init.kaiming_uniform_(torch.empty(a.shape), a=math.sqrt(5), generator=rng))


class Peft(Implementation):
    """Modules of peft in place of ours."""

    libraries = ("peft",)

    def check(self, spec: Spec, method: Method) -> None:
        """Refuse what peft has no method for."""
        norms = isinstance(method, bitfit.Config) and (method.biases, method.gammas) == (NORMS, NORMS)
        if not (isinstance(method, lora.Config) or norms):
            told = "peft has LoRA, and LN tuning for BitFit with biases and gammas of both LayerNorms"
            raise Unsupported(f"{told}, but not {spec.method} with {spec.config}")

    def method(self, method: Method) -> Method:
        """Return what has peft inject its modules."""
        assert isinstance(method, lora.Config | bitfit.Config)
        return Injected(own=method)


IMPLEMENTATION = Peft()
