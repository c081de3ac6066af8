"""Adapters: counts of the papers, placement, and a start near the pretrained model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from peft_dp import methods
from peft_dp.methods.adapter import Config
from peft_dp.models.backbone import Backbone
from peft_dp.models.batch import Batch

Make = Callable[..., Batch]
PLACEMENTS = ("houlsby", "pfeiffer")


@pytest.mark.parametrize(
    ("name", "config", "size"),
    [
        ("roberta_large", Config(bottleneck=1), 147_504),
        ("roberta", Config(bottleneck=1), 55_320),
        ("bert", Config(bottleneck=1), 55_320),
        ("distilbert", Config(bottleneck=48, placement="pfeiffer"), 447_264),
    ],
    ids=["slash-large", "slash-base", "slash-ner", "khan"],
)
def test_count_of_papers(
    paper: Callable[[str], Backbone], rng: torch.Generator, name: str, config: Config, size: int
) -> None:
    """The papers' adapters have as many values as the papers' formulas give."""
    backbone = paper(name)
    head = backbone.count()
    config.install(backbone, rng)

    assert size == backbone.count() - head


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_near_start(families: Backbone, batch: Make, rng: torch.Generator, placement: Any) -> None:
    """New adapters hardly change the logits, but do."""
    before = families.logits(batch())
    Config(bottleneck=4, placement=placement).install(families, rng)
    after = families.logits(batch())

    torch.testing.assert_close(after, before, rtol=0, atol=0.01)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("activation", ["relu", "swish"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_formula(families: Backbone, batch: Make, rng: torch.Generator, placement: Any, activation: Any) -> None:
    """A site gives what the paper's formula gives on the site's own input."""
    site: Any = families.sites("output" if placement == "houlsby" else "output_norm")[0]
    Config(bottleneck=4, placement=placement, activation=activation).install(families, rng)
    for parameter in site.adapter.parameters():
        torch.nn.init.normal_(parameter, generator=rng)
    seen: list[Tensor] = []
    site.register_forward_hook(lambda module, inputs, output: seen.extend((*inputs, output)))
    families.logits(batch())
    x, found = seen
    a = site.adapter
    act = {"relu": functional.relu, "swish": functional.silu}[activation]

    def project(y: Tensor) -> Tensor:
        return functional.linear(act(functional.linear(y, a.down.weight, a.down.bias)), a.up.weight, a.up.bias)

    if placement == "houlsby":
        f = functional.linear(x, site.weight, site.bias)
        expected = f + project(f)
    else:
        y = functional.layer_norm(x, (16,), site.weight, site.bias, site.eps)
        expected = functional.layer_norm(project(y) + x, (16,), site.weight, site.bias, site.eps)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_padding(families: Backbone, batch: Make, rng: torch.Generator, placement: Any) -> None:
    """Padding does not change the logits."""
    Config(bottleneck=4, placement=placement).install(families, rng)

    torch.testing.assert_close(families.logits(batch()), families.logits(batch(padding=3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradients(
    families: Backbone, gradient_gap: Callable[[Backbone], float], rng: torch.Generator, placement: Any
) -> None:
    """Per-example gradients equal those of examples passed alone."""
    Config(bottleneck=4, placement=placement).install(families, rng)

    assert gradient_gap(families) < 1e-12


def test_norms_stay_frozen(families: Backbone, rng: torch.Generator) -> None:
    """Just the adapters and the head train, and every adapter's weights are its own."""
    Config(bottleneck=4).install(families, rng)
    names = [name for name in families.trained() if not name.startswith("head.")]

    assert all(".adapter." in name for name in names)
    assert len(names) == 2 * 2 * 4


def test_no_merge(families: Backbone, rng: torch.Generator) -> None:
    """A network with a bend cannot be folded into a weight."""
    Config(bottleneck=4).install(families, rng)
    with pytest.raises(ValueError, match="'adapter' is not a shift of weights"):
        families.merge()


@pytest.mark.parametrize(
    "wrong",
    [{"bottleneck": 0}, {"bottleneck": 4, "placement": "middle"}, {"bottleneck": 4, "activation": "tanh"}],
    ids=str,
)
def test_config(wrong: Any) -> None:
    """A wrong setting is refused."""
    with pytest.raises(ValueError):
        methods.make("adapter", wrong)
