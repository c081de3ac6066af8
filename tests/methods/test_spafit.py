"""SPAFIT: what trains in which layer, and how many values they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from peft_dp import methods, registry
from peft_dp.methods.spafit import Config
from peft_dp.models.backbone import Backbone
from peft_dp.models.view import view


def fitted(outputs: int = 3, **config: Any) -> Backbone:
    """BERT-large's shape, without weights, with SPAFIT on it."""
    with torch.device("meta"):
        shape = AutoConfig.for_model(**registry.load("backbones", "bert_large").CONFIG, num_labels=outputs)
        made = view(AutoModelForSequenceClassification.from_config(shape))
    made.freeze()
    Config(**config).install(made, torch.Generator())
    return made


@pytest.mark.parametrize(
    ("frozen", "bias", "variant", "count", "printed"),
    [
        (8, 12, "I", 4_441_091, "4.44"),
        (8, 12, "II", 5_882_883, "5.88"),
        (8, 16, "II", 3_806_211, "3.81"),
        (4, 9, "I", 5_650_435, "5.65"),
        (4, 9, "II", 7_485_443, "7.49"),
        (4, 14, "II", 4_889_603, "4.89"),
    ],
)
def test_counts(frozen: int, bias: int, variant: str, count: int, printed: str) -> None:
    """With a head of three classes the counts are those of table 2."""
    found = fitted(frozen=frozen, bias=bias, variant=variant).count()

    assert count == found
    assert printed == f"{found / 1e6:.2f}"


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_head_of_other_tasks(outputs: int) -> None:
    """Only the head depends on the task."""
    assert 7_485_443 + 1_025 * (outputs - 3) == fitted(outputs, frozen=4, bias=9, variant="II").count()


BIASES = {
    "attention.self.query.bias",
    "attention.self.key.bias",
    "attention.self.value.bias",
    "attention.output.dense.bias",
    "attention.output.LayerNorm.bias",
    "intermediate.dense.bias",
    "output.dense.bias",
    "output.LayerNorm.bias",
}
LORA = {f"attention.self.{name}.lora.{factor}.weight" for name in ("query", "key", "value") for factor in "ab"}
ALSO = {f"attention.output.dense.lora.{factor}.weight" for factor in "ab"}


@pytest.mark.parametrize(("variant", "lora"), [("I", LORA), ("II", LORA | ALSO)])
def test_groups(variant: str, lora: set[str]) -> None:
    """SPAFIT-4-9 freezes layers 0 to 4, trains all biases of 5 to 9, and LoRA and three biases of 10 to 23."""
    trained = list(fitted(frozen=4, bias=9, variant=variant).trained())
    layers = [
        {name.removeprefix(f"bert.encoder.layer.{n}.") for name in trained if f".layer.{n}." in name} for n in range(24)
    ]
    upper = lora | {name for name in BIASES if not name.startswith("attention.")}

    assert [set()] * 5 + [BIASES] * 5 + [upper] * 14 == layers
    assert ["classifier.weight", "classifier.bias"] == [name for name in trained if ".layer." not in name]


def test_first_layer() -> None:
    """No layer is frozen at -1, and no layer is without LoRA at -1 twice."""
    assert any(".layer.0." in name for name in fitted(frozen=-1, bias=0, variant="I").trained())
    assert any(".layer.0." in name and "lora" in name for name in fitted(frozen=-1, bias=-1, variant="I").trained())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"frozen": 10}, "frozen must be at most bias, not 10 with bias 9"),
        ({"frozen": -2}, "field 'frozen': Input should be greater than or equal to -1"),
        ({"frozen": 0.5}, r"field 'frozen': Input should be a valid integer \(it holds 0.5\)"),
        ({"variant": "III"}, "field 'variant': Input should be 'I' or 'II'"),
        ({"rank": 0}, "field 'rank': Input should be greater than 0"),
    ],
    ids=str,
)
def test_bad_settings(config: dict[str, Any], message: str) -> None:
    """A setting that cannot be is refused by name."""
    with pytest.raises(ValueError, match=message):
        methods.make("spafit", {"frozen": 4, "bias": 9, "variant": "I"} | config)


def test_too_few_layers() -> None:
    """Groups that leave no layer for LoRA are refused with the backbone's number of layers."""
    with pytest.raises(ValueError, match="bias 23 leaves no layer for LoRA: the last of 24 layers is 23"):
        fitted(frozen=4, bias=23, variant="I")
