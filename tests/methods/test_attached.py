"""Tests of models of one's own with a method on them: kept, read again, merged, in peft's format and back."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import peft_dp
from peft_dp import methods
from peft_dp.methods import _attached
from peft_dp.validate import Missing

from .test_attach import SHAPES, WHOLE

IDS = torch.arange(5, 33).view(4, 7)


def made(family: str = "bert") -> Any:
    """A model of random weights, the same in each call."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=50, num_labels=3, **SHAPES[family])
    return AutoModelForSequenceClassification.from_config(config).eval()


def trained(model: Any, method: str, **settings: Any) -> Any:
    """The model with the method on it, all that trains moved."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in peft_dp.attach(model, method, **settings).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def settings(method: str) -> dict[str, Any]:
    """Small settings of a method."""
    return dict(methods.load(method).EXAMPLE.model_dump(mode="json"))


@pytest.mark.parametrize("method", WHOLE)
def test_kept(method: str, tmp_path: Path) -> None:
    """What is kept of a model and put on another of the same weights gives equal logits, and trains the same."""
    model = trained(made(), method, **settings(method))
    peft_dp.save(model, tmp_path)
    other = made()
    found = peft_dp.load(other, tmp_path)

    assert torch.equal(model(IDS).logits, other(IDS).logits)
    assert [*found] == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("method", WHOLE)
def test_save_pretrained(method: str, tmp_path: Path) -> None:
    """Transformers' own file holds the model, or is refused with what to call; never is anything lost in silence."""
    model = trained(made(), method, **settings(method))
    before = model(IDS).logits
    if len([*model.parameters()]) > len([*made().parameters()]):
        with pytest.raises(ValueError, match=r"call peft_dp\.save\(model, DIR\)"):
            model.save_pretrained(tmp_path)
        assert not any(tmp_path.iterdir())
        return
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()(IDS).logits, before)


@pytest.mark.parametrize("family", SHAPES)
def test_merged(family: str, tmp_path: Path) -> None:
    """A merged model gives the same logits to rounding, and transformers writes and reads it."""
    model = trained(made(family), "lora", rank=2, alpha=4)
    before = model(IDS).logits
    copied = copy.deepcopy(model)
    for one in (model, copied):
        peft_dp.merge(one)
        torch.testing.assert_close(one(IDS).logits, before)
    model.save_pretrained(tmp_path)

    assert torch.equal(
        AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()(IDS).logits, model(IDS).logits
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which peft asks transformers for
@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("sites", [["query", "value"], ["query", "key", "value", "attention_output"]], ids=len)
def test_peft(family: str, sites: list[str], tmp_path: Path) -> None:
    """LoRA goes to peft's format and back with equal logits, in peft's own model too."""
    from peft import PeftModel

    model = trained(made(family), "lora", rank=2, alpha=4, sites=sites)
    peft_dp.to_peft(model, tmp_path / "there")
    theirs = PeftModel.from_pretrained(made(family), str(tmp_path / "there")).eval()
    theirs.save_pretrained(str(tmp_path / "back"))
    ours = made(family)
    peft_dp.load(ours, tmp_path / "back")

    torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits)
    assert torch.equal(ours(IDS).logits, model(IDS).logits)


def test_refusals(tmp_path: Path) -> None:
    """A model without a method, one of other weights, a damaged file and a method that peft lacks are named."""
    with pytest.raises(ValueError, match=r"has no method on it: call peft_dp\.attach"):
        peft_dp.save(made(), tmp_path)
    with pytest.raises(Missing, match="holds neither"):
        peft_dp.load(made(), tmp_path)
    adapter = trained(made(), "adapter", **settings("adapter"))
    with pytest.raises(ValueError, match="so it cannot be merged"):
        peft_dp.merge(adapter)
    with pytest.raises(ValueError, match="peft's format is written of 'lora', not of 'adapter'"):
        peft_dp.to_peft(adapter, tmp_path)
    peft_dp.save(adapter, tmp_path)
    other = made()
    with torch.no_grad():
        other.bert.embeddings.word_embeddings.weight.add_(1)
    with pytest.raises(ValueError, match="was trained on another BertForSequenceClassification"):
        peft_dp.load(other, tmp_path)
    path = tmp_path / _attached.TENSORS
    path.write_bytes(path.read_bytes()[: random.Random(0).randrange(40)])
    with pytest.raises(ValueError, match="holds no whole model"):
        peft_dp.load(made(), tmp_path)


def test_not_plain_lora(tmp_path: Path) -> None:
    """What peft computes otherwise than plain LoRA is not taken for it."""
    peft_dp.to_peft(trained(made(), "lora", rank=2, alpha=4), tmp_path)
    about = tmp_path / _attached.PEFT_ABOUT
    about.write_text(json.dumps(json.loads(about.read_text()) | {"use_dora": True}))

    with pytest.raises(ValueError, match="has use_dora, which is not plain LoRA: load it by peft itself"):
        peft_dp.load(made(), tmp_path)
