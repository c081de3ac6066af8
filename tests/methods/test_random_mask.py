"""Random masks: how many values they let through, where, and that nothing else trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from peft_dp import Places, Spec, methods, registry
from peft_dp.methods.random_mask import Config
from peft_dp.models.backbone import Backbone
from peft_dp.models.view import view
from peft_dp.spec import Privacy
from peft_dp.training.job import build, find_sources
from peft_dp.training.loop import fit

Make = Callable[..., Spec]
KINDS: list[dict[str, Any]] = [
    {"kind": "uniform", "share": 0.2},
    {"kind": "row_column"},
    {"kind": "bias", "share": 0.4},
]


def masked(backbone: str = "bert", seed: int = 0, **config: Any) -> Backbone:
    """A backbone of a paper's shape, without weights but with masks."""
    with torch.device("meta"):
        shape = AutoConfig.for_model(**registry.load("backbones", backbone).CONFIG)
        made = view(AutoModelForSequenceClassification.from_config(shape))
    made.freeze()
    Config(**config).install(made, torch.Generator().manual_seed(seed))
    return made


def counts(backbone: Backbone) -> dict[str, int]:
    """Name -> values that its mask lets through."""
    return {name: int(mask.sum()) for name, mask in backbone.masks.items()}


def test_uniform_of_bert_base() -> None:
    """99,876 draws, of which about 46 coincide; 111 of 199 tensors get none, and among biases only b_m2 gets any."""
    made = masked(kind="uniform")
    sizes = [p.numel() for p in made.encoder.parameters()]
    found = counts(made)
    biases = {name: count for name, count in found.items() if name.endswith("bias")}

    assert 99_876 == sum(size * 100_000 // 108_310_272 for size in sizes)
    # The number that coincide is close to Poisson: six of its standard deviations.
    assert sum(found.values()) == pytest.approx(99_830, abs=40)
    assert (199, 111) == (len(sizes), len(sizes) - len(found))
    assert all("intermediate.dense" in name and count in (1, 2) for name, count in biases.items())
    assert len(biases) == 12


def test_row_column_of_bert_base() -> None:
    """Each weight of the layers and the pooler trains in a column, in rows, or whole; embeddings never."""
    found = counts(masked(kind="row_column"))
    expected = {"query": 768, "key": 768, "value": 768, "LayerNorm": 768, "output.dense": 768, "pooler.dense": 768}

    for name, count in found.items():
        whole = next((n for part, n in expected.items() if part in name), 3_072)
        assert count == whole or (count < whole and count % 768 == 0 and "intermediate" in name)
    assert len(found) == 12 * 8 + 1
    assert not [name for name in found if "embeddings" in name or not name.endswith("weight")]
    assert 102_144 - 12 * 3 * 768 <= sum(found.values()) <= 102_144


def test_rows_and_columns() -> None:
    """Square weights get either a row or a column, wide ones a column, tall ones as many rows as fit or a column."""
    shapes = set()
    for seed in range(4):
        made = masked("minilm", seed, kind="row_column")
        for mask in made.masks.values():
            if mask.dim() == 1:
                assert mask.all()
                continue
            rows, columns = mask.all(1), mask.all(0)
            assert mask.equal(rows[:, None] | columns[None])
            assert (rows.sum() == 0) != (columns.sum() == 0)
            shapes.add((tuple(mask.shape), "column" if columns.any() else f"{rows.sum()} rows"))

    assert {((384, 384), "column"), ((384, 384), "1 rows"), ((384, 1_536), "column"), ((1_536, 384), "column")} < shapes
    assert ((1_536, 384), "4 rows") in shapes
    assert {"column"} == {how for shape, how in shapes if shape == (384, 1_536)}


def test_bias_of_bert_base() -> None:
    """349 of each 768 biases and 1,396 of each 3,072 in the layers: 46,068 of the 46,080 of b_m2, b_q."""
    found = counts(masked(kind="bias"))

    assert {349, 1_396} == set(found.values())
    assert 46_068 == sum(found.values())
    assert all(name.startswith("bert.encoder.layer.") and name.endswith("bias") for name in found)


def test_bias_of_the_code() -> None:
    """The released code draws 323 of each 768 biases and 1,293 of each 3,072, of all bias vectors: 43,294."""
    found = counts(masked(kind="bias", within="encoder", budget=43_324))

    assert {323, 1_293} == set(found.values())
    assert 43_294 == sum(found.values())
    assert {"bert.embeddings.LayerNorm.bias", "bert.pooler.dense.bias"} < found.keys()


@pytest.mark.parametrize(("kind", "whole"), [("uniform", 22_713_216), ("bias", 25_344)])
def test_share(kind: str, whole: int) -> None:
    """A share gives the same part of another backbone, but for rounding down and coincidence."""
    found = counts(masked("minilm", kind=kind, share=0.1))

    assert sum(found.values()) == pytest.approx(0.1 * whole, rel=0.05)


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_same_seed_same_masks(config: dict[str, Any]) -> None:
    """Masks depend on their stream only."""
    torch.manual_seed(1)
    first = masked("minilm", **config).masks
    torch.manual_seed(2)
    second, other = masked("minilm", **config).masks, masked("minilm", seed=1, **config).masks

    assert first.keys() == second.keys()
    assert all(mask.equal(second[name]) for name, mask in first.items())
    assert any(not mask.equal(other[name]) for name, mask in first.items())


@pytest.mark.parametrize("privacy", [None, Privacy(epsilon=8.0, delta=1e-3)], ids=["public", "private"])
@pytest.mark.parametrize("config", KINDS, ids=str)
def test_nothing_else_trains(spec: Make, places: Places, config: dict[str, Any], privacy: Privacy | None) -> None:
    """Training moves what the masks let through, and only that."""
    made = spec(method="random_mask", config=config, head="stock", privacy=privacy)
    job = build(made, find_sources(made, places))
    before = {name: p.detach().clone() for name, p in job.backbone.model.named_parameters()}
    fit(job)
    moved = {name: p != before[name] for name, p in job.backbone.model.named_parameters()}
    masks = job.backbone.masks

    assert not [name for name in moved if name in masks and (moved[name] & ~masks[name]).any()]
    assert any((moved[name] & masks[name]).any() for name in masks)
    assert not [name for name in moved if name not in job.backbone.trained() and moved[name].any()]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "columns"}, "field 'kind': Input should be 'uniform', 'row_column' or 'bias'"),
        ({"kind": "uniform", "budget": 10, "share": 0.1}, "kind 'uniform' takes budget or share"),
        ({"kind": "row_column", "share": 0.1}, "kind 'row_column' takes neither"),
        ({"kind": "bias", "budget": 0}, "field 'budget': Input should be greater than 0"),
        ({"kind": "bias", "share": 1.5}, "field 'share': Input should be less than 1"),
    ],
    ids=str,
)
def test_bad_settings(config: dict[str, Any], message: str) -> None:
    """A setting that cannot be is refused by name."""
    with pytest.raises(ValueError, match=message):
        methods.make("random_mask", config)


def test_too_large() -> None:
    """A budget beyond the backbone is refused with what there is."""
    with pytest.raises(ValueError, match="a budget of 46080 is more than the 25344 values to draw from"):
        masked("minilm", kind="bias")
