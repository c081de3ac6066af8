"""Models, examples and engines for the tests of the private step in loops of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import peft_dp
from peft_dp import Privacy, PrivacyEngine
from peft_dp.privacy.plan import Plan

PRIVACY = Privacy(epsilon=1.0, delta=1e-3, clip=0.5, accountant="rdp")
SEED = 3


@dataclass(frozen=True)
class Case:
    """A model and 24 examples to train it on.

    Attributes:
        losses: Example indices -> loss of each [B].
    """

    model: nn.Module
    losses: Callable[[Sequence[int]], Tensor]

    def trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of what trains."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def gradients(self) -> dict[str, Tensor]:
        """Name -> copy of what is set as gradient."""
        return {name: p.grad.clone() for name, p in self.trained().items() if p.grad is not None}

    def loop(self, indices: list[int]) -> Tensor:
        """Gradients [B, P] of examples passed one at a time."""
        rows = []
        for index in indices:
            found = torch.autograd.grad(self.losses([index]).sum(), list(self.trained().values()))
            rows.append(flat(found))
        return torch.stack(rows) if rows else torch.zeros(1, sum(p.numel() for p in self.trained().values()))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors in a row."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def regression(model: nn.Module) -> Case:
    """Square errors of a model on vectors of five."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(24, generator=generator, dtype=torch.float64)
    dtype = next(model.parameters()).dtype
    return Case(model, lambda i: (model(inputs[i].to(dtype)).flatten() - targets[i].to(dtype)).square())


def small() -> Case:
    """A hand-made model in float64: two linear layers."""
    torch.manual_seed(0)
    return regression(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double())


def bert() -> Case:
    """A tiny BERT with LoRA in float64, on sentences of three to eight tokens."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AutoConfig.for_model("bert", vocab_size=50, num_labels=3, **shape, **dropout)
    model = AutoModelForSequenceClassification.from_config(config).double().train()
    trained = peft_dp.attach(model, "lora", rank=2, alpha=4)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ids, labels, lengths = torch.randint(5, 50, (24, 8)), torch.randint(0, 3, (24,)), torch.randint(3, 9, (24,))
    mask = (torch.arange(8) < lengths[:, None]).long()

    def losses(indices: Sequence[int]) -> Tensor:
        chosen = list(indices)
        logits = model(input_ids=ids[chosen], attention_mask=mask[chosen]).logits
        return functional.cross_entropy(logits, labels[chosen], reduction="none")

    return Case(model, losses)


def engine(model: nn.Module, **options: Any) -> PrivacyEngine:
    """Six steps over 24 examples, eight at a time."""
    given: dict[str, Any] = {"privacy": PRIVACY, "examples": 24, "batch": 8, "epochs": 2, "seed": SEED} | options
    return PrivacyEngine(model, **given)


def plan(**fields: Any) -> Plan:
    """A plan over 24 examples without noise."""
    base: dict[str, Any] = {
        "examples": 24,
        "batch": 8,
        "steps": 6,
        "steps_per_epoch": 3,
        "sampling": "poisson",
        "sample_rate": 1 / 3,
    }
    return Plan(**(base | {"clip": 0.5, "delta": 1e-3, "accountant": "rdp"} | fields))
