"""BitFit: which biases and scales train, and how many they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from peft_dp import methods, registry
from peft_dp.models.backbone import Backbone
from peft_dp.models.view import view

GAMMAS = ("attention_norm", "output_norm")


def fitted(backbone: str = "bert", *, outputs: int = 2, **config: Any) -> Backbone:
    """A backbone of a paper's shape, without weights, that BitFit trains."""
    with torch.device("meta"):
        shape = AutoConfig.for_model(**registry.load("backbones", backbone).CONFIG, num_labels=outputs)
        made = view(AutoModelForSequenceClassification.from_config(shape))
    made.freeze()
    methods.make("bitfit", config).install(made, torch.Generator())
    return made


def encoder_count(backbone: Backbone) -> int:
    """Trained values but for the head."""
    return backbone.count() - sum(p.numel() for p in backbone.head)


@pytest.mark.parametrize(
    ("config", "printed", "released"),
    [
        ({}, 102_144, 102_912),
        ({"biases": ["intermediate", "query"]}, 46_080, 46_848),
        ({"biases": [], "gammas": ["attention_norm"]}, 9_216, 9_984),
        ({"biases": [], "gammas": ["output_norm"]}, 9_216, 19_200),
        ({"biases": [], "gammas": GAMMAS}, 18_432, 19_200),
        ({"biases": ["key", "value", "attention_output", "output", *GAMMAS]}, 55_296, 56_064),
        ({"gammas": GAMMAS}, 102_144 + 18_432, 121_344),
        ({"biases": ["intermediate", "query"], "gammas": GAMMAS}, 64_512, 65_280),
        ({"biases": GAMMAS}, 18_432, 19_200),
    ],
    ids=str,
)
def test_counts_of_bitfit_plus(config: dict[str, Any], printed: int, released: int) -> None:
    """The counts behind the printed shares are by name and without the pooler; the released code's are larger."""
    assert printed == encoder_count(fitted(pooler=False, **config))
    assert released == encoder_count(fitted(match="substring", **config))


@pytest.mark.parametrize(
    ("backbone", "outputs", "count"),
    [("roberta_large", 3, 271_360), ("roberta", 3, 102_144), ("bert_large", 3, 272_384), ("distilbert", 2, 51_456)],
)
def test_counts_of_other_backbones(backbone: str, outputs: int, count: int) -> None:
    """All biases are 11 d L + d, and d more where there is a pooler."""
    assert count == encoder_count(fitted(backbone, outputs=outputs))


STRINGS = {
    "query": "attention.self.query.bias",
    "key": "attention.self.key.bias",
    "value": "attention.self.value.bias",
    "intermediate": "intermediate.dense.bias",
    "output": "output.dense.bias",
    "output_norm": "output.LayerNorm.bias",
    "attention_norm": "attention.output.LayerNorm.bias",
}
"""BitFit+'s code: a parameter trains where this is part of its name."""


@pytest.mark.parametrize("terms", [*((term,) for term in STRINGS), ("key", "output"), tuple(STRINGS)], ids=str)
def test_substring_is_the_released_rule(terms: tuple[str, ...]) -> None:
    """With `match="substring"` the parameters are those whose name contains one of the code's strings."""
    made = fitted(biases=terms, match="substring")
    names = {name for name, _ in made.model.named_parameters()}
    strings = [STRINGS[term] for term in terms] + ["pooler.dense.bias", "classifier"]

    assert {name for name in names if any(string in name for string in strings)} == set(made.trained())


@pytest.mark.parametrize("term", STRINGS)
def test_exact(term: str) -> None:
    """By name, a term is one vector of each layer."""
    trained = fitted(biases=[term], pooler=False).trained()
    expected = [f"bert.encoder.layer.{layer}.{STRINGS[term]}" for layer in range(12)]

    assert expected == [name for name in trained if not name.startswith("classifier.")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"biases": "query"}, "field 'biases.set': Input should be 'all' or 'layers' \\(it holds 'query'\\)"),
        ({"biases": ["q"]}, "field 'biases.terms.0': Input should be 'query', .* \\(it holds 'q'\\)"),
        ({"gammas": ["query"]}, "field 'gammas.0': Input should be 'attention_norm' or 'output_norm'"),
        ({"match": "regex"}, "field 'match': Input should be 'exact' or 'substring' \\(it holds 'regex'\\)"),
        ({"pooler": "false"}, r"field 'pooler': Input should be a valid boolean \(it holds 'false'\)"),
        ({"biases": []}, "neither biases nor gammas are named"),
    ],
    ids=str,
)
def test_bad_settings(config: dict[str, Any], message: str) -> None:
    """A setting that cannot be is refused by name."""
    with pytest.raises(ValueError, match=message):
        methods.make("bitfit", config)
