"""SLaSh: counts of the paper, shifts that are shifts of biases, and projections that are not kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from peft_dp import methods
from peft_dp.methods.slash import Config, Init
from peft_dp.models.backbone import Backbone
from peft_dp.models.batch import Batch

Make = Callable[..., Batch]
POSITIONS = {"output": "output", "intermediate": "intermediate", "attention": "attention_norm"}


def branches(backbone: Backbone, position: str) -> list[Any]:
    """The shifts of all layers."""
    return [site.slash for site in backbone.sites(POSITIONS[position])]


@pytest.mark.parametrize("size", [1024, 2048, 10_000, 24_576])
def test_count_of_paper(paper: Callable[[str], Backbone], rng: torch.Generator, size: int) -> None:
    """SLaSh on RoBERTa-large trains z and the head of three outputs: 4.1K, 5.1K, 13.1K and 27.7K of Table 2."""
    backbone = paper("roberta_large")
    Config(size=size, projections="regenerated").install(backbone, rng)

    assert size + 3075 == backbone.count()


@pytest.mark.parametrize("init", get_args(Init))
@pytest.mark.parametrize("position", POSITIONS)
def test_shift_of_biases(families: Backbone, batch: Make, rng: torch.Generator, position: Any, init: Any) -> None:
    """The logits are those of the model with its biases shifted by z W_l."""
    plain = copy.deepcopy(families)
    Config(size=8, position=position, init=init).install(families, rng)
    for site, branch in zip(plain.sites(POSITIONS[position]), branches(families, position), strict=True):
        bias: Any = site.bias
        bias.data += branch.z @ branch.projection.matrix(branch.z)

    torch.testing.assert_close(families.logits(batch()), plain.logits(batch()))


def test_zero_start(families: Backbone, batch: Make, rng: torch.Generator) -> None:
    """With z = 0 the model starts as it was."""
    before = families.logits(batch())
    Config(size=8, init="zero").install(families, rng)

    assert torch.equal(before, families.logits(batch()))


@pytest.mark.parametrize("position", POSITIONS)
def test_merge(families: Backbone, batch: Make, rng: torch.Generator, position: Any) -> None:
    """Merging keeps the logits and leaves the model's own parameters only."""
    names = set(families.model.state_dict())
    Config(size=8, position=position).install(families, rng)
    before = families.logits(batch())
    families.merge()

    torch.testing.assert_close(families.logits(batch()), before, rtol=1e-4, atol=1e-6)
    assert names == set(families.model.state_dict())


def test_projections_are_not_saved(families: Backbone, rng: torch.Generator) -> None:
    """Kept projections move with the model but are no part of its state, and z is one parameter."""
    Config(size=8).install(families, rng)
    families.model.double()

    assert all(branch.projection.kept.dtype == torch.float64 for branch in branches(families, "output"))
    assert not any("kept" in name for name in families.model.state_dict())
    assert 1 == sum(name.endswith(".z") for name in families.trained())


@pytest.mark.parametrize("init", get_args(Init))
def test_regenerated(families: Backbone, batch: Make, init: Any) -> None:
    """Projections drawn at each use give the same logits and gradients as kept ones, bit by bit."""
    found: list[Tensor] = []
    for projections in ("kept", "regenerated"):
        backbone = copy.deepcopy(families)
        config: Any = {"size": 8, "init": init, "projections": projections}
        Config(**config).install(backbone, torch.Generator().manual_seed(5))
        logits = backbone.logits(batch())
        z = branches(backbone, "output")[0].z
        found += [logits, *torch.autograd.grad(logits.square().sum(), z)]

    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_random_start(families: Backbone, rng: torch.Generator, init: Any) -> None:
    """Values of z and W have variance 1/d; uniform ones lie within sqrt(3/d); layers differ."""
    size = 20_000
    Config(size=size, init=init).install(families, rng)
    first, second = branches(families, "output")
    w = first.projection.kept

    assert size * first.z.var().item() == pytest.approx(1, rel=0.05)
    assert size * w.var().item() == pytest.approx(1, rel=0.02)
    assert (w.abs().max().item() <= math.sqrt(3 / size)) == (init == "uniform")
    assert not torch.equal(w, second.projection.kept)


@pytest.mark.parametrize("size", [10, 16, 20])
def test_identity(families: Backbone, rng: torch.Generator, size: int) -> None:
    """With W = I every layer shifts by z, cut or filled up with zeros."""
    Config(size=size, init="identity").install(families, rng)
    for branch in branches(families, "output"):
        expected = torch.zeros(16)
        expected[:size] = branch.z.detach()[:16]

        assert torch.equal(expected, branch.projection(branch.z))


@pytest.mark.parametrize("position", POSITIONS)
def test_padding(families: Backbone, batch: Make, rng: torch.Generator, position: Any) -> None:
    """Padding does not change the logits."""
    Config(size=8, position=position).install(families, rng)

    torch.testing.assert_close(families.logits(batch()), families.logits(batch(padding=3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("projections", ["kept", "regenerated"])
@pytest.mark.parametrize("position", POSITIONS)
def test_gradients(
    families: Backbone,
    gradient_gap: Callable[[Backbone], float],
    rng: torch.Generator,
    position: Any,
    projections: Any,
) -> None:
    """Per-example gradients of the shared z equal those of examples passed alone."""
    Config(size=8, position=position, projections=projections).install(families, rng)

    assert gradient_gap(families) < 1e-12


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"size": 8, "position": "top"}, {"size": 8, "init": "ones"}, {"size": 8, "projections": "lost"}],
    ids=str,
)
def test_config(wrong: Any) -> None:
    """A wrong setting is refused."""
    with pytest.raises(ValueError):
        methods.make("slash", wrong)
