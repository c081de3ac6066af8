"""The audit: its canaries where they should be, and what it catches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from peft_dp import Places, Spec, methods, registry, rng
from peft_dp.privacy import gradients
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.plan import Plan
from peft_dp.spec import Privacy
from peft_dp.suite import papers
from peft_dp.suite.audit import attack as auditing
from peft_dp.suite.audit.attack import audit
from peft_dp.suite.audit.bounds import gaussian_epsilon
from peft_dp.training.job import Job, build, find_sources
from peft_dp.validate import Missing

from ...gradients import clipped_sum

Make = Callable[..., Spec]
METHODS = registry.names("methods")
CELL = "embedded/smoke/bitfit-dp/sentiment"


def made(spec: Make, places: Places, method: str = "full", clipping: str = "abadi", **fields: object) -> Job:
    """A private job with a method's example."""
    config = methods.load(method).EXAMPLE.model_dump(mode="json")
    privacy = Privacy(epsilon=8.0, delta=1e-4, clip=0.5, clipping=clipping)  # type: ignore[arg-type]
    chosen = spec(method=method, config=config, privacy=privacy, **fields)
    return build(chosen, find_sources(chosen, places))


def plan(**fields: object) -> Plan:
    """A plan of two full-batch steps."""
    given = {"examples": 300, "batch": 300, "steps": 2, "steps_per_epoch": 1, "sampling": "poisson", "sample_rate": 1.0}
    return Plan(**(given | {"clip": 0.5} | fields))  # type: ignore[arg-type]


def planted(job: Job, canaries: int) -> tuple[auditing._Canaries, numpy.ndarray[Any, Any]]:
    """Canaries of a job, and which of them are in."""
    draw = numpy.random.default_rng(1)
    return auditing._Canaries.plant(auditing.target(job, canaries), canaries, 0.5, draw), draw.random(canaries) < 0.5


def score(
    job: Job, plan: Plan, canaries: auditing._Canaries, inside: numpy.ndarray[Any, Any]
) -> numpy.ndarray[Any, Any]:
    """What a plan's steps tell of each canary of a job."""
    target = auditing.target(job, len(inside))
    return auditing._scores(target, plan, canaries, inside, rng.generator(0, "noise"), job.spec.seed)


@pytest.mark.parametrize("method", METHODS)
def test_places(spec: Make, places: Places, method: str) -> None:
    """No two canaries share a place, every tensor has some, by its size, and all are where the masks let train."""
    job = made(spec, places, method)
    most = job.backbone.count()
    for canaries in (len(job.backbone.trained()), most // 2, most):
        found, _ = planted(job, canaries)
        for at, (name, parameter) in enumerate(job.backbone.trained().items()):
            open_ = job.backbone.masks.get(name, torch.ones_like(parameter, dtype=torch.bool)).flatten()
            mine = found.places[found.owners == at]
            assert len(mine.unique()) == len(mine) >= 1
            assert abs(len(mine) - canaries * int(open_.sum()) / most) <= 1 + 0.1 * int(open_.sum())
            assert open_[mine].all()
        assert (found.owners >= 0).sum() == canaries


@pytest.mark.parametrize("clipping", ["abadi", "automatic"])
@pytest.mark.parametrize("method", METHODS)
def test_canaries(spec: Make, places: Places, method: str, clipping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise and other examples, a canary's score is the clip once a step if it is in, and 0 if it is out."""
    monkeypatch.setattr(auditing, "EXAMPLES", 0)
    job = made(spec, places, method, clipping)
    canaries, inside = planted(job, min(600, job.backbone.count()))
    scores = score(job, plan(clipping=clipping), canaries, inside)
    length = 0.5 if clipping == "abadi" else 0.5 * 5 / 5.01

    numpy.testing.assert_allclose(scores, 2 * length * inside, rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["full", "random_mask"])
def test_examples(spec: Make, places: Places, method: str) -> None:
    """The eight whole examples beside the canaries add their own clipped gradients, whatever they are cut with."""
    job = made(spec, places, method, dropout=False)
    job.backbone.model.double()
    with torch.no_grad():
        for parameter in job.backbone.trained().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    canaries, inside = planted(job, 300)
    scores = score(job, plan(), canaries, inside)
    sums = clipped_sum(job, job.train.batch(range(8), "cpu"), 0.5).sums
    named = [(canaries.names[owner], place) for owner, place in zip(canaries.owners, canaries.places, strict=True)]
    alone = numpy.array([float(sums[name].flatten()[place]) for name, place in named[:300]])

    assert numpy.abs(alone).max() > 1e-2
    numpy.testing.assert_allclose(scores, 2 * (0.5 * inside + alone), rtol=0, atol=1e-12)


def test_weights_stay(spec: Make, places: Places) -> None:
    """An audit moves no weight, draws nothing global, and gives the same twice."""
    job = made(spec, places)
    before = {name: p.detach().clone() for name, p in job.backbone.model.named_parameters()}
    state = torch.get_rng_state()
    found = audit(job, canaries=300)

    assert found == audit(job, canaries=300)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], p) for name, p in job.backbone.model.named_parameters())


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_claim(spec: Make, places: Places, accountant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is claimed is by the cell's own accountant, close to 2, and not below the Gaussian mechanism's epsilon."""
    job = made(spec, places)
    assert job.spec.privacy is not None
    job = replace(job, spec=replace(job.spec, privacy=replace(job.spec.privacy, accountant=accountant)))
    used: list[Plan] = []

    def watched(model: Any, losses: Any, cuts: Any, plan: Plan, *rest: Any, **more: Any) -> dict[str, Tensor]:
        used.append(plan)
        return noised_sum(model, losses, cuts, plan, *rest, **more)

    monkeypatch.setattr(auditing, "noised_sum", watched)
    found = audit(job, canaries=300)

    assert (accountant, 4 * found.draws) == (found.accountant, len(used))
    assert {(1.0, 0.5)} == {(plan.sample_rate, plan.clip) for plan in used}
    exact = gaussian_epsilon(math.sqrt(auditing.STEPS) / used[0].noise_multiplier, found.delta)
    assert max(exact, 1.95) <= found.claimed <= 2.0


def noise(factor: Callable[[int], float]) -> Callable[[pytest.MonkeyPatch], None]:
    """Replaces the noise multiplier behind the accountant's back, by a factor of the number of physical batches."""

    def broken(
        model: Any, losses: Any, cuts: list[list[int]], plan: Plan, *rest: Any, **more: Any
    ) -> dict[str, Tensor]:
        less = replace(plan, noise_multiplier=plan.noise_multiplier * factor(len(cuts)))
        return noised_sum(model, losses, cuts, less, *rest, **more)

    return lambda patch: patch.setattr(auditing, "noised_sum", broken)


BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no noise": noise(lambda splits: 0.0),
    "half noise": noise(lambda splits: 0.5),
    "less noise": noise(lambda splits: 0.85),
    "noise divided by the splits": noise(lambda splits: 1 / splits),
    "no clip": lambda patch: patch.setattr(gradients, "factors", lambda norms, *_: torch.ones_like(norms)),
}


@pytest.mark.parametrize("seed", range(5))
def test_right_engine(spec: Make, places: Places, seed: int) -> None:
    """The engine stays below what it claims, and finds the mu of its own noise."""
    job = made(spec, places, seed=seed)
    found = audit(job)

    assert found.canaries == job.backbone.count() > 5000
    assert not found.alarms
    # The mechanism's mu is 0.5, the standard error 0.016.
    assert abs(found.mu - 0.5) < 5 * 0.016
    assert found.limit < found.estimate < 1.2 * found.claimed
    for least in (found.bounds, found.any_mechanism):
        assert len(set(least)) == found.draws
        assert 0 < numpy.median(least) < found.claimed


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_engine(spec: Make, places: Places, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise, half of it, 85 % of it, noise divided by the physical batches and no clip refute the claim."""
    BROKEN[broken](monkeypatch)
    found = audit(made(spec, places))

    assert found.alarms
    assert min(found.bounds) > found.claimed or broken == "less noise"


def test_not_private(spec: Make, places: Places) -> None:
    """A run without privacy has no claim to audit."""
    chosen = spec()

    with pytest.raises(ValueError, match="a run without privacy claims no epsilon"):
        audit(build(chosen, find_sources(chosen, places)))


@pytest.mark.parametrize("canaries", [-1, 0, 99])
def test_too_few(spec: Make, places: Places, canaries: int) -> None:
    """Canaries that can show nothing are refused, with the least that is taken."""
    with pytest.raises(ValueError, match=f"canaries {canaries} are too few for .* take at least 100"):
        audit(made(spec, places), canaries)


@pytest.mark.slow
def test_embedded() -> None:
    """On the smoke pipeline of a real model five seeds keep the claim, and every broken variant refutes it."""
    cell = papers.find(CELL)
    try:
        sources = find_sources(cell.spec, Places(device="cpu"))
    except Missing as missing:
        pytest.skip(str(missing))
    found = {f"seed {seed}": audit(build(cell.spec.seeded(seed), sources)) for seed in range(5)}
    right = list(found)
    for name, broken in BROKEN.items():
        with pytest.MonkeyPatch.context() as patch:
            broken(patch)
            found[name] = audit(build(cell.spec, sources))
    for name, one in found.items():
        print(name, one)

    assert not [name for name in right if found[name].alarms]
    assert not [name for name in BROKEN if not found[name].alarms]
