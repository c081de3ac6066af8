"""Backbones: sites by role, heads, read-outs, and what starts frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_dp import Places, rng
from peft_dp.backbones import bert
from peft_dp.models.backbone import Backbone, load
from peft_dp.models.batch import Batch

Load = Callable[..., Backbone]


@pytest.fixture
def folder(places: Places) -> Path:
    """The tiny BERT's files."""
    assert places.backbones
    return places.backbones / "bert-base-cased"


@pytest.fixture
def loaded(folder: Path) -> Load:
    """Loads the tiny BERT; arguments replace the options."""

    def make(seed: int = 0, **options: Any) -> Backbone:
        fixed: dict[str, Any] = {"outputs": 3, "head": "linear", "readout": "cls", "dropout": False}
        return load(folder, bert.FAMILY, **(fixed | options), rng=rng.generator(seed, "initialisation"))

    return make


def batch(padding: int = 0) -> Batch:
    """Two examples of six tokens, with more columns of padding."""
    generator = torch.Generator().manual_seed(0)
    ids = nn.functional.pad(torch.randint(5, 20, (2, 6), generator=generator), (0, padding))
    mask = nn.functional.pad(torch.ones(2, 6, dtype=torch.int64), (0, padding))
    positions = torch.arange(6 + padding).repeat(2, 1)
    return Batch(ids, mask, torch.zeros_like(ids), positions, torch.zeros(2, dtype=torch.int64))


def head(backbone: Backbone) -> Tensor:
    """The head's values in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in backbone.head])


LINEAR = {
    "query": (16, 16),
    "key": (16, 16),
    "value": (16, 16),
    "attention_output": (16, 16),
    "intermediate": (16, 32),
    "output": (32, 16),
}


@pytest.mark.parametrize(("role", "shape"), LINEAR.items(), ids=LINEAR)
@pytest.mark.parametrize("kind", ["linear", "stock"])
def test_linear_sites(loaded: Load, kind: str, role: str, shape: tuple[int, int]) -> None:
    """Each role of a linear layer is there once a layer, with its own widths."""
    sites = loaded(head=kind).sites(role)

    assert [shape] * 2 == [(site.in_features, site.out_features) for site in sites]  # type: ignore[comparison-overlap]
    assert sites[0] is not sites[1]


@pytest.mark.parametrize("role", ["attention_norm", "output_norm"])
def test_norm_sites(loaded: Load, role: str) -> None:
    """Each role of a LayerNorm is there once a layer."""
    assert [nn.LayerNorm] * 2 == [type(site) for site in loaded().sites(role)]


def test_roles_are_different_modules(loaded: Load) -> None:
    """No two roles are one module, and together they are all that the layers have."""
    backbone = loaded()
    sites = [site for role in bert.FAMILY.sites for site in backbone.sites(role)]
    owners = [
        module
        for layer in backbone.layers
        for module in layer.modules()
        if isinstance(module, nn.Linear | nn.LayerNorm)
    ]

    assert len(sites) == len(set(sites)) == 16
    assert set(owners) == set(sites)


def test_embeddings_norm(loaded: Load) -> None:
    """The LayerNorm that closes the embeddings is where the family says."""
    backbone = loaded()

    assert isinstance(backbone.encoder.get_submodule(bert.FAMILY.embeddings_norm), nn.LayerNorm)


@pytest.mark.parametrize(("kind", "size"), [("linear", 17 * 3), ("stock", 17 * 3)])
def test_freeze(loaded: Load, kind: str, size: int) -> None:
    """Once frozen, just the head trains, under whatever name the model gives it."""
    backbone = loaded(head=kind)
    backbone.freeze()

    assert {id(parameter) for parameter in backbone.head} == {id(p) for p in backbone.trained().values()}
    assert size == sum(parameter.numel() for parameter in backbone.trained().values())


def test_pooler(loaded: Load) -> None:
    """The stock head reads the pretrained pooler, a linear one does without it."""
    named = [
        {name for name, _ in loaded(head=kind).model.named_parameters() if "pooler" in name}
        for kind in ("linear", "stock")
    ]

    assert [0, 2] == [len(names) for names in named]


@pytest.mark.parametrize("options", [{"readout": "cls"}, {"readout": "mean"}, {"head": "stock"}], ids=str)
def test_padding_does_not_matter(loaded: Load, options: dict[str, str]) -> None:
    """An example's logits are the same with padding and without."""
    backbone = loaded(**options)
    backbone.model.eval()

    torch.testing.assert_close(backbone.logits(batch()), backbone.logits(batch(padding=4)), rtol=1e-4, atol=1e-6)


def test_mean_readout(loaded: Load) -> None:
    """The mean read-out is the head of the mean over an example's tokens; the other reads the first token."""
    mean, first = loaded(readout="mean"), loaded(readout="cls")
    mean.model.eval(), first.model.eval()
    padded = batch(padding=4)
    states = mean.encoder(**mean.inputs(padded)).last_hidden_state
    linear: Any = mean.model.get_submodule("head")

    torch.testing.assert_close(linear(states[:, :6].mean(1)), mean.logits(padded))
    torch.testing.assert_close(linear(states[:, 0]), first.logits(padded))


@pytest.mark.parametrize("kind", ["linear", "stock"])
def test_head_depends_on_its_stream_only(loaded: Load, kind: str) -> None:
    """The head is the same for the same stream, whatever the global generator holds, and another for another."""
    torch.manual_seed(1)
    first = head(loaded(head=kind))
    torch.manual_seed(2)
    second = head(loaded(head=kind))

    assert torch.equal(first, second)
    assert not torch.equal(first, head(loaded(seed=1, head=kind)))


@pytest.mark.parametrize("kind", ["linear", "stock"])
def test_head_as_transformers_draws_it(loaded: Load, kind: str) -> None:
    """A head's weights are N(0, 0.02) and its bias 0."""
    weight, bias = loaded(head=kind, outputs=400).head

    assert not bias.any()
    # 6400 values: the estimate of the standard deviation is good to 0.9 %.
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(weight.mean().item()) < 0.001


def test_encoder_is_pretrained(loaded: Load, folder: Path) -> None:
    """The encoder's weights are those of the file, under either head."""
    from safetensors.torch import load_file

    pretrained = load_file(folder / "model.safetensors")
    for kind in ("linear", "stock"):
        found = loaded(head=kind).encoder.state_dict()

        assert len(found) > 30
        assert all(torch.equal(value, pretrained[name]) for name, value in found.items() if name in pretrained)
        assert {name for name in found if name not in pretrained} <= {"embeddings.position_ids"}


@pytest.mark.parametrize("kind", ["linear", "stock"])
@pytest.mark.parametrize("dropout", [True, False])
def test_dropout(loaded: Load, kind: str, dropout: bool) -> None:
    """Dropout in training is on or off as asked, in the stock head too; in evaluation it is off."""
    backbone = loaded(head=kind, dropout=dropout)
    backbone.model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = backbone.logits(batch()), backbone.logits(batch())
    backbone.model.eval()

    assert dropout != torch.equal(one, other)
    assert torch.equal(backbone.logits(batch()), backbone.logits(batch()))


def test_examples_do_not_touch(loaded: Load) -> None:
    """An example's logits do not depend on the other examples of its batch."""
    backbone = loaded()
    backbone.model.eval()
    whole = batch()
    alone = Batch(whole.ids[:1], whole.mask[:1], whole.types[:1], whole.positions[:1], whole.labels[:1])

    torch.testing.assert_close(backbone.logits(whole)[:1], backbone.logits(alone), rtol=1e-4, atol=1e-6)


def test_quiet(loaded: Load, capfd: pytest.CaptureFixture[str]) -> None:
    """Loading prints nothing and leaves the level of transformers' log as it was."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    loaded(), loaded(head="stock")

    assert ("", "") == tuple(capfd.readouterr())
    assert before == logging.get_verbosity()
