"""Gradual unfreezing: counts by stage, and settings refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peft_dp import Places, Spec, methods
from peft_dp.backbones import distilbert
from peft_dp.methods import gradual
from peft_dp.models.backbone import Backbone
from peft_dp.training.job import Job, build, find_sources


def job(spec: Any, places: Places, stages: list[list[int]], **fields: Any) -> Job:
    """A job of the method."""
    made: Spec = spec(method="gradual", config={"stages": stages}, **fields)
    return build(made, find_sources(made, places))


@pytest.mark.parametrize("head", ["linear", "stock"])
def test_stages(spec: Any, places: Places, head: str) -> None:
    """The last layer and the head train first, then the layer below too; embeddings and pooler never."""
    made = job(spec, places, [[1, 1], [2, 1]], head=head)
    layers = [{id(p) for p in layer.parameters()} for layer in made.backbone.layers]
    heads = {id(p) for p in made.backbone.head}
    found = []
    for _ in made.method.phases(made.backbone, 2):
        found.append({id(p) for p in made.backbone.trained().values()})

    assert [heads | layers[1], heads | layers[0] | layers[1]] == found


def test_counts() -> None:
    """DistilBERT's counts are those of its last one and two layers and its head of two classes."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config: dict[str, Any] = dict(distilbert.CONFIG)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config, num_labels=2))
    heads = [model.get_submodule(path) for path in distilbert.FAMILY.head]
    backbone = Backbone(model, model.base_model, distilbert.FAMILY, heads)
    backbone.freeze()
    method = gradual.Config()
    method.install(backbone, torch.Generator())
    counts = [backbone.count() for _ in method.phases(backbone, 4)]

    assert [7_680_002, 14_767_874] == counts


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "field 'stages': Tuple should have at least 1 item"),
        ([[1]], "field 'stages.0.1': field required"),
        ([[0, 1]], "field 'stages.0.0': Input should be greater than 0"),
        ([[1, 0]], "field 'stages.0.1': Input should be greater than 0"),
        ([[2, 1], [1, 1]], "more layers each time, not \\[2, 1\\]"),
        ([[1, 1], [1, 1]], "more layers each time"),
    ],
)
def test_wrong_stages(stages: list[list[int]], message: str) -> None:
    """Stages that are no pairs, are empty or do not grow are refused."""
    with pytest.raises(ValueError, match=message):
        methods.make("gradual", {"stages": stages})


def test_too_many_layers(spec: Any, places: Places) -> None:
    """More layers than there are is refused with both numbers."""
    with pytest.raises(ValueError, match="end with 3 layers, but the backbone has 2"):
        job(spec, places, [[1, 1], [3, 1]])
