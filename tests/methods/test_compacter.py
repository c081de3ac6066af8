"""Compacter: counts, the Kronecker products, and a start near the pretrained model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from peft_dp.methods.compacter import Config
from peft_dp.models.backbone import Backbone
from peft_dp.models.batch import Batch

Make = Callable[..., Batch]


@pytest.mark.parametrize(("name", "width", "layers"), [("roberta", 768, 12), ("roberta_large", 1024, 24)])
def test_count(paper: Callable[[str], Backbone], rng: torch.Generator, name: str, width: int, layers: int) -> None:
    """The count is n^3 + 2 L (2 r (d + m) + m + d)."""
    backbone = paper(name)
    head = backbone.count()
    Config(n=8, bottleneck=96, rank=2).install(backbone, rng)

    assert 512 + 2 * layers * (4 * (width + 96) + 96 + width) == backbone.count() - head


def test_formula(families: Backbone, batch: Make, rng: torch.Generator) -> None:
    """A site gives f + up(gelu(down(f))) with weights that are sums of Kronecker products."""
    site: Any = families.sites("attention_output")[1]
    Config(n=2, bottleneck=4, rank=3).install(families, rng)
    for parameter in site.compacter.parameters():
        torch.nn.init.normal_(parameter, generator=rng)
    seen: list[torch.Tensor] = []
    site.register_forward_hook(lambda module, inputs, output: seen.extend((*inputs, output)))
    families.logits(batch())
    x, found = seen
    down, up = (
        torch.stack([torch.kron(a, left @ right) for a, left, right in zip(p.rules, p.left, p.right, strict=True)]).sum(
            0
        )
        for p in (site.compacter.down, site.compacter.up)
    )
    f = functional.linear(x, site.weight, site.bias)
    inner = functional.gelu(f @ down + site.compacter.down.bias, approximate="tanh")

    assert (16, 4) == down.shape
    torch.testing.assert_close(found, f + inner @ up + site.compacter.up.bias)


def test_near_start(families: Backbone, batch: Make, rng: torch.Generator) -> None:
    """New adapters hardly change the logits."""
    before = families.logits(batch())
    Config(n=2, bottleneck=4).install(families, rng)

    torch.testing.assert_close(families.logits(batch()), before, rtol=0, atol=1e-5)


def test_shared_rules(families: Backbone, rng: torch.Generator) -> None:
    """One set of rules serves all adapters."""
    Config(n=2, bottleneck=4).install(families, rng)

    assert 1 == sum(name.endswith(".rules") for name in families.trained())
    assert 8 == sum(name.endswith(".rules") for name in families.model.state_dict())


def test_padding(families: Backbone, batch: Make, rng: torch.Generator) -> None:
    """Padding does not change the logits."""
    Config(n=2, bottleneck=4).install(families, rng)

    torch.testing.assert_close(families.logits(batch()), families.logits(batch(padding=3)), rtol=1e-4, atol=1e-6)


def test_gradients(families: Backbone, gradient_gap: Callable[[Backbone], float], rng: torch.Generator) -> None:
    """Per-example gradients, of the shared rules too, equal those of examples passed alone."""
    Config(n=2, bottleneck=4, rank=2).install(families, rng)

    assert gradient_gap(families) < 1e-12


def test_config(families: Backbone, rng: torch.Generator) -> None:
    """A number of products that does not divide both widths is refused."""
    with pytest.raises(ValueError, match="multiple of n = 4, not 6"):
        Config(n=4, bottleneck=6)
    with pytest.raises(ValueError, match="model's width 16, but is 3"):
        Config(n=3, bottleneck=6).install(families, rng)
