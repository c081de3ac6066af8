"""Tests of a method on a model of one's own, as docs/python.md shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

import peft_dp
from peft_dp import methods, registry

SHAPES = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
}


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


@pytest.mark.parametrize("method", registry.names("methods"))
def test_device(method: str) -> None:
    """What a method adds lies where the model does; meta stands for a device that is not the CPU."""
    config = AutoConfig.for_model("bert", vocab_size=50, num_labels=3, **SHAPES["bert"])
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    trained = peft_dp.attach(model, method, **methods.load(method).EXAMPLE.model_dump(mode="json"))

    assert {"meta"} == {parameter.device.type for parameter in trained.values()}


def test_unknown_family() -> None:
    """A model without known sites is refused with the families there are."""
    with pytest.raises(ValueError, match="has no known sites; known: bert, distilbert, roberta"):
        peft_dp.attach(nn.Linear(2, 2), "bitfit")


def test_readme_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's ten lines run, and print the count they promise."""
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "attach" in block)
    exec(compile(code, "python.md", "exec"), {})

    assert capsys.readouterr().out.strip() == re.findall(r"# prints (.*)", code)[0]
