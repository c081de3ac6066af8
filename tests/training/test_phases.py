"""Phases of a training: what trains in each, one schedule, one budget, hooks beside the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_dp import Places, Spec, methods, registry, rng
from peft_dp.models.batch import BUDGETS, Batch
from peft_dp.spec import Optimiser, Privacy
from peft_dp.training import phase
from peft_dp.training.gradient import noised_mean
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit
from peft_dp.training.tally import Tally

from ..gradients import clipped_sum

Make = Callable[..., Spec]
PHASED = [name for name in registry.names("methods") if methods.load(name).Config.phases is not methods.Method.phases]
SGD = Optimiser(name="sgd", rate=0.01)


@pytest.fixture
def job(spec: Make, places: Places) -> Callable[..., Job]:
    """Builds a job of a method with its example; arguments replace the spec's fields."""

    def make(method: str, **fields: Any) -> Job:
        config = fields.pop("config", methods.load(method).EXAMPLE.model_dump(mode="json"))
        made = spec(method=method, config=config, dropout=False, **fields)
        return build(made, find_sources(made, places))

    return make


def private(job: Job, **changes: Any) -> Job:
    """The job under a private plan of its own, with no search for the noise."""
    fields: dict[str, Any] = {"sampling": "poisson", "clip": 1.0, "noise_multiplier": 1.0} | changes
    return replace(job, plan=replace(job.plan, **fields))


def weights(job: Job) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in job.backbone.model.named_parameters()}


def second_phase(job: Job) -> Job:
    """The job with the last of two phases begun."""
    lengths = job.method.phases(job.backbone, job.spec.epochs)
    next(lengths)
    next(lengths)
    return job


def snapshots(job: Job, monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Tensor], set[str], dict[str, Tensor]]]:
    """Trains, and gives each phase's weights at its begin, the names that trained, and the weights at its end."""
    begins: list[Any] = []
    ends: list[Any] = []
    phases = type(job.method).phases

    def watched(*arguments: Any) -> Iterator[int]:
        lengths = phases(*arguments)
        while (length := next(lengths, None)) is not None:
            begins.append((weights(job), set(job.backbone.trained())))
            yield length
            ends.append(weights(job))

    monkeypatch.setattr(type(job.method), "phases", watched)
    fit(job)
    ends.append(weights(job))
    return [(*begin, end) for begin, end in zip(begins, ends, strict=True)]


@pytest.mark.parametrize("is_private", [False, True])
@pytest.mark.parametrize("method", PHASED)
def test_frozen_parameters_stay(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, method: str, is_private: bool
) -> None:
    """In each phase what does not train stays bit for bit, masked entries too, and every tensor that trains moves."""
    made = job(method, optimiser=Optimiser(rate=0.01, weight_decay=0.1, schedule="constant"))
    made = private(made) if is_private else made
    found = snapshots(made, monkeypatch)

    assert 2 == len(found)
    for before, trained, after in found:
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        # Softmax does not see a key's bias, and most tensors have no entry among the few kept.
        still = {name for name in trained if "key" in name or name in made.backbone.masks}
        assert moved <= trained
        assert trained - still <= moved
    before, _, after = found[-1]
    for name, mask in made.backbone.masks.items():
        assert torch.equal(before[name][~mask], after[name][~mask])


@pytest.mark.parametrize("method", PHASED)
def test_one_schedule(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The rate goes on over the phases as in a run of one, under a new optimiser for each."""
    rates: list[float] = []
    optimisers: list[int] = []

    class Watched(torch.optim.SGD):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            optimisers.append(1)
            super().__init__(*arguments, **options)

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    monkeypatch.setitem(phase.OPTIMISERS, "sgd", lambda parameters, o: Watched(parameters, lr=o.rate))
    monkeypatch.setattr(methods.load(method).Config, "rates", methods.Method.rates)
    fit(job(method, train=16, batch=4, epochs=2, optimiser=Optimiser(name="sgd", rate=0.5)))

    assert 2 == len(optimisers)
    assert [0.5 * (8 - step) / 8 for step in range(8)] == pytest.approx(rates)


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 19, 100, 105, 2104])
def test_slanted(steps: int) -> None:
    """The slanted rate starts at 1/32, peaks at 1 after a tenth of the steps, and falls, never below 1/32."""
    factor = phase.rate_factor(Optimiser(rate=1.0, schedule="slanted"), steps)
    found = [factor(step) for step in range(steps)]
    cut = max(1, steps // 10)

    assert found[0] == 1 / 32
    assert min(found) == 1 / 32
    assert found[:cut] == sorted(found[:cut])
    assert found[cut:] == sorted(found[cut:], reverse=True)
    if steps > cut:
        assert 1.0 == found[cut] == max(found)
    # The formula as it is printed, where a tenth is a whole number.
    if steps % 10 == 0:
        expected = [
            (1 + (t / cut if t < cut else 1 - (t - cut) / (cut * (1 / 0.1 - 1))) * (32 - 1)) / 32 for t in range(steps)
        ]
        assert expected == pytest.approx(found)


def test_slanted_has_its_own_warmup() -> None:
    """A warm-up beside the slanted schedule is refused."""
    with pytest.raises(ValueError, match=r"warmup must be 0, not 0\.1"):
        Optimiser(rate=1.0, schedule="slanted", warmup=0.1)


@pytest.mark.parametrize("method", PHASED)
def test_one_budget(job: Callable[..., Job], method: str) -> None:
    """All phases spend one budget: noise and epsilon are those of a run of one phase and as many steps."""
    privacy = Privacy(epsilon=8.0, delta=1e-3)
    made, other = job(method, privacy=privacy, optimiser=SGD), job("bitfit", privacy=privacy, optimiser=SGD)
    spent, expected = fit(made).ledger or {}, fit(other).ledger or {}

    assert made.plan == other.plan
    assert (6, expected["epsilon"]) == (spent["steps"], spent["epsilon"])
    assert spent["epsilon"] == pytest.approx(8.0, abs=0.1)
    assert 2 == len(spent["clipped"])


@pytest.mark.parametrize("method", PHASED)
def test_later_phase_is_clipped(job: Callable[..., Job], method: str) -> None:
    """Norms of the second phase are over all that trains in it, and no example adds more than the clip."""
    made = second_phase(job(method))
    trained = made.backbone.trained()
    batch = made.train.batch(range(6), "cpu")
    squares = []
    for index in range(6):
        one = made.train.batch([index], "cpu")
        found = torch.autograd.grad(made.loss(made.backbone.logits(one), one.labels).sum(), list(trained.values()))
        masks = [made.backbone.masks.get(name, torch.tensor(True)) for name in trained]
        squares.append(sum((g * mask).square().sum() for g, mask in zip(found, masks, strict=True)))
    part = clipped_sum(made, batch, 1e-3)
    whole = torch.cat([value.flatten() for value in part.sums.values()])

    torch.testing.assert_close(part.norms, torch.stack(squares).sqrt(), rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
    assert set(part.sums) == set(trained)
    assert 0 < whole.norm() <= 6 * 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize("method", PHASED)
def test_later_phase_is_noised(job: Callable[..., Job], method: str) -> None:
    """Of the second phase's released gradient every tensor is noised, by the planned size, and only where it trains."""
    made = second_phase(private(job(method), noise_multiplier=2.0, clip=0.5))
    found = noised_mean(made, [], rng.of_steps(0), Tally("cpu"))
    masks = {name: made.backbone.masks.get(name, torch.ones_like(v, dtype=torch.bool)) for name, v in found.items()}
    drawn = torch.cat([value[masks[name]] for name, value in found.items()])

    assert set(made.backbone.trained()) == set(found)
    assert drawn.all()
    assert not any(value[~masks[name]].any() for name, value in found.items())
    assert drawn.std().item() == pytest.approx(2.0 * 0.5 / 8, rel=5 / (2 * len(drawn)) ** 0.5)


def test_penalty_is_not_clipped(job: Callable[..., Job]) -> None:
    """The penalty's gradient is added whole, whatever the clip, and no noise falls on it."""
    config = {"gated_epochs": 1, "penalty": 3.0}
    made = private(job("diff_pruning", config=config), clip=1e-6, noise_multiplier=0.0)
    bare = private(job("diff_pruning", config=config | {"penalty": 0.0}), clip=1e-6, noise_multiplier=0.0)
    for noisy in (0.0, 1e6):
        one, other = (
            noised_mean(private(j, clip=1e-6, noise_multiplier=noisy), list(range(8)), rng.of_steps(0), Tally("cpu"))
            for j in (made, bare)
        )
        open_at_start = torch.sigmoid(torch.tensor(5.0))
        for name, value in one.items():
            expected = 3.0 * open_at_start * (1 - open_at_start) if name.endswith("alpha") else torch.zeros(())
            torch.testing.assert_close(value - other[name], expected.expand_as(value), rtol=1e-3, atol=1e-6)


def test_gates_are_drawn_once_a_step(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """All physical batches of a step see one draw of the gates; the next step has another."""
    made = job("diff_pruning", config={"gated_epochs": 1})
    site: Any = made.backbone.sites("query")[0]
    with torch.no_grad():
        site.parametrizations.weight[0].w.fill_(1.0)
        site.parametrizations.weight[0].gates[0].alpha.fill_(0.0)
    seen: list[Tensor] = []
    losses = Job.losses

    def watched(job: Job, batch: Batch) -> Tensor:
        seen.append(site.weight.detach().clone())
        return losses(job, batch)

    monkeypatch.setattr(Job, "losses", watched)
    monkeypatch.setattr(BUDGETS["cpu"], "tokens", 40)
    streams = rng.of_steps(0)
    noised_mean(made, list(range(8)), streams, Tally("cpu"))
    first = len(seen)
    noised_mean(made, list(range(8)), streams, Tally("cpu"))

    assert first > 1
    assert all(torch.equal(value, seen[0]) for value in seen[:first])
    assert not torch.equal(seen[0], seen[-1])


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        ("gradual", {"stages": [[1, 1], [2, 3]]}, "the stages' epochs add up to 4, but the run has 2"),
        ("two_phase", {"full_epochs": 2}, "full_epochs is 2, but must be below the run's 2 epochs"),
        ("diff_pruning", {"gated_epochs": 3}, "gated_epochs is 3, but must be below the run's 2 epochs"),
    ],
)
def test_wrong_epochs(job: Callable[..., Job], method: str, config: dict[str, Any], message: str) -> None:
    """Phases that do not fill the run are refused before anything changed."""
    made = job(method, config=config)
    before, trained = weights(made), set(made.backbone.trained())
    with pytest.raises(ValueError) as caught:
        fit(made)

    assert str(caught.value).startswith(message)
    assert trained == set(made.backbone.trained())
    assert all(torch.equal(value, before[name]) for name, value in weights(made).items())


@pytest.mark.parametrize("method", PHASED)
def test_repeats(job: Callable[..., Job], method: str) -> None:
    """The same job twice ends in the same weights, bit for bit."""
    first, second = private(job(method)), private(job(method))
    fit(first)
    torch.rand(5)
    fit(second)

    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


@pytest.mark.parametrize("optimiser", phase.OPTIMISERS)
def test_layout_of_a_gradient(job: Callable[..., Job], optimiser: Any) -> None:
    """A gradient that lies in memory in another order than its parameter moves each value by its own gradient."""
    moved = []
    for lay in (Tensor.contiguous, lambda value: value.t().contiguous().t()):
        made = job("full", optimiser=Optimiser(name=optimiser, rate=0.5))
        torch.manual_seed(0)
        gradient = {name: torch.randn(value.shape) for name, value in made.backbone.updated().items()}
        gradient = {name: lay(value) if value.dim() == 2 else value for name, value in gradient.items()}
        with torch.no_grad():
            phase.Phase(made, 0).step(gradient)
        moved.append(weights(made))

    assert all(torch.equal(value, moved[1][name]) for name, value in moved[0].items())


def test_optimiser_bytes(job: Callable[..., Job]) -> None:
    """The bytes are those of the phase that holds most."""
    made, full = job("two_phase"), job("full")

    assert fit(full).optimiser_bytes == fit(made).optimiser_bytes
