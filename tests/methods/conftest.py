"""Fixtures: tiny random models of the three families, and the papers' models without their weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from peft_dp import registry
from peft_dp.models.backbone import Backbone, Classifier
from peft_dp.models.batch import Batch
from peft_dp.privacy.gradients import per_example_pass
from peft_dp.training.job import cross_entropy

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 34,
}
SMALL_DISTILBERT = {
    "vocab_size": 40,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 32,
    "max_position_embeddings": 34,
}


def classifier(name: str, device: str, small: dict[str, int]) -> Backbone:
    """A random model of a backbone's family with a linear head of three outputs, frozen but for it."""
    from transformers import AutoConfig, AutoModel

    module = registry.load("backbones", name)
    config = AutoConfig.for_model(**(module.CONFIG | small))
    options = {"add_pooling_layer": False} if module.FAMILY.pooler else {}
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        encoder = AutoModel.from_config(config, **options)
    model = Classifier(encoder, config.hidden_size, 3, "cls", torch.Generator().manual_seed(0))
    backbone = Backbone(model.eval(), encoder, module.FAMILY, [model.head])
    backbone.freeze()
    return backbone


@pytest.fixture(params=["bert", "roberta", "distilbert"])
def families(request: pytest.FixtureRequest) -> Backbone:
    """A tiny BERT, RoBERTa and DistilBERT in turn."""
    small = SMALL_DISTILBERT if request.param == "distilbert" else SMALL
    return classifier(request.param, "cpu", small)


@pytest.fixture
def paper() -> Callable[[str], Backbone]:
    """A backbone of the papers' size, its encoder without weights: for counts."""
    return lambda name: classifier(name, "meta", {})


@pytest.fixture
def rng() -> torch.Generator:
    """A stream for new parameters."""
    return torch.Generator().manual_seed(1)


@pytest.fixture
def batch() -> Callable[..., Batch]:
    """Makes a batch of examples of six and four tokens, with more columns of padding if asked."""

    def make(padding: int = 0) -> Batch:
        mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
        ids = torch.randint(5, 40, (2, 6), generator=torch.Generator().manual_seed(0)) * mask + (1 - mask)
        mask, ids = (
            torch.nn.functional.pad(mask, (0, padding)),
            torch.nn.functional.pad(ids, (0, padding), value=1),
        )
        positions = torch.arange(6 + padding).repeat(2, 1)
        return Batch(ids, mask, torch.zeros_like(ids), positions, torch.tensor([0, 2]))

    return make


@pytest.fixture
def gradient_gap(batch: Callable[..., Batch]) -> Callable[[Backbone], float]:
    """The largest difference between a backbone's per-example gradients and those of examples passed alone."""

    def gap(backbone: Backbone) -> float:
        backbone.model.double()
        generator = torch.Generator().manual_seed(2)
        trained = list(backbone.trained().values())
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        both, rows = batch(), []
        for i in range(len(both)):
            fields = {name: getattr(both, name)[i : i + 1] for name in ("ids", "mask", "types", "positions", "labels")}
            alone = Batch(**fields)
            loss = cross_entropy(backbone.logits(alone), alone.labels).sum()
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]))
        found = per_example_pass(
            backbone.model, lambda: cross_entropy(backbone.logits(both), both.labels), len(both), backbone.masks
        ).each()
        return (found - torch.stack(rows)).abs().max().item()

    return gap
