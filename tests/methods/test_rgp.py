"""RGP: outputs stay, the released gradient is the projection of the weights' own, and only it moves them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_dp import Places, Spec, methods, rng
from peft_dp.methods import rgp
from peft_dp.models.backbone import Backbone
from peft_dp.spec import Optimiser, Privacy
from peft_dp.training.gradient import noised_mean
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit
from peft_dp.training.tally import Tally

from ..gradients import clipped_sum

Make = Callable[..., Job]
SIZES = 4 * (16 + 16) + 2 * (32 + 16)
"""Values of the carriers of one layer at rank 1: four weights of 16 x 16, one of 32 x 16, one of 16 x 32."""


@pytest.fixture
def job(spec: Callable[..., Spec], places: Places) -> Make:
    """Builds a job without dropout; arguments are the method's settings, `fields` the spec's."""

    def make(fields: dict[str, Any] | None = None, **config: Any) -> Job:
        made = spec(**({"method": "rgp", "config": {"rank": 2} | config, "dropout": False} | (fields or {})))
        return build(made, find_sources(made, places))

    return make


def weights(backbone: Backbone) -> dict[str, Tensor]:
    """Copies of the weights that have carriers."""
    return {name: backbone.model.get_parameter(name).detach().clone() for name in rgp._branches(backbone)}


def own_gradients(job: Job, indices: list[int]) -> dict[str, Tensor]:
    """Mean gradients of the weights themselves and of the head, by an ordinary backward pass without carriers."""
    job.backbone.merge()
    bare = job.backbone.updated()
    for p in bare.values():
        p.requires_grad_(True)
    batch = job.train.batch(indices, "cpu")
    losses = job.loss(job.backbone.logits(batch), batch.labels)
    found = torch.autograd.grad(losses.mean(), list(bare.values()))
    return dict(zip(bare, found, strict=True))


def stirred(job: Job) -> Job:
    """The job in float64, its weights moved from their start."""
    job.backbone.model.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in job.backbone.updated().values():
            p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return job


def step(job: Job) -> dict[str, Tensor]:
    """The released gradient of the first examples."""
    return noised_mean(job, list(range(8)), rng.of_steps(0), Tally("cpu"))


@pytest.mark.parametrize("source", ["update", "weight"])
@pytest.mark.parametrize("moved", [False, True])
def test_carriers(job: Make, source: str, moved: bool) -> None:
    """Carriers are orthonormal, at the start too, and new ones change no logit."""
    made = stirred(job(source=source)) if moved else job(source=source)
    made.backbone.model.double()
    batch = made.train.batch(range(4), "cpu")
    expected, before = made.backbone.logits(batch), made.backbone.trained()
    held = {name: p.detach().clone() for name, p in before.items()}
    made.method.begin_step(made.backbone, torch.Generator().manual_seed(3))

    assert torch.equal(expected, made.backbone.logits(batch))
    assert all(torch.equal(p, held[name]) != ("rgp" in name) for name, p in before.items())
    for branch in rgp._branches(made.backbone).values():
        for columns in (branch.left, branch.right.mT):
            torch.testing.assert_close(columns.mT @ columns, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 500])
@pytest.mark.parametrize("source", ["update", "weight"])
def test_power_iteration(job: Make, source: str, iterations: int) -> None:
    """Many iterations find the leading singular vectors; one is enough where the rank is theirs."""
    made = stirred(job(source=source, iterations=iterations))
    name, branch = next(iter(rgp._branches(made.backbone).items()))
    weight = made.backbone.model.get_parameter(name).detach()
    if iterations == 1:
        a, b = torch.randn(2, 16, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        weight.copy_(branch.start + a @ b.mT)
    made.method.begin_step(made.backbone, torch.Generator().manual_seed(3))
    u, _, vh = torch.linalg.svd(weight - branch.start)

    torch.testing.assert_close(branch.left @ branch.left.mT, u[:, :2] @ u[:, :2].mT, rtol=0, atol=1e-6)
    torch.testing.assert_close(branch.right.mT @ branch.right, vh[:2].mT @ vh[:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [16, 1000])
@pytest.mark.parametrize("head", ["linear", "stock"])
def test_full_rank(job: Make, head: str, rank: int) -> None:
    """At full rank, not clipped, the released gradient is the weights' own."""
    made = stirred(job({"head": head}, rank=rank))
    found, expected = step(made), own_gradients(made, list(range(8)))

    assert found.keys() == expected.keys() == made.backbone.updated().keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)


def test_projection(job: Make) -> None:
    """At a low rank it is the part of the weights' own gradient with the columns of L or the rows of R."""
    made = stirred(job())
    branches = rgp._branches(made.backbone)
    found, expected = step(made), own_gradients(made, list(range(8)))

    for name, branch in branches.items():
        outside = torch.eye(len(branch.left), dtype=torch.float64) - branch.left @ branch.left.mT
        other = torch.eye(branch.right.shape[1], dtype=torch.float64) - branch.right.mT @ branch.right
        torch.testing.assert_close(found[name], expected[name] - outside @ expected[name] @ other, rtol=0, atol=1e-12)
        assert (found[name] - expected[name]).abs().max() > 1e-6
    for name in found.keys() - branches.keys():
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)


def test_weights_move_by_it_alone(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of SGD moves weights and head by the rate times the released gradient, and nothing else moves."""
    sgd = Optimiser(name="sgd", rate=0.5, schedule="constant")
    made = job({"train": 8, "batch": 8, "epochs": 1, "optimiser": sgd})
    before = {name: p.detach().clone() for name, p in made.backbone.model.named_parameters()}
    released: list[dict[str, Tensor]] = []
    release = rgp.Config.release

    def kept(*given: Any) -> Any:
        released.append(release(*given))
        return released[-1]

    monkeypatch.setattr(rgp.Config, "release", kept)
    fit(made)
    (gradient,) = released

    for name, p in made.backbone.model.named_parameters():
        if name in gradient:
            assert not torch.equal(p, before[name])
            torch.testing.assert_close(p.detach(), before[name] - 0.5 * gradient[name])
        else:
            assert "rgp" in name or torch.equal(p, before[name])


def test_count(job: Make) -> None:
    """What trains is carriers and head; the optimiser holds whole weights and the head."""
    made = job(rank=3)
    head = sum(p.numel() for p in made.backbone.head)

    assert made.backbone.count() == 2 * 3 * SIZES + head
    assert sum(p.numel() for p in made.backbone.updated().values()) == 2 * (4 * 256 + 2 * 512) + head
    assert not made.backbone.trained().keys() & weights(made.backbone).keys()


def test_private_training(job: Make) -> None:
    """A private run moves every weight, keeps biases and LayerNorms, and spends its budget."""
    made = job({"privacy": Privacy(epsilon=8.0, delta=1e-3)})
    before = {name: p.detach().clone() for name, p in made.backbone.model.named_parameters()}
    spent: dict[str, Any] = fit(made).ledger or {}
    moved = {n for n, p in made.backbone.model.named_parameters() if not torch.equal(p, before[n]) and "rgp" not in n}

    assert moved == made.backbone.updated().keys()
    assert spent["epsilon"] == pytest.approx(8.0, abs=0.1)


def test_noise_falls_on_the_carriers(job: Make) -> None:
    """Where no example is drawn, a weight's released gradient is made of noise, and of rank 2 r."""
    made = job(rank=1)
    made = replace(made, plan=replace(made.plan, sampling="poisson", clip=0.5, noise_multiplier=2.0))
    found = noised_mean(made, [], rng.of_steps(0), Tally("cpu"))

    for name in rgp._branches(made.backbone):
        assert 2 == torch.linalg.matrix_rank(found[name])
    # Noise of std s on L and R is, projected, of square norm about s^2 (out + in - 1).
    squares = sum(found[name].square().sum().item() for name in rgp._branches(made.backbone))
    assert squares == pytest.approx((2.0 * 0.5 / 8) ** 2 * (2 * (SIZES - 6)), rel=0.3)


def test_clip(job: Make) -> None:
    """Norms are over the gradients of all carriers and the head together."""
    made = stirred(job())
    batch = made.train.batch([0], "cpu")
    whole = clipped_sum(made, batch, math.inf).sums
    part = clipped_sum(made, batch, 1e-3)
    norm = torch.cat([value.flatten() for value in whole.values()]).norm()

    torch.testing.assert_close(part.norms[0], norm)
    for name, value in part.sums.items():
        torch.testing.assert_close(value, whole[name] * 1e-3 / norm)


def test_save(job: Make, tmp_path: Path) -> None:
    """Weights and head come back after training, without the carriers; merged, none are left."""
    made, other = job(), job()
    fit(made)
    made.backbone.save(tmp_path / "weights.safetensors")
    other.backbone.restore(tmp_path / "weights.safetensors")
    made.backbone.merge()
    batch = made.dev.batch(range(4), "cpu")

    assert torch.equal(made.backbone.logits(batch), other.backbone.logits(batch))
    assert not [name for name, _ in made.backbone.model.named_parameters() if "rgp" in name]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 0}, "field 'rank': Input should be greater than 0"),
        ({"iterations": 0}, "field 'iterations': Input should be greater than 0"),
        ({"source": "start"}, "field 'source': Input should be 'update' or 'weight'"),
    ],
    ids=str,
)
def test_bad_settings(config: dict[str, Any], message: str) -> None:
    """A setting that cannot be is refused by name."""
    with pytest.raises(ValueError, match=message):
        methods.make("rgp", {"rank": 1} | config)
