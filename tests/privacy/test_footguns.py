"""Known ways in which training code voids its privacy claim, and what holds here.

The numbers are those of the table in docs/privacy.md. A test says in its first line which footgun it is about.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy.stats import binomtest, chi2, norm
from torch import Tensor, nn
from torch.nn import functional

import peft_dp
from peft_dp import Places, Spec, methods, registry, rng
from peft_dp.privacy import sampling
from peft_dp.privacy.engine import PrivacyEngine
from peft_dp.privacy.gradients import per_example_pass, zeros
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.plan import Plan, private_plan, spent
from peft_dp.spec import Optimiser, Privacy, from_json, to_json
from peft_dp.training import phase
from peft_dp.training.gradient import noised_mean
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit
from peft_dp.training.tally import Tally
from peft_dp.validate import Missing

from ..gradients import clipped_sum, per_example_gradients

Losses = Callable[[list[int]], Tensor]
METHODS = registry.names("methods")
PHASED = [name for name in METHODS if methods.load(name).Config.phases is not methods.Method.phases]
CHANCE = 1e-6
"""A test of chance fails where right code would give what was seen less often than this."""

NOT_HERE = {
    31: "published DP code that cannot run: no released code is run here, rows are computed from the papers' recipes",
}
"""Footguns that cannot occur, and why."""

PRIVACY = Privacy(epsilon=8.0, delta=1e-4, accountant="rdp")
PLAN = Plan(
    examples=32,
    batch=8,
    steps=8,
    steps_per_epoch=4,
    sampling="poisson",
    sample_rate=0.25,
    clip=0.5,
    noise_multiplier=1.0,
    delta=1e-4,
    accountant="rdp",
)
X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randint(3, (32,), generator=torch.Generator().manual_seed(1))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A module in float64 whose values do not depend on what was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double()


def net() -> nn.Module:
    """Two linear layers."""
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))


def losses_of(model: nn.Module, x: Tensor = X) -> Losses:
    """Example indices -> losses [B]."""
    return lambda indices: functional.cross_entropy(model(x[indices]), Y[indices], reduction="none")


def silent(model: nn.Module, x: Tensor = X) -> Losses:
    """Losses without a gradient, so that what is released is the noise."""
    return lambda indices: model(x[indices]).flatten(1).sum(1) * 0


def engine(model: nn.Module, **options: Any) -> PrivacyEngine:
    """An engine over the 32 examples."""
    return PrivacyEngine(model, PRIVACY, **({"examples": 32, "batch": 8, "epochs": 2, "seed": 0} | options))


def noised(model: nn.Module, losses: Losses, *cuts: Sequence[int], plan: Plan = PLAN, seed: int = 0) -> Tensor:
    """The noised sum over physical batches, in a row."""
    sums = noised_sum(model, losses, [list(cut) for cut in cuts], plan, rng.generator(seed, "noise"))
    return torch.cat([value.flatten() for value in sums.values()])


def gradients(model: nn.Module) -> Tensor:
    """The gradients that were set, in a row."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def each(model: nn.Module, losses: Losses, indices: Sequence[int]) -> Tensor:
    """Gradients [B, P] of examples passed alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(losses([index]).sum(), trained) for index in indices]
    return torch.stack([torch.cat([value.flatten() for value in row]) for row in rows])


def clipped(rows: Tensor, clip: float) -> Tensor:
    """The clipped sum [P] of gradients [B, P]."""
    return (clip / rows.norm(dim=1)).clamp(max=1.0) @ rows


def assert_exact(model: nn.Module, losses: Losses) -> None:
    """Per-example gradients, and what is released but for the noise, equal those of examples passed alone."""
    indices = list(range(6))
    expected = each(model, losses, indices)
    found = noised(model, losses, indices, plan=replace(PLAN, noise_multiplier=0.0))

    torch.testing.assert_close(per_example_pass(model, lambda: losses(indices), 6).each(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, clipped(expected, PLAN.clip), rtol=0, atol=1e-12)


def unrelated(*noises: Tensor) -> bool:
    """Whether no two of the noises correlate."""
    bound = norm.isf(CHANCE / 2) / math.sqrt(len(noises[0]))
    found = torch.corrcoef(torch.stack(noises)) - torch.eye(len(noises))
    return bool(found.abs().max() < bound)


@pytest.fixture
def job(spec: Callable[..., Spec], places: Places) -> Callable[..., Job]:
    """Builds a job on the tiny BERT, with a method's example; other arguments replace the spec's fields."""

    def make(method: str = "bitfit", **fields: Any) -> Job:
        config = fields.pop("config", methods.load(method).EXAMPLE.model_dump(mode="json"))
        made = spec(method=method, config=config, **({"dropout": False} | fields))
        return build(made, find_sources(made, places))

    return make


def private(job: Job, **changes: Any) -> Job:
    """The job under a private plan of its own, with no search for the noise."""
    fields: dict[str, Any] = {"sampling": "poisson", "clip": 1.0, "noise_multiplier": 1.0} | changes
    return replace(job, plan=replace(job.plan, **fields))


def released(job: Job, indices: list[int]) -> dict[str, Tensor]:
    """The gradient of one step."""
    return noised_mean(job, indices, rng.of_steps(0), Tally("cpu"))


def last_phase(job: Job) -> Job:
    """The job with the last of its phases begun."""
    for _ in job.method.phases(job.backbone, job.spec.epochs):
        pass
    return job


def watch_steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of each step that an optimiser of name "sgd" will make."""
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    monkeypatch.setitem(phase.OPTIMISERS, "sgd", lambda parameters, o: Watched(parameters, lr=o.rate))
    return rates


def named() -> dict[int, set[str]]:
    """Number of each footgun that has tests -> their names."""
    found: dict[int, set[str]] = {}
    for name, value in vars(sys.modules[__name__]).items():
        if name.startswith("test_") and (match := re.match(r"Footgun (\d+): ", value.__doc__ or "")):
            found.setdefault(int(match[1]), set()).add(name)
    return found


def test_every_number() -> None:
    """Each of the 34 footguns has a test that names it, or a reason why it cannot occur."""
    found = named().keys()

    assert not found & NOT_HERE.keys()
    assert set(range(1, 35)) == found | NOT_HERE.keys()


def test_page() -> None:
    """The table of docs/privacy.md names the tests of each footgun, and none where it cannot occur."""
    page = (Path(peft_dp.__file__).parents[1] / "docs" / "privacy.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\|([^|]*)\|$", page, flags=re.MULTILINE)
    found = {int(number): set(re.findall(r"\w+", cell)) for number, cell in rows}

    assert named() | {number: set() for number in NOT_HERE} == found


def test_shuffled_batches(job: Callable[..., Job]) -> None:
    """Footgun 1: an epsilon of shuffled batches is marked as none, and the engine refuses to shuffle."""
    made = job(privacy=replace(PRIVACY, sampling="shuffle"))

    assert not (fit(made).ledger or {})["matches_accountant"]
    with pytest.raises(ValueError, match="'shuffle' has no accountant here"):
        PrivacyEngine(net(), replace(PRIVACY, sampling="shuffle"), examples=32, batch=8, epochs=1)


def test_empty_first_batch() -> None:
    """Footgun 2: a first batch that drew nobody is a step, with noise on every value, and is counted."""
    model = net()
    empty = next(seed for seed in range(99) if not next(engine(model, batch=1, seed=seed).batches()))
    made = engine(model, batch=1, seed=empty)
    before = [p.detach().clone() for p in model.parameters()]
    made.backward(losses_of(model), next(made.batches()))
    torch.optim.SGD(model.parameters(), lr=1.0).step()

    assert 1 == made.ledger()["steps"]
    assert made.ledger()["epsilon"] > 0
    assert all((p != old).all() for p, old in zip(model.parameters(), before, strict=True))


def test_empty_batch_has_no_rows(job: Callable[..., Job]) -> None:
    """Footgun 3: nothing stands in for the examples of an empty batch; but for the noise its sum is 0."""
    made = private(job(), sample_rate=0.0, noise_multiplier=0.0)

    assert not any(value.any() for value in released(made, []).values())
    assert [(0, 3), (0, 3)] == [(epoch.examples, epoch.steps) for epoch in fit(made).epochs]


@pytest.mark.parametrize("examples", [31, 32])
def test_divisor_is_declared(examples: int) -> None:
    """Footgun 4: the divisor is the declared batch, whatever N and however many were drawn."""
    model = net()
    made = engine(model, examples=examples, batch=5, seed=1)
    made._plan = replace(made._plan, noise_multiplier=0.0)
    indices = next(made.batches())
    made.backward(losses_of(model), indices)

    assert len(indices) != 5
    expected = clipped(each(model, losses_of(model), indices), PRIVACY.clip) / 5
    torch.testing.assert_close(gradients(model), expected, rtol=0, atol=1e-12)


def test_steps_are_declared() -> None:
    """Footgun 5: an epoch is floor(N / batch) steps, also where 1 / rate rounds to less; as many are counted."""
    examples = next(n for n in range(8, 5000) if int(1 / (8 / n)) != n // 8)
    model = net()
    made = engine(model, examples=examples, epochs=1)
    for indices in made.batches():
        made.backward(silent(model, X.new_ones(examples, 4)), indices)

    assert examples // 8 == made.steps == made.ledger()["steps"]


def test_sample_rate() -> None:
    """Footgun 6: the sampler draws at the rate that is accounted for, batch / N; no other sampler can be given."""
    plan = private_plan(PRIVACY, 50, 8, 1)
    many = sampling.epoch(replace(plan, steps_per_epoch=4000), rng.generator(0, "batches"))

    assert 8 / 50 == plan.sample_rate == engine(net(), examples=50).ledger()["sample_rate"]
    assert binomtest(sum(map(len, many)), 4000 * 50, plan.sample_rate).pvalue > CHANCE


def test_mean_loss_is_refused() -> None:
    """Footgun 7: a loss already reduced over the batch is refused, and nothing is released."""
    model = net()
    made = engine(model)
    mean: Losses = lambda indices: losses_of(model)(indices).mean()  # noqa: E731
    with pytest.raises(ValueError):
        made.backward(mean, next(made.batches()))

    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match=r"shape \(\), but must be one for each of 6 examples"):
        noised(model, mean, range(6))


def test_noise_is_that_of_the_sum() -> None:
    """Footgun 8: what is released times the batch, less the clipped sum, has the deviation noise multiplier * clip."""
    model = seeded(lambda: nn.Linear(4, 2000))
    made = engine(model)
    indices = next(made.batches())
    losses: Losses = lambda cut: model(X[cut]).square().mean(1)  # noqa: E731
    made.backward(losses, indices)
    said = made.ledger()
    residual = gradients(model) * 8 - clipped(each(model, losses, indices), said["clip"])
    statistic = (residual / (said["noise_multiplier"] * said["clip"])).square().sum().item()

    assert 2 * min(chi2.cdf(statistic, len(residual)), chi2.sf(statistic, len(residual))) > CHANCE


@pytest.mark.parametrize("physical", [1, 2, 4])
def test_noise_is_added_once(physical: int) -> None:
    """Footgun 9: the release is the same, noise included, into however many physical batches a logical one is cut."""
    whole, parts = net(), net()
    for model, size in ((whole, 32), (parts, physical)):
        made = engine(model, physical=size)
        indices = next(made.batches())
        made.backward(losses_of(model), indices)

    assert len(indices) > 4
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=0, atol=1e-12)


class TiedLinear(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 4] of x [B, 4]."""
        return self.second(self.first(x).tanh())


class CalledTwice(nn.Module):
    """One linear layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 4] of x [B, 4]."""
        return self.layer(self.layer(x).tanh())


class Scale(nn.Module):
    """A raw parameter that multiplies, as in IA3."""

    example_axis = True

    def __init__(self, value: nn.Parameter) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        """The product [B, d] of x [B, d]."""
        return x * self.value


class UnmarkedScale(Scale):
    """The same, without saying that a leading example axis is fine."""

    example_axis = False


def scaled(kind: type[Scale]) -> nn.Module:
    """A frozen body, the same raw parameter before and after it."""

    def make() -> nn.Module:
        value = nn.Parameter(torch.rand(4))
        return nn.Sequential(kind(value), nn.Linear(4, 4).requires_grad_(False), nn.Tanh(), kind(value))

    return seeded(make)


@pytest.mark.parametrize(("kind", "message"), [(TiedLinear, "another module's parameter"), (CalledTwice, "twice")])
def test_tied_is_refused_or_exact(kind: type[nn.Module], message: str) -> None:
    """Footgun 10: a tied weight and a layer called twice are refused; a raw parameter of two modules is exact."""
    model = seeded(kind)
    with pytest.raises(ValueError, match=message):
        noised(model, losses_of(model), range(6))
    scale = scaled(Scale)

    assert_exact(scale, losses_of(scale))


def test_shared_z(job: Callable[..., Job]) -> None:
    """Footgun 11: SLaSh's one z, used in every layer, has the gradient of all its uses and their norm, not L norms."""
    made = job("slash")
    made.backbone.model.double()
    losses: Losses = lambda indices: made.losses(made.train.batch(indices, "cpu"))  # noqa: E731

    assert 1 == sum(parameter.shape == (8,) for parameter in made.backbone.trained().values())
    assert_exact(made.backbone.model, losses)


class Prompted(nn.Module):
    """A frozen body on a trained prompt of three vectors and the input."""

    def __init__(self, prompt: nn.Module) -> None:
        super().__init__()
        self.prompt = prompt
        self.body = nn.Linear(4, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 3] of x [B, 4]."""
        prompt = self.prompt(torch.arange(3).expand(self.rows(x), 3)).expand(len(x), 3, 4)
        return self.body(torch.cat([prompt, x[:, None]], 1).mean(1).tanh())

    def rows(self, x: Tensor) -> int:
        """Rows of the prompt's ids."""
        return len(x)


class BroadcastPrompt(Prompted):
    """The same, its prompt looked up once for the batch."""

    def rows(self, x: Tensor) -> int:
        """Rows of the prompt's ids."""
        return 1


class RawPrompt(nn.Module):
    """A prompt that is a raw parameter."""

    example_axis = True

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(3, 4))

    def forward(self, ids: Tensor) -> Tensor:
        """The prompt [3, 4], or [B, 3, 4]."""
        return self.value


def test_broadcast_prompt_is_refused() -> None:
    """Footgun 12: where all that trains is one row for the whole batch, the engine refuses; nothing is released."""
    model = seeded(lambda: BroadcastPrompt(nn.Embedding(3, 4)))
    made = engine(model)
    with pytest.raises(ValueError, match="has 1 rows for 2 examples"):
        made.backward(losses_of(model), next(made.batches()))

    assert all(p.grad is None for p in model.parameters())


def test_broadcast_positions_are_refused(job: Callable[..., Job]) -> None:
    """Footgun 12: BERT's own positions, one row [1, T] for the batch, are refused; the backbone writes them out."""
    made = job("full")
    model, batch = made.backbone.model, made.train.batch(range(3), "cpu")

    with pytest.raises(ValueError, match="position_embeddings has 1 rows for 3 examples"):
        per_example_pass(
            model, lambda: made.loss(model(input_ids=batch.ids, attention_mask=batch.mask), batch.labels), 3
        )
    assert {3} == {len(value) for value in made.backbone.inputs(batch).values()}


@pytest.mark.parametrize("prompt", [lambda: nn.Embedding(3, 4), lambda: RawPrompt()], ids=["rows", "raw"])
def test_prompts_are_exact(prompt: Callable[[], nn.Module]) -> None:
    """Footgun 12: a prompt with a row for each example, and a raw one with an example axis, have true gradients."""
    model = seeded(lambda: Prompted(prompt()))

    assert_exact(model, losses_of(model))


def test_raw_parameter() -> None:
    """Footgun 13: a raw parameter is exact where its module computes with an example axis, else refused by name."""
    scale, unmarked = scaled(Scale), scaled(UnmarkedScale)

    assert_exact(scale, losses_of(scale))
    with pytest.raises(ValueError, match="no rule for UnmarkedScale"):
        noised(unmarked, losses_of(unmarked), range(6))


def test_bias_of_a_frozen_weight() -> None:
    """Footgun 14: biases train exactly where their weights are frozen, and the weights stay bit for bit."""
    model = net()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    before = {name: p.clone() for name, p in model.named_parameters()}
    made = engine(model)
    made.backward(losses_of(model), next(made.batches()))
    torch.optim.SGD(model.parameters(), lr=1.0).step()

    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == {"0.bias", "2.bias"}
    assert_exact(model, losses_of(model))


def test_unfrozen_later() -> None:
    """Footgun 15: a layer unfrozen between two steps is clipped with the rest and noised from then on."""
    model = net()
    first = model.get_submodule("0").requires_grad_(False)
    made = engine(model, batch=32)
    batches = made.batches()
    made.backward(losses_of(model), next(batches))

    assert all(p.grad is None for p in first.parameters())
    first.requires_grad_(True)
    made.backward(losses_of(model), next(batches))
    source, std = rng.generator(0, "noise"), made.ledger()["noise_multiplier"]
    for some in (model.get_submodule("2").parameters(), model.parameters()):
        drawn = torch.cat([values.flatten() for values in rng.normal(source, [*some], std)])
    expected = clipped(each(model, losses_of(model), range(32)), PRIVACY.clip) + drawn
    torch.testing.assert_close(gradients(model), expected / 32, rtol=0, atol=1e-12)


def test_ghost_norm_on_tokens() -> None:
    """Footgun 16: of a wide layer on tokens [B, T, d] the norms, bias included, are those of examples passed alone."""
    model = seeded(lambda: nn.Linear(40, 40))
    x = torch.randn(6, 5, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    losses: Losses = lambda indices: model(x[indices]).tanh().sum((1, 2))  # noqa: E731
    found = per_example_pass(model, lambda: losses(list(range(6))), 6)
    norms = found.add_clipped(zeros(model), 0.5, "abadi")

    torch.testing.assert_close(norms, each(model, losses, range(6)).norm(dim=1), rtol=1e-9, atol=0)
    assert_exact(model, losses)


@pytest.mark.parametrize("method", METHODS)
def test_all_that_trains_is_noised(job: Callable[..., Job], method: str) -> None:
    """Footgun 17: every value that the optimiser updates, the head's too, gets noise, and no gradient but this one."""
    made = private(job(method))
    found = released(made, [])

    assert set(found) == set(made.backbone.updated())
    for name, value in found.items():
        # Carriers of a gradient leave values of a weight without noise, and a mask all it does not let through.
        assert value.any() if made.backbone.updates else value[made.backbone.masks.get(name, ...)].all()


def test_layer_outside_the_model() -> None:
    """Footgun 17: a layer that the losses use but the engine was not given gets no gradient, so it cannot train."""
    model, head = net(), nn.Linear(3, 3).double()
    made = engine(model)
    made.backward(
        lambda indices: functional.cross_entropy(head(model(X[indices])), Y[indices], reduction="none"),
        next(made.batches()),
    )

    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in head.parameters())


def test_no_step_beside_the_ledger(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Footgun 18: the optimiser makes as many steps as the ledger counts, and a run leaves no gradient behind."""
    rates = watch_steps(monkeypatch)
    made = job(privacy=PRIVACY, optimiser=Optimiser(name="sgd", rate=0.1))
    trained = fit(made)

    assert made.plan.steps == len(rates) == (trained.ledger or {})["steps"]
    assert all(p.grad is None for p in made.backbone.model.parameters())


def test_no_batch_is_left_out() -> None:
    """Footgun 18: the engine gives no second batch before the first was a step, and no second step of one batch."""
    model = net()
    made = engine(model)
    batches = made.batches()
    indices = next(batches)
    with pytest.raises(ValueError, match="batch 1 was not passed to backward"):
        next(batches)
    made.backward(losses_of(model), indices)
    with pytest.raises(ValueError, match="called without a new batch"):
        made.backward(losses_of(model), indices)

    assert 1 == made.ledger()["steps"]


def test_dropout_is_off_by_probability(job: Callable[..., Job]) -> None:
    """Footgun 19: dropout is switched off by p = 0, so that training mode and eval() give the same gradients."""
    model = (made := job()).backbone.model
    batch = made.train.batch(range(4), "cpu")
    model.train()
    training = per_example_gradients(made, batch)
    model.eval()

    assert {0.0} == {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert torch.equal(training, per_example_gradients(made, batch))
    fit(private(made))
    assert all(module.training for module in model.modules())


def test_exception_leaves_no_trace() -> None:
    """Footgun 20: after an error inside a logical batch the next release equals one without the error."""
    model, other = net(), net()
    made, untouched = engine(model, physical=2), engine(other, physical=2)
    indices = next(made.batches())

    def failing(cut: list[int]) -> Tensor:
        if indices[4] in cut:
            raise RuntimeError("in the third physical batch")
        return losses_of(model)(cut)

    with pytest.raises(RuntimeError, match="third physical batch"):
        made.backward(failing, indices)
    assert all(p.grad is None for p in model.parameters())
    assert 0 == made.ledger()["steps"]
    made.backward(losses_of(model), indices)
    untouched.backward(losses_of(other), next(untouched.batches()))
    assert torch.equal(gradients(model), gradients(other))


def test_schedule_counts_logical_batches(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Footgun 21: the learning rate falls with each logical batch, not with the physical ones it is cut into."""
    rates = watch_steps(monkeypatch)
    made = private(job(optimiser=Optimiser(name="sgd", rate=0.5)))
    monkeypatch.setattr(type(made.train), "split", lambda self, indices, budget: ([i] for i in indices))
    fit(made)

    assert [0.5 * (6 - step) / 6 for step in range(6)] == pytest.approx(rates)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_not_finite(value: float) -> None:
    """Footgun 22: an example without a finite gradient adds nothing; the others, the noise and the step stay."""
    model = net().float()
    made = engine(model)
    indices = next(made.batches())
    x = X.float()
    x[indices[1]] = value
    rest = [index for index in indices if index != indices[1]]
    made.backward(losses_of(model, x), indices)
    said = made.ledger()
    plan = replace(PLAN, clip=said["clip"], noise_multiplier=said["noise_multiplier"])
    expected = noised(model, losses_of(model, x), rest, plan=plan) / 8

    assert 1 == said["steps"]
    torch.testing.assert_close(gradients(model), expected, rtol=1e-5, atol=1e-6)


def test_out_of_memory() -> None:
    """Footgun 23: where one example is too large nothing is released and no step counted; no example is dropped."""
    model = net()
    made = engine(model, physical=2)
    indices = next(made.batches())

    def losses(cut: list[int]) -> Tensor:
        if indices[4] in cut:
            raise torch.OutOfMemoryError
        return losses_of(model)(cut)

    with pytest.raises(torch.OutOfMemoryError):
        made.backward(losses, indices)
    assert all(p.grad is None for p in model.parameters())
    assert 0 == made.ledger()["steps"]


NO_MEMORY = (
    torch.OutOfMemoryError(),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
)


def short_of_memory(job: Job, at: str, most: int, error: Exception = NO_MEMORY[0]) -> Job:
    """The job, whose head is out of memory with more than so many examples, in its forward or its backward pass."""

    def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(output) > most:
            raise error

    def backward(module: nn.Module, gradients: object, above: tuple[Tensor, ...]) -> None:
        if len(above[0]) > most:
            raise error

    head = job.backbone.model.get_submodule("head")
    head.register_full_backward_hook(backward) if at == "backward" else head.register_forward_hook(forward)
    return job


@pytest.mark.parametrize("at", ["forward", "backward"])
@pytest.mark.parametrize("plan", ["private", "plain"])
@pytest.mark.parametrize("method", ["bitfit", "full", "lora"])
@pytest.mark.parametrize("error", NO_MEMORY, ids=["torch", "cuBLAS"])
def test_out_of_memory_halves(job: Callable[..., Job], error: Exception, at: str, plan: str, method: str) -> None:
    """Footgun 23: a physical batch that does not fit is passed in halves, each example once, to the same sums."""
    made, short = job(method), short_of_memory(job(method), at, 2, error)
    if plan == "private":
        made, short = private(made, noise_multiplier=0.0), private(short, noise_multiplier=0.0)
    expected, tally = released(made, list(range(11))), Tally("cpu")
    found = noised_mean(short, list(range(11)), rng.of_steps(0), tally)

    assert (11, made.train.count(range(11))) == (tally.examples, tally.tokens)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_out_of_memory_ends_a_run(job: Callable[..., Job]) -> None:
    """Footgun 23: a run of which one example alone does not fit ends, and says whose it is and how long."""
    made = short_of_memory(job(), "backward", 0)
    longest = max(made.train.lengths)
    said = f"seed 0: cpu is out of memory with as few examples as can pass, of up to {longest} tokens: end what else"
    with pytest.raises(Missing, match=said):
        fit(replace(made, plan=replace(made.plan, batch=24, steps_per_epoch=1)))
    with pytest.raises(Missing, match="bitfit on sentiment, private, seed 0: cpu is out of memory"):
        fit(private(made))


@pytest.mark.parametrize("method", PHASED)
def test_epsilon_of_all_phases(job: Callable[..., Job], method: str) -> None:
    """Footgun 24: the epsilon is of all phases together, not of the last; there is no accountant to restore."""
    made = job(method, privacy=PRIVACY)
    said = fit(made).ledger or {}

    assert made.plan.steps == said["steps"]
    assert spent(made.plan, made.plan.steps) == said["epsilon"] > spent(made.plan, made.plan.steps // 2)
    assert said["epsilon"] == pytest.approx(PRIVACY.epsilon, abs=0.02)


def test_noise_is_never_reused() -> None:
    """Footgun 25: noise does not repeat across tensors of one shape, steps, or runs without a seed."""
    found = []
    for _ in range(2):
        model = seeded(lambda: nn.Sequential(nn.Linear(4, 1000), nn.Linear(1000, 4)))
        made = engine(model, seed=None)
        for indices, _ in zip(made.batches(), range(2), strict=False):
            made.backward(silent(model), indices)
            found += [p.grad.T.flatten() if p.shape == (4, 1000) else p.grad.flatten() for p in matrices(model)]

    assert 8 == len(found)
    assert unrelated(*found)


def matrices(model: nn.Module) -> list[Any]:
    """The weights of a model's linear layers."""
    return [p for p in model.parameters() if p.dim() == 2]


def test_global_seed_does_not_matter() -> None:
    """Footgun 26: a helper that seeds the global generator does not repeat the noise, and two seeds are unrelated."""
    found = []
    for seed in (0, 1):
        model = seeded(lambda: nn.Linear(4, 1000))
        made = engine(model, seed=seed)

        def losses(indices: list[int], model: nn.Module = model) -> Tensor:
            torch.manual_seed(0)
            return silent(model)(indices)

        for indices, _ in zip(made.batches(), range(2), strict=False):
            with torch.random.fork_rng():
                made.backward(losses, indices)
            found.append(gradients(model))

    assert unrelated(*found)


def test_secure_noise(job: Callable[..., Job]) -> None:
    """Footgun 27: without a seed the noise is the operating system's and takes no seed; a seeded run says it is."""
    made = job(privacy=PRIVACY)

    assert "secure" == engine(net(), seed=None).ledger()["noise"]
    assert engine(net(), seed=0).ledger()["noise"].startswith("seeded: ")
    assert (fit(made).ledger or {})["noise"].startswith("seeded: ")
    with pytest.raises(ValueError, match="secure noise takes no seed"):
        rng.Entropy().manual_seed(0)


def test_gdp_is_refused(spec: Callable[..., Spec]) -> None:
    """Footgun 28: the accountant by Gaussian DP, which is no upper bound, is refused in code and in JSON."""
    data = to_json(spec(privacy=PRIVACY))
    data["privacy"]["accountant"] = "gdp"

    with pytest.raises(ValidationError, match="Input should be 'prv' or 'rdp'"):
        Privacy(epsilon=8.0, delta=1e-4, accountant="gdp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"field 'privacy\.accountant': Input should be 'prv' or 'rdp'"):
        from_json(data, where="here")


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_no_noise_is_infinite(accountant: str) -> None:
    """Footgun 29: without noise epsilon is inf from the first step on, and 0 before it."""
    plan = replace(PLAN, noise_multiplier=0.0, accountant=accountant)

    assert (0.0, math.inf) == (spent(plan, 0), spent(plan, 1))


def test_epsilon_by_closed_form() -> None:
    """Footgun 30: the ledger's epsilon is a number, and that of the exact formula where every batch is all the data."""
    model = net()
    made = PrivacyEngine(model, Privacy(epsilon=8.0, delta=1e-4), examples=32, batch=32, epochs=4, seed=0)
    for indices in made.batches():
        made.backward(losses_of(model), indices)
    said = made.ledger()
    mu = math.sqrt(said["steps"]) / said["noise_multiplier"]

    def delta(epsilon: float) -> float:
        """Of the Gaussian mechanism (Balle and Wang 2018, theorem 8)."""
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)

    # Opacus gives the upper end of an interval whose half width is 0.01.
    assert delta(said["epsilon"]) <= said["delta"] <= delta(said["epsilon"] - 0.021)


@pytest.mark.parametrize("method", METHODS)
def test_choice_does_not_look_at_data(job: Callable[..., Job], method: str) -> None:
    """Footgun 32: which values train, in the last phase too, follows from released values alone, not from the data."""
    found = []
    for examples in (8, 24):
        made = job(method, train=examples)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in made.backbone.trained().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        found.append(last_phase(made).backbone if method in PHASED else made.backbone)
    one, other = found

    assert one.trained().keys() == other.trained().keys()
    assert one.masks.keys() == other.masks.keys()
    assert all(torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())


def test_penalty_comes_after_the_noise(job: Callable[..., Job]) -> None:
    """Footgun 33: the L0 penalty is in no example's gradient or norm; its own gradient is added whole, unclipped."""
    bare, made = (
        private(job("diff_pruning", config={"gated_epochs": 1, "penalty": penalty}), clip=1e-6)
        for penalty in (0.0, 3.0)
    )
    one, other = (clipped_sum(j, j.train.batch(range(8), "cpu"), 1.0) for j in (bare, made))
    without, found = (released(j, list(range(8))) for j in (bare, made))
    trained = made.backbone.trained()
    penalty = made.method.penalty(made.backbone)
    assert penalty is not None
    expected = torch.autograd.grad(penalty, list(trained.values()), allow_unused=True, materialize_grads=True)

    assert torch.equal(one.norms, other.norms)
    assert any(value.any() for value in expected)
    for name, value in zip(trained, expected, strict=True):
        torch.testing.assert_close(found[name] - without[name], value, rtol=1e-4, atol=1e-7)


def test_ledger_covers_one_run(job: Callable[..., Job]) -> None:
    """Footgun 34: the ledger says that its epsilon is of one run and does not count a choice among runs."""
    made = job(privacy=PRIVACY)

    for said in ((fit(made).ledger or {}), engine(net()).ledger()):
        assert said["covers"].startswith("one run: choosing among runs by their scores")


class Transposed(nn.Module):
    """A linear layer on tokens [T, B, d], which has the batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 3] of x [B, 4], seen as tokens [B, 2, 2]."""
        return self.head(self.layer(x.view(-1, 2, 2).transpose(0, 1)).tanh().mean(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3)),
        Transposed,
    ],
    ids=["batch norm", "batch norm without values", "batch second"],
)
def test_mixed_examples_are_refused(make: Callable[[], nn.Module]) -> None:
    """A model in which examples meet, or with the batch on another axis than the first, is refused before a release."""
    model = seeded(make)
    made = engine(model)
    with pytest.raises(ValueError, match="mixes examples"):
        made.backward(losses_of(model), next(made.batches()))

    assert all(p.grad is None for p in model.parameters())
    assert 0 == made.ledger()["steps"]
