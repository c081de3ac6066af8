"""Adapters and Compacter against the library `adapters` (AdapterHub), whose files `tox -e adapters` writes.

With the same values the last hidden states, the gradients and five steps of SGD are the same. Differences that are
meant, and not compared:

- Compacter's activation: the library's default is the exact GELU, ours its tanh form, as the authors' code has it;
  the reference is made with "gelu_new", the library's name for that form.
- Where Compacter's values start: the library draws the factors Glorot-normal with gain 1, ours are Glorot-uniform
  with gain sqrt 2. Here all values are set.
- Dropout: the library's Houlsby adapter comes after the backbone's dropout, ours before it. Here it is off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from peft_dp.methods._attach import attach

RATE = 0.5
FOLDER = Path(__file__).parent / "reference"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "houlsby": ("adapter", {"placement": "houlsby", "bottleneck": 4, "activation": "swish"}),
    "pfeiffer": ("adapter", {"placement": "pfeiffer", "bottleneck": 4, "activation": "relu"}),
    "compacter": ("compacter", {"n": 2, "bottleneck": 4, "rank": 1}),
}
# The library's name of a value -> ours, both from the encoder's layer or, for the shared rules, from the encoder.
NAMES = {
    "adapters.kind.adapter_down.0.weight": "adapter.down.weight",
    "adapters.kind.adapter_down.0.bias": "adapter.down.bias",
    "adapters.kind.adapter_up.weight": "adapter.up.weight",
    "adapters.kind.adapter_up.bias": "adapter.up.bias",
    "adapters.kind.adapter_down.0.W_left": "compacter.down.left",
    "adapters.kind.adapter_down.0.W_right": "compacter.down.right",
    "adapters.kind.adapter_down.0.b": "compacter.down.bias",
    "adapters.kind.adapter_up.W_left": "compacter.up.left",
    "adapters.kind.adapter_up.W_right": "compacter.up.right",
    "adapters.kind.adapter_up.b": "compacter.up.bias",
}


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under a name, without it."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def ours(name: str, kind: str) -> str:
    """Our name, from the encoder, of a value of the library's adapter."""
    if name == "shared_parameters.kind.phm_rule":
        return "encoder.layer.0.attention.output.dense.compacter.down.rules"
    site, _, value = name.partition(".adapters.")
    return f"{site}.{'LayerNorm' if kind == 'pfeiffer' else 'dense'}.{NAMES[f'adapters.{value}']}"


def compare(kind: str, folder: Path) -> None:
    """Compare with what the library computed: the last hidden states, gradients, five steps of SGD.

    Raises:
        AssertionError: They are not the same to 1e-10 in float64, padding included.
    """
    if not (folder / f"{kind}.json").is_file():
        pytest.skip(f"needs the library's values in {FOLDER}: tox -e adapters")
    tensors, facts = load_file(folder / f"{kind}.safetensors"), json.loads((folder / f"{kind}.json").read_text())
    model = BertForSequenceClassification(BertConfig(**facts["shape"])).double().eval()
    inputs = {key: tensors[key] for key in ("input_ids", "attention_mask")}
    encoder, adapter, gradient, after = (part(tensors, name) for name in ("encoder", "adapter", "gradient", "after"))
    model.bert.load_state_dict(encoder)
    bare = model.bert(**inputs).last_hidden_state
    method, config = METHODS[kind]
    trained = attach(model, method, **config)
    named = {name: trained[f"bert.{ours(name, kind)}"] for name in adapter}
    with torch.no_grad():
        for name, parameter in named.items():
            assert parameter.shape == adapter[name].shape
            parameter.copy_(adapter[name])
    found = model.bert(**inputs).last_hidden_state

    assert len(named) == len([name for name in trained if not name.startswith("classifier")])
    assert (bare - found).abs().max() > 0.1
    torch.testing.assert_close(found, tensors["last_hidden_state"], rtol=0, atol=1e-10)
    optimiser, losses = torch.optim.SGD(named.values(), lr=RATE), []
    for step in range(5):
        optimiser.zero_grad()
        loss = (model.bert(**inputs).last_hidden_state * tensors["target"]).mean()
        loss.backward()
        if not step:
            for name, parameter in named.items():
                torch.testing.assert_close(parameter.grad, gradient[name], rtol=0, atol=1e-10)
        losses.append(loss.detach())
        optimiser.step()
    torch.testing.assert_close(torch.stack(losses), tensors["losses"], rtol=0, atol=1e-10)
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.detach(), after[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", METHODS)
def test_equals_library(kind: str) -> None:
    """Forward pass, gradients and five steps are the library's."""
    compare(kind, FOLDER)


@pytest.mark.parametrize("kind", METHODS)
def test_fault_is_seen(kind: str) -> None:
    """A library whose adapters lack the residual is seen by each comparison."""
    with pytest.raises(AssertionError, match="not close"):
        compare(kind, FOLDER / "fault")
