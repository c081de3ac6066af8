"""Diff pruning: gates by their formula, counts, the threshold, and stage 2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_dp import Places, methods
from peft_dp.backbones import distilbert
from peft_dp.methods import diff_pruning
from peft_dp.methods._common import LINEAR
from peft_dp.models.backbone import Backbone
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit

from ..gradients import clipped_sum


def job(spec: Any, places: Places, **config: Any) -> Job:
    """A job of the method."""
    made = spec(method="diff_pruning", config={"gated_epochs": 1} | config, dropout=False)
    return build(made, find_sources(made, places))


def gated(job: Job) -> list[Any]:
    """The modules that shift a weight, in the model's order."""
    return [module for module in job.backbone.model.modules() if isinstance(module, diff_pruning._Gated)]


def stirred(job: Job) -> list[Tensor]:
    """Moves w and alpha off their start, draws gates, and gives the shifts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in gated(job):
            module.w.normal_(generator=generator)
            for gate in module.gates:
                gate.alpha.normal_(generator=generator)
    job.method.begin_step(job.backbone, generator)
    return [module.shift().detach() for module in gated(job)]


def test_starts_as_pretrained(spec: Any, places: Places) -> None:
    """At the start the logits are those of the backbone without the method."""
    bare = spec(method="head", dropout=False)
    models = [job(spec, places), build(bare, find_sources(bare, places))]
    logits = []
    for made in models:
        made.backbone.model.eval()
        logits.append(made.backbone.logits(made.dev.batch(range(4), "cpu")))

    assert torch.equal(*logits)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 5.0])
def test_gate(alpha: float) -> None:
    """A gate is the released code's: stretched concrete, with its share of values at 0 and at 1."""
    gate = diff_pruning._Gate((100, 100), torch.device("cpu"))
    nn.init.constant_(gate.alpha, alpha)
    gate.draw(torch.Generator().manual_seed(0))
    u = torch.rand(100, 100, generator=torch.Generator().manual_seed(0)).clamp(1e-4, 1 - 1e-4)
    s = torch.sigmoid(u.log() - (1 - u).log() + alpha)
    expected = (s * 3 - 1.5).clamp(min=0).clamp(max=1)
    found = gate()

    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)
    # P(z > 0) = sigmoid(alpha - log(1.5 / 1.5)), which the penalty counts; five standard errors.
    assert (found > 0).float().mean().item() == pytest.approx(torch.sigmoid(torch.tensor(alpha)).item(), abs=0.025)
    (gradient,) = torch.autograd.grad(found.sum(), gate.alpha)
    inside = (s * 3 - 1.5 > 0) & (s * 3 - 1.5 < 1)
    torch.testing.assert_close(gradient, 3 * s * (1 - s) * inside, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("structured", [True, False])
def test_counts(structured: bool) -> None:
    """DistilBERT has a shift and a gate for each of its 42,467,328 linear weights, and one more gate a tensor."""
    from transformers import AutoConfig, AutoModel

    shape: dict[str, Any] = dict(distilbert.CONFIG)
    with torch.device("meta"):
        encoder = AutoModel.from_config(AutoConfig.for_model(**shape))
        backbone = Backbone(encoder, encoder, distilbert.FAMILY, [])
        backbone.freeze()
        config = diff_pruning.Config(gated_epochs=1, structured=structured)
        config.install(backbone, torch.Generator())

    assert 2 * 42_467_328 + (36 if structured else 0) == backbone.count()


@pytest.mark.parametrize("structured", [True, False])
def test_penalty(spec: Any, places: Places, structured: bool) -> None:
    """At the start every gate is open with chance sigmoid(5), and the penalty counts all of them."""
    made = job(spec, places, penalty=0.5, structured=structured)
    gates = 2 * (4 * 16 * 16 + 2 * 16 * 32) + (12 if structured else 0)
    found = made.method.penalty(made.backbone)
    assert found is not None

    assert found.item() == pytest.approx(0.5 * gates * 0.9933071, rel=1e-5)


def test_rates(spec: Any, places: Places) -> None:
    """Alpha has a rate of its own in stage 1, and stage 2 may have another."""
    made = job(spec, places, gate_rate=0.2, fixed_rate=5e-5)
    found = made.method.rates(made.backbone)
    list(made.method.phases(made.backbone, 2))

    assert {0.2} == set(found.values())
    assert 24 == len(found)
    assert dict.fromkeys(made.backbone.trained(), 5e-5) == made.method.rates(made.backbone)


def still(module: Any) -> Tensor:
    """Shift z w of a gated weight, without the gates' random part."""
    shift: Tensor = module.w.detach()
    for gate in module.gates:
        shift = shift * (3 * torch.sigmoid(gate.alpha.detach()) - 1.5).clamp(0, 1)
    return shift


@pytest.mark.parametrize("prune", ["deterministic", "last_draw"])
@pytest.mark.parametrize("keep", [0.005, 0.3])
def test_stage_2_starts_from_the_largest(spec: Any, places: Places, keep: float, prune: str) -> None:
    """Stage 2 starts from pretrained + mask w; the mask has the entries with the largest |z w| of all tensors."""
    made = job(spec, places, keep=keep, prune=prune)
    drawn = stirred(made)
    kept = drawn if prune == "last_draw" else [still(module) for module in gated(made)]
    assert not torch.equal(drawn[0], still(gated(made)[0]))
    shifts = torch.cat([shift.flatten() for shift in kept]).abs()
    w = torch.cat([module.w.detach().flatten() for module in gated(made)])
    untouched = build(made.spec, find_sources(made.spec, places))
    before = torch.cat([site.parametrizations.weight.original.flatten() for site in sites(untouched)])
    list(made.method.phases(made.backbone, 2))
    after = torch.cat([site.weight.detach().flatten() for site in sites(made)])
    masks = torch.cat([mask.flatten() for mask in made.backbone.masks.values()])

    assert round(keep * len(w)) == masks.sum()
    assert shifts[masks].min() >= shifts[~masks].max()
    assert torch.equal(after, before + w * masks)
    assert [] == gated(made)
    assert all(type(site) is nn.Linear for site in sites(made))
    assert made.backbone.count() == masks.sum() + sum(p.numel() for p in made.backbone.head)


def sites(job: Job) -> list[Any]:
    """The sites with a shift, in the model's order."""
    named = [site for role in LINEAR for site in job.backbone.sites(role)]
    return [module for module in job.backbone.model.modules() if module in named]


def test_masked_shift(spec: Any, places: Places) -> None:
    """Under a mask, per-example gradients of w are the masked ones of an unmasked backbone."""
    made = job(spec, places)
    stirred(made)
    made.backbone.model.double()
    batch = made.train.batch(range(4), "cpu")
    name = next(name for name in made.backbone.trained() if name.endswith("value.parametrizations.weight.0.w"))
    whole = clipped_sum(made, batch, 1e9)
    mask = torch.rand(16, 16, generator=torch.Generator().manual_seed(2)) < 0.5
    made.backbone.masks[name] = mask
    masked = clipped_sum(made, batch, 1e9)

    assert not masked.sums[name][~mask].any()
    torch.testing.assert_close(masked.sums[name][mask], whole.sums[name][mask])
    assert (masked.norms < whole.norms).all()
    assert not masked.norms.requires_grad
    assert not any(value.requires_grad for value in masked.sums.values())


def test_trained_shift_is_sparse(spec: Any, places: Places) -> None:
    """After the run the linear weights differ from the pretrained ones in the kept share of their entries."""
    made = job(spec, places, keep=0.01)
    before = torch.cat([site.weight.detach().flatten() for site in sites(made)])
    fit(made)
    after = torch.cat([site.weight.detach().flatten() for site in sites(made)])

    assert 0 < (before != after).sum() <= round(0.01 * len(before))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gated_epochs": 0}, "field 'gated_epochs': Input should be greater than 0"),
        ({"gated_epochs": 1, "keep": 0.0}, "field 'keep': Input should be greater than 0"),
        ({"gated_epochs": 1, "penalty": -1.0}, "field 'penalty': Input should be greater than or equal to 0"),
        ({"gated_epochs": 1, "gate_rate": 0.0}, "field 'gate_rate': Input should be greater than 0"),
        ({"gated_epochs": 1, "fixed_rate": 0.0}, "field 'fixed_rate': Input should be greater than 0"),
        ({"gated_epochs": 1, "structured": "false"}, "field 'structured': Input should be a valid boolean"),
    ],
)
def test_wrong_settings(config: dict[str, Any], message: str) -> None:
    """Settings out of range are refused by name."""
    with pytest.raises(ValueError, match=message):
        methods.make("diff_pruning", config)
