"""Tests of a method on a model of one's own, as docs/python.md shows it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

import peft_dp
from peft_dp import methods, registry

SHAPES = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
}


LOOP = ("diff_pruning", "gradual", "random_mask", "rgp", "two_phase")
WHOLE = [name for name in registry.names("methods") if name not in LOOP]
"""Methods whose whole work is done by modules in the model."""


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
@pytest.mark.parametrize("family", SHAPES)
def test_attach(family: str, auto: type) -> None:
    """Only what `attach` gives moves in a step of training, and the head is among it."""
    config = AutoConfig.for_model(family, vocab_size=50, num_labels=3, **SHAPES[family])
    model = auto.from_config(config)  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = peft_dp.attach(model, "bitfit")
    output = model(torch.randint(5, 50, (4, 7)))
    output.logits.square().sum().backward()
    torch.optim.SGD(trained.values(), lr=0.1).step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

    assert moved <= set(trained)
    assert any("classifier" in name for name in moved)
    assert any("classifier" not in name for name in moved)


@pytest.mark.parametrize("method", WHOLE)
def test_device(method: str) -> None:
    """What a method adds lies where the model does; meta stands for a device that is not the CPU."""
    config = AutoConfig.for_model("bert", vocab_size=50, num_labels=3, **SHAPES["bert"])
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    trained = peft_dp.attach(model, method, **methods.load(method).EXAMPLE.model_dump(mode="json"))

    assert {"meta"} == {parameter.device.type for parameter in trained.values()}


class Own(nn.Module):
    """A model of one's own around one of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tiny("BertModel")
        self.top = nn.Linear(16, 2)


def tiny(kind: str, **fields: Any) -> Any:
    """Return a model of transformers with random weights, dropout off."""
    torch.manual_seed(0)
    shape = SHAPES["bert"] | {"vocab_size": 50, "num_labels": 2} | fields
    return getattr(transformers, kind)(transformers.BertConfig(**shape)).eval()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Linear(2, 2), "Linear is no model of transformers: give one"),
        (Own, "Own is no model of transformers: give its bert, and train the rest yourself"),
        (
            lambda: transformers.T5EncoderModel(transformers.T5Config(d_model=16, num_layers=1, num_heads=2, d_ff=16)),
            "model of type 't5' has no known sites; known: bert, distilbert, gpt2, llama, mistral, qwen2, roberta",
        ),
        (
            lambda: peft.get_peft_model(tiny("BertForSequenceClassification"), peft.LoraConfig(task_type="SEQ_CLS")),
            r"the model has a method on it already \(PeftModelForSequenceClassification\): attach to a new one",
        ),
    ],
    ids=["no model", "around one", "other family", "peft"],
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_other_models(model: Callable[[], nn.Module], message: str) -> None:
    """A model whose sites are not known is refused with what to give in its place."""
    with pytest.raises(ValueError, match=message):
        peft_dp.attach(model(), "bitfit")


HEADS = {
    "BertForQuestionAnswering": "qa_outputs",
    "BertForNextSentencePrediction": "cls",
    "BertForMaskedLM": "cls",
    "BertForPreTraining": "cls",
}


@pytest.mark.parametrize("kind", HEADS)
def test_unknown_head(kind: str) -> None:
    """A head that is not known is refused, with the argument that names it; named, it trains."""
    model = tiny(kind)
    with pytest.raises(ValueError, match=f"would stay at random: name the head, as in head='{HEADS[kind]}'"):
        peft_dp.attach(model, "lora", rank=2, alpha=4)
    assert all(parameter.requires_grad for parameter in model.parameters())
    trained = peft_dp.attach(model, "lora", rank=2, alpha=4, head=HEADS[kind])

    assert any(name.startswith(HEADS[kind]) for name in trained)
    with pytest.raises(ValueError, match="has no module 'top'"):
        peft_dp.attach(tiny(kind), "lora", rank=2, alpha=4, head="top")


def test_encoder_alone() -> None:
    """An encoder has no head, and needs none."""
    assert all("lora" in name for name in peft_dp.attach(tiny("BertModel"), "lora", rank=2, alpha=4))


@pytest.mark.parametrize("method", sorted({*registry.names("methods")} - {*WHOLE}))
def test_method_of_our_loop(method: str) -> None:
    """A method part of whose work our training loop does is refused in a sentence, and the model stays as it was."""
    model = tiny("BertForSequenceClassification")
    names = [*dict(model.named_modules())]
    with pytest.raises(ValueError, match=f"^{method} is more than modules in a model: its masks, phases, gates"):
        peft_dp.attach(model, method, **methods.load(method).EXAMPLE.model_dump(mode="json"))

    assert all(parameter.requires_grad for parameter in model.parameters())
    assert names == [*dict(model.named_modules())]


@pytest.mark.parametrize("method", WHOLE)
def test_copy(method: str) -> None:
    """A deep copy computes with its own values: it does not move with the original."""
    model, ids = tiny("BertForSequenceClassification"), torch.randint(5, 50, (4, 7))
    trained = peft_dp.attach(model, method, **methods.load(method).EXAMPLE.model_dump(mode="json"))
    other = copy.deepcopy(model)
    before = other(ids).logits.detach()
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.5)

    assert torch.equal(before, other(ids).logits)
    assert not torch.equal(before, model(ids).logits)


@pytest.mark.parametrize("method", WHOLE)
def test_twice(method: str) -> None:
    """A second method is refused, or leaves nothing in the forward pass that a state dict does not hold."""
    model, ids = tiny("BertForSequenceClassification"), torch.randint(5, 50, (4, 7))
    first = peft_dp.attach(model, method, **methods.load(method).EXAMPLE.model_dump(mode="json"))
    with torch.no_grad():
        for parameter in first.values():
            parameter.add_(0.3)
    if any(type(module).__module__.startswith("peft_dp.") for module in model.modules()):
        with pytest.raises(ValueError, match="the model has a method on it already"):
            peft_dp.attach(model, "lora", rank=2, alpha=4)
        return
    peft_dp.attach(model, "lora", rank=2, alpha=4)
    again = tiny("BertForSequenceClassification")
    peft_dp.attach(again, "lora", rank=2, alpha=4)
    again.load_state_dict(model.state_dict())

    assert torch.equal(model(ids).logits, again(ids).logits)


def test_layers_without_bias() -> None:
    """A method that needs biases says so of a model that has none, and leaves it as it was."""
    model = tiny("BertForSequenceClassification")
    for module in model.bert.encoder.modules():
        if isinstance(module, nn.Linear):
            module.register_parameter("bias", None)
    with pytest.raises(ValueError, match=r"BertForSequenceClassification lacks what bitfit works on: .*bias"):
        peft_dp.attach(model, "bitfit", biases=["query"])

    assert all(parameter.requires_grad for parameter in model.parameters())
    assert peft_dp.attach(model, "lora", rank=2, alpha=4)


def test_nothing_to_train() -> None:
    """The method that trains only the head is refused where no head trains, and the model is left as it was."""
    model = tiny("BertModel")
    with pytest.raises(ValueError, match="head trains only the head, and BertModel has none that trains: name it"):
        peft_dp.attach(model, "head")

    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", WHOLE)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad:UserWarning")
def test_gradient_checkpointing(method: str, reentrant: bool) -> None:
    """With gradient checkpointing a training gives the gradients that it gives without, or is refused in a sentence."""
    ids, found = torch.randint(5, 50, (4, 7)), []
    for checkpointing in (False, True):
        model = tiny("BertForSequenceClassification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        trained = peft_dp.attach(model, method, **methods.load(method).EXAMPLE.model_dump(mode="json"))
        model(ids).logits.square().sum().backward()
        found.append({name: parameter.grad for name, parameter in trained.items()})

    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


def test_readme_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's ten lines run, and print the count they promise."""
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "attach" in block)
    exec(compile(code, "python.md", "exec"), {})

    assert capsys.readouterr().out.strip() == re.findall(r"# prints (.*)", code)[0]
