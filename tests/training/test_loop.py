"""The training loop: schedules, noise, divisors, streams, and what ends a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from peft_dp import Places, Spec, rng
from peft_dp.models.batch import BUDGETS
from peft_dp.privacy import sampling
from peft_dp.privacy.plan import Plan
from peft_dp.spec import Optimiser
from peft_dp.training import phase
from peft_dp.training.gradient import noised_mean
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit
from peft_dp.training.phase import Phase
from peft_dp.training.tally import Tally

Make = Callable[..., Spec]


@pytest.fixture
def job(spec: Make, places: Places) -> Callable[..., Job]:
    """Builds a job; arguments replace the spec's fields."""

    def make(**fields: object) -> Job:
        return build(spec(**fields), find_sources(spec(**fields), places))

    return make


def private(job: Job, **changes: object) -> Job:
    """The job under a private plan of its own, with no search for the noise."""
    plan: Plan = replace(job.plan, **({"sampling": "poisson", "clip": 1.0, "noise_multiplier": 1.0} | changes))  # type: ignore[arg-type]
    return replace(job, plan=plan)


def step(job: Job, indices: list[int], seed: int = 0) -> dict[str, Tensor]:
    """The gradient of one step."""
    return noised_mean(job, indices, rng.of_steps(seed), Tally("cpu"))


def weights(job: Job) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in job.backbone.model.named_parameters()}


@pytest.mark.parametrize(
    "fields", [{"method": "bitfit"}, {"method": "random_mask", "config": {"kind": "uniform", "share": 0.1}}], ids=str
)
def test_released(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, fields: dict[str, object]) -> None:
    """The trail has the root mean square of what each epoch released, in clips, without what a mask leaves out."""
    released: list[float] = []
    inner = Phase.step

    def step(phase: Phase, gradient: dict[str, Tensor]) -> None:
        released.append(sum(value.double().square().sum().item() for value in gradient.values()))
        inner(phase, gradient)

    monkeypatch.setattr(Phase, "step", step)
    made = private(job(epochs=2, **fields), clip=0.5)
    epochs = fit(made).epochs
    count = sum(epoch.steps for epoch in epochs[:1])
    halves = (released[:count], released[count:])
    values = made.backbone.count() * count
    expected = [math.sqrt(sum(half) / values) * made.plan.batch / 0.5 for half in halves]

    assert expected == pytest.approx([epoch.noise for epoch in epochs])
    assert [values] * 2 == [epoch.released for epoch in epochs]
    assert {(None, 0)} == {(epoch.noise, epoch.released) for epoch in fit(job()).epochs}


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("constant", 0.5, [0, 1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1]),
        ("linear", 0.25, [0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ],
)
def test_rate(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, schedule: str, warmup: float, expected: list[float]
) -> None:
    """The rate of each step rises from 0 over the warm-up, then falls towards 0 or stays."""
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    monkeypatch.setitem(phase.OPTIMISERS, "sgd", lambda parameters, o: Watched(parameters, lr=o.rate))
    optimiser = Optimiser(name="sgd", rate=0.5, schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    fit(job(train=16, batch=4, epochs=2, optimiser=optimiser))

    assert [0.5 * factor for factor in expected] == pytest.approx(rates)


def test_trains_only_what_is_trained(job: Callable[..., Job]) -> None:
    """Parameters that do not train stay bit for bit; those that do move."""
    made = job(method="bitfit")
    before = weights(made)
    fit(made)
    # A key's bias adds the same to every score of a row, and softmax does not see it.
    moved = {name for name, value in weights(made).items() if not torch.equal(value, before[name])}

    assert moved <= set(made.backbone.trained())
    assert {name for name in made.backbone.trained() if "key" not in name} <= moved


def test_sgd_step(job: Callable[..., Job]) -> None:
    """One step of SGD is the rate times the mean gradient of the batch."""
    made = job(train=8, batch=8, epochs=1, dropout=False, optimiser=Optimiser(name="sgd", rate=0.5))
    before = weights(made)
    gradient = step(made, list(range(8)))
    fit(made)

    for name, value in made.backbone.trained().items():
        torch.testing.assert_close(value.detach(), before[name] - 0.5 * gradient[name])


def test_bound_on_the_mean_gradient(job: Callable[..., Job]) -> None:
    """`max_grad_norm` bounds how far a step of SGD goes over all parameters."""
    optimiser = Optimiser(name="sgd", rate=1.0, max_grad_norm=1e-3)
    made = job(train=8, batch=8, epochs=1, optimiser=optimiser)
    before = weights(made)
    fit(made)
    moved = [(value - before[name]).norm() for name, value in weights(made).items()]

    assert torch.stack(moved).norm().item() == pytest.approx(1e-3, rel=0.01)


def test_physical_batches_do_not_matter(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a step does not depend on how its batch is cut, clipped or not."""
    plain = job(dropout=False)
    for made in (plain, private(plain, clip=0.1)):
        whole = step(made, list(range(12)))
        with monkeypatch.context() as patch:
            patch.setattr(BUDGETS["cpu"], "tokens", 40)
            assert len(list(made.train.split(range(12)))) > 2
            parts = step(made, list(range(12)))

        for name, value in whole.items():
            torch.testing.assert_close(value, parts[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_repeats(job: Callable[..., Job], name: str) -> None:
    """The same job twice ends in the same weights, bit for bit."""
    first, second = (job(optimiser=Optimiser(name=name, rate=0.01)) for _ in range(2))  # type: ignore[arg-type]
    fit(first)
    torch.rand(5)  # The global generator is no part of a run.
    fit(second)

    assert all(torch.equal(value, weights(second)[key]) for key, value in weights(first).items())


def test_global_generator_is_left_alone(job: Callable[..., Job]) -> None:
    """Training draws nothing from the global generator."""
    made = job()
    before = torch.get_rng_state()
    fit(made)

    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout(job: Callable[..., Job], dropout: bool) -> None:
    """With dropout two passes over a batch differ, without it they do not."""
    made = job(dropout=dropout)
    made.backbone.model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = (step(made, list(range(8))) for _ in range(2))

    assert dropout == any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("sampled", ["poisson", "shuffle"])
def test_batches_do_not_depend_on_dropout(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, sampled: str
) -> None:
    """Dropout draws from a stream of its own: the batches are the same with it and without."""
    seen: list[list[list[int]]] = []
    epoch = sampling.epoch

    def watch(plan: Plan, generator: torch.Generator) -> Iterator[list[int]]:
        for indices in epoch(plan, generator):
            seen[-1].append(indices)
            yield indices

    monkeypatch.setattr(sampling, "epoch", watch)
    for dropout in (True, False):
        seen.append([])
        fit(private(job(dropout=dropout), sampling=sampled))

    assert len(seen[0]) == 6
    assert seen[0] == seen[1]


def test_dropout_follows_the_seed(job: Callable[..., Job]) -> None:
    """From the same weights, on a batch of all examples, another seed drops other units, and the same seed the same."""
    first, second, third = (
        fit(replace(made, spec=made.spec.seeded(seed))).epochs[0].loss
        for made, seed in ((job(train=8, epochs=1), seed) for seed in (0, 1, 0))
    )

    assert first == third != second


def test_diverged(job: Callable[..., Job]) -> None:
    """A run whose loss is no longer a number ends in an error that names run, epoch and remedy."""
    optimiser = Optimiser(name="sgd", rate=1e30, schedule="constant")
    with pytest.raises(FloatingPointError) as caught:
        fit(job(optimiser=optimiser, epochs=3))
    message = str(caught.value)

    assert message.startswith("bitfit on sentiment, seed 0: the training loss of epoch ")
    assert message.endswith("try a smaller optimiser.rate")


def test_diverged_private(job: Callable[..., Job]) -> None:
    """A private run goes on to its last step: stopping would tell of the data."""
    optimiser = Optimiser(name="sgd", rate=1e30, schedule="constant")
    trained = fit(private(job(optimiser=optimiser, epochs=3)))

    assert [3, 3, 3] == [epoch.steps for epoch in trained.epochs]
    assert not math.isfinite(trained.epochs[-1].loss or math.nan)


def test_empty_batch(job: Callable[..., Job]) -> None:
    """A step that drew no example is noise of the planned size."""
    made = private(job(method="full"), noise_multiplier=2.0, clip=0.5)
    tally = Tally("cpu")
    gradient = noised_mean(made, [], rng.of_steps(0), tally)
    drawn = torch.cat([value.flatten() for value in gradient.values()])

    assert 0 == tally.examples
    # Over P values the estimate of a standard deviation has a relative standard error of sqrt(1 / 2 P).
    assert drawn.std().item() == pytest.approx(2.0 * 0.5 / 8, rel=5 / math.sqrt(2 * len(drawn)))
    assert abs(drawn.mean().item()) < 5 * 2.0 * 0.5 / 8 / math.sqrt(len(drawn))


def test_empty_batch_moves(job: Callable[..., Job]) -> None:
    """The weights move on an empty batch too, and the step counts."""
    made = private(job(train=8, batch=8, epochs=1), sample_rate=0.0)
    before = weights(made)
    trained = fit(made)

    assert [(0, 1)] == [(epoch.examples, epoch.steps) for epoch in trained.epochs]
    assert any(not torch.equal(value, before[name]) for name, value in weights(made).items())


def test_noise_is_fresh(job: Callable[..., Job]) -> None:
    """Two steps and two parameters have different noise; the same seed has the same."""
    made = private(job())
    streams = rng.of_steps(0)
    one, other = (noised_mean(made, [], streams, Tally("cpu")) for _ in range(2))
    drawn = torch.cat([value.flatten() for step in (one, other) for value in step.values()])

    assert len(drawn.unique()) > 0.99 * len(drawn)
    assert all(torch.equal(value, step(made, [])[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("sampled", "drawn", "divisor"), [("poisson", 3, 8), ("poisson", 11, 8), ("shuffle", 3, 3), ("shuffle", 8, 8)]
)
def test_divisor(job: Callable[..., Job], sampled: str, drawn: int, divisor: int) -> None:
    """Under Poisson sampling the divisor is the expected batch, else the actual one."""
    made = private(job(dropout=False), sampling=sampled, noise_multiplier=0.0, clip=1e9)
    plain = job(dropout=False)
    mean = step(plain, list(range(drawn)))

    for name, value in step(made, list(range(drawn))).items():
        torch.testing.assert_close(value, mean[name] * drawn / divisor, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("clip", "share"), [(1e-9, 1.0), (1e9, 0.0)])
def test_clipped(job: Callable[..., Job], clip: float, share: float) -> None:
    """A tiny bound clips every example and a huge one none; the trail says so."""
    trained = fit(private(job(), sampling="shuffle", clip=clip, noise_multiplier=0.0))

    assert [share, share] == [epoch.clipped for epoch in trained.epochs]


def test_clip_bounds_the_step(job: Callable[..., Job]) -> None:
    """Without noise, adding one example moves the sum by at most the clip."""
    made = private(job(dropout=False), clip=0.01, noise_multiplier=0.0)
    one, other = step(made, [0, 1, 2]), step(made, [0, 1, 2, 3])
    gap = torch.stack([(value - other[name]).norm() * made.plan.batch for name, value in one.items()]).norm()

    assert gap.item() == pytest.approx(0.01, rel=1e-3)


def test_trail(job: Callable[..., Job]) -> None:
    """The trail counts examples, tokens without padding, and steps."""
    made = job(train=20, batch=8)
    tokens = sum(len(ids) for ids in made.train.ids)

    assert [(20, tokens, 3), (20, tokens, 3)] == [
        (epoch.examples, epoch.tokens, epoch.steps) for epoch in fit(made).epochs
    ]


@pytest.mark.parametrize(("name", "states"), [("adamw", 2), ("sgd", 0)])
def test_optimiser_bytes(job: Callable[..., Job], name: str, states: int) -> None:
    """AdamW holds two values of four bytes for each one trained and a step count a tensor; SGD holds nothing."""
    made = job(optimiser=Optimiser(name=name, rate=0.01))  # type: ignore[arg-type]
    trained = made.backbone.trained().values()
    expected = states * 4 * sum(parameter.numel() for parameter in trained) + (4 * len(trained) if states else 0)

    assert expected == fit(made).optimiser_bytes


def test_learns(job: Callable[..., Job]) -> None:
    """Where every label is the same, the loss falls to a fraction."""
    made = job(epochs=6, optimiser=Optimiser(rate=0.1, schedule="constant"))
    same = replace(made.train, labels=torch.ones_like(made.train.labels))
    losses = [epoch.loss for epoch in fit(replace(made, train=same)).epochs if epoch.loss is not None]

    assert losses[-1] < 0.1 * losses[0]
