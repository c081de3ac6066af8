"""What holds for every method, on every family; a new file in `methods/` is tested by being there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from peft_dp import methods, registry
from peft_dp.models.backbone import Backbone
from peft_dp.models.batch import Batch
from peft_dp.training import frozen_prefix
from peft_dp.training.job import cross_entropy

Make = Callable[..., Batch]


@pytest.fixture(params=registry.names("methods"))
def method(request: pytest.FixtureRequest) -> ModuleType:
    """Each method in turn."""
    return methods.load(request.param)


def install(method: ModuleType, backbone: Backbone, seed: int = 1) -> Backbone:
    """Installs a method's example."""
    method.EXAMPLE.install(backbone, torch.Generator().manual_seed(seed))
    return backbone


def train(backbone: Backbone, batch: Batch) -> None:
    """A few steps that move all that trains, masks respected."""
    trained = backbone.trained()
    for _ in range(3):
        loss = cross_entropy(backbone.logits(batch), batch.labels).sum()
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        with torch.no_grad():
            for (name, parameter), gradient in zip(trained.items(), found, strict=True):
                if gradient is not None:
                    parameter.sub_(0.3 * gradient * backbone.masks.get(name, 1))


def values(backbone: Backbone) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in backbone.model.named_parameters()}


def test_start(method: ModuleType, families: Backbone, batch: Make) -> None:
    """A method starts as the pretrained backbone, or says why it does not."""
    families.model.double()
    before = families.logits(batch()).detach()
    same = torch.equal(before, install(method, families).logits(batch()))

    assert same != bool(method.EXAMPLE.starts_elsewhere)


def test_only_what_trains_moves(method: ModuleType, families: Backbone, batch: Make) -> None:
    """Frozen parameters stay bit-identical, and so do values outside a mask; something besides the head moves."""
    backbone = install(method, families)
    head = {id(parameter) for parameter in backbone.head}
    before, trained = values(backbone), backbone.trained()
    train(backbone, batch())
    moved = {name for name, value in values(backbone).items() if not torch.equal(value, before[name])}

    assert moved <= trained.keys()
    assert any(id(trained[name]) in head for name in moved)
    assert any(id(trained[name]) not in head for name in moved) == (len(trained) > len(backbone.head))
    assert all(torch.equal(values(backbone)[name][~mask], before[name][~mask]) for name, mask in backbone.masks.items())


def test_draws(method: ModuleType, families: Backbone) -> None:
    """Nothing is drawn but from the generator given."""
    state = torch.get_rng_state()
    install(method, families)

    assert torch.equal(state, torch.get_rng_state())


def test_padding(method: ModuleType, families: Backbone, batch: Make) -> None:
    """Padding changes no logit."""
    backbone = install(method, families)
    train(backbone, batch())

    torch.testing.assert_close(backbone.logits(batch(padding=5)), backbone.logits(batch()), atol=1e-5, rtol=0)


def test_save(method: ModuleType, families: Backbone, batch: Make, tmp_path: Path) -> None:
    """What trained comes back from a file of nothing else, and gives the same logits."""
    backbone = install(method, families)
    train(backbone, batch())
    expected = backbone.logits(batch()).detach()
    backbone.save(tmp_path / "trained.safetensors")
    with torch.no_grad():
        for name, parameter in backbone.trained().items():
            parameter.add_(backbone.masks.get(name, 1))
    backbone.restore(tmp_path / "trained.safetensors")

    assert torch.equal(expected, backbone.logits(batch()))


def test_merge(method: ModuleType, families: Backbone, batch: Make) -> None:
    """A method that can be folded into the backbone gives the same logits; another refuses and changes nothing."""
    backbone = install(method, families)
    train(backbone, batch())
    expected = backbone.logits(batch()).detach()
    with contextlib.suppress(ValueError):
        backbone.merge()

    torch.testing.assert_close(backbone.logits(batch()), expected, atol=1e-5, rtol=0)


def test_layers_left_out(families: Backbone) -> None:
    """Every family passes states through in place of its embeddings and layers."""
    families.model.double()
    ids = torch.randint(5, 20, (3, 6))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kept: list[Tensor] = []
    handle = families.layers[0].register_forward_hook(lambda module, given, output: kept.append(output))
    expected = families.model(**inputs)
    handle.remove()
    with frozen_prefix._left_out(families, 1):
        families.given = kept[0]

        torch.testing.assert_close(families.model(**inputs), expected)
