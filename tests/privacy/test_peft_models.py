"""Tests of models of peft under the engine: which have the gradients of a loop, and which are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from peft_dp.privacy.gradients import check_independent, per_example_pass

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
]
SITES = ["query", "value"]
TRAINS = {
    "LoRA": peft.LoraConfig(r=2, target_modules=SITES),
    "rsLoRA": peft.LoraConfig(r=2, use_rslora=True, target_modules=SITES),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3),
    "LN": peft.LNTuningConfig(target_modules=["LayerNorm"]),
}
REFUSED = {
    "DoRA": peft.LoraConfig(r=2, use_dora=True, target_modules=SITES),
    "IA3": peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[]),
    "VeRA": peft.VeraConfig(r=2, target_modules=SITES),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3),
}


def made(config: Any) -> tuple[Any, Callable[[Sequence[int]], Tensor]]:
    """A tiny BERT as a model of peft, and the losses of five examples."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config.task_type = "SEQ_CLS"
    config_of: Any = BertConfig
    base = BertForSequenceClassification(config_of(vocab_size=40, num_labels=3, **shape, **dropout))
    model = peft.get_peft_model(base, config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    ids, labels = torch.randint(1, 40, (5, 6)), torch.randint(3, (5,))

    def losses(indices: Sequence[int]) -> Tensor:
        some = [*indices]
        logits = model(input_ids=ids[some], attention_mask=torch.ones_like(ids[some])).logits
        return functional.cross_entropy(logits, labels[some], reduction="none")

    return model, losses


@pytest.mark.parametrize("name", TRAINS)
def test_gradients(name: str) -> None:
    """Each example's gradient is that of the example passed alone, and the check before a training passes."""
    model, losses = made(TRAINS[name])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    alone = [torch.autograd.grad(losses([at]).sum(), trained, allow_unused=True) for at in range(5)]
    rows = [
        torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, trained, strict=True)])
        for found in alone
    ]
    check_independent(model, lambda: losses([0, 1]))

    torch.testing.assert_close(per_example_pass(model, lambda: losses(range(5)), 5).each(), torch.stack(rows))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """What no rule covers is refused before it trains, with what to take or to do instead."""
    model, losses = made(REFUSED[name])

    with pytest.raises(ValueError, match=r"take LoRA .rsLoRA too., prefix tuning or LN tuning|give it a row for each"):
        check_independent(model, lambda: losses([0, 1]))
