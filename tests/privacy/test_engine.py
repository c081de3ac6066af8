"""Tests of the private step for loops of one's own: what it releases, when it refuses, what it counts."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peft_dp
from peft_dp import Privacy, PrivacyEngine, rng
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.plan import Plan, spent

PRIVACY = Privacy(epsilon=1.0, delta=1e-3, clip=0.5, accountant="rdp")
SEED = 3


@dataclass(frozen=True)
class Case:
    """A model and 24 examples to train it on.

    Attributes:
        losses: Example indices -> loss of each [B].
    """

    model: nn.Module
    losses: Callable[[Sequence[int]], Tensor]

    def trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of what trains."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def gradients(self) -> dict[str, Tensor]:
        """Name -> copy of what is set as gradient."""
        return {name: p.grad.clone() for name, p in self.trained().items() if p.grad is not None}

    def loop(self, indices: list[int]) -> Tensor:
        """Gradients [B, P] of examples passed one at a time."""
        rows = []
        for index in indices:
            found = torch.autograd.grad(self.losses([index]).sum(), list(self.trained().values()))
            rows.append(flat(found))
        return torch.stack(rows) if rows else torch.zeros(1, sum(p.numel() for p in self.trained().values()))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors in a row."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def regression(model: nn.Module) -> Case:
    """Square errors of a model on vectors of five."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(24, generator=generator, dtype=torch.float64)
    dtype = next(model.parameters()).dtype
    return Case(model, lambda i: (model(inputs[i].to(dtype)).flatten() - targets[i].to(dtype)).square())


def small() -> Case:
    """A hand-made model in float64: two linear layers."""
    torch.manual_seed(0)
    return regression(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double())


def bert() -> Case:
    """A tiny BERT with LoRA in float64, on sentences of three to eight tokens."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AutoConfig.for_model("bert", vocab_size=50, num_labels=3, **shape, **dropout)
    model = AutoModelForSequenceClassification.from_config(config).double().train()
    trained = peft_dp.attach(model, "lora", rank=2, alpha=4)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ids, labels, lengths = torch.randint(5, 50, (24, 8)), torch.randint(0, 3, (24,)), torch.randint(3, 9, (24,))
    mask = (torch.arange(8) < lengths[:, None]).long()

    def losses(indices: Sequence[int]) -> Tensor:
        chosen = list(indices)
        logits = model(input_ids=ids[chosen], attention_mask=mask[chosen]).logits
        return functional.cross_entropy(logits, labels[chosen], reduction="none")

    return Case(model, losses)


def engine(model: nn.Module, **options: Any) -> PrivacyEngine:
    """Six steps over 24 examples, eight at a time."""
    given: dict[str, Any] = {"privacy": PRIVACY, "examples": 24, "batch": 8, "epochs": 2, "seed": SEED} | options
    return PrivacyEngine(model, **given)


def plan(**fields: Any) -> Plan:
    """A plan over 24 examples without noise."""
    base: dict[str, Any] = {
        "examples": 24,
        "batch": 8,
        "steps": 6,
        "steps_per_epoch": 3,
        "sampling": "poisson",
        "sample_rate": 1 / 3,
    }
    return Plan(**(base | {"clip": 0.5, "delta": 1e-3, "accountant": "rdp"} | fields))


@pytest.fixture(params=[small, bert])
def case(request: pytest.FixtureRequest) -> Case:
    """The hand-made model and the tiny BERT in turn."""
    made: Case = request.param()
    return made


@pytest.mark.parametrize("clipping", ["abadi", "automatic"])
@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e3])
def test_sum(case: Case, clip: float, clipping: str) -> None:
    """Without noise the sum is that of the loop's gradients, each clipped, however the batch is cut."""
    indices = [2, 3, 5, 7, 11, 13]
    each = case.loop(indices)
    norms = each.norm(dim=1)
    factors = clip / (norms + 0.01) if clipping == "automatic" else (clip / norms).clamp(max=1)
    for cuts in ([indices], [indices[:1], indices[1:]], [[i] for i in indices]):
        found = noised_sum(case.model, case.losses, cuts, plan(clip=clip, clipping=clipping), torch.Generator())
        assert list(case.trained()) == list(found)
        torch.testing.assert_close(flat(list(found.values())), factors @ each, rtol=1e-9, atol=1e-12 * clip)


def test_gradient(case: Case) -> None:
    """Each step sets (clipped sum of the loop + the seed's noise) / expected batch, an optimiser's step between."""
    noise = rng.generator(SEED, "noise")
    trained = case.trained()
    optimiser = torch.optim.SGD(trained.values(), lr=0.1)
    made = engine(case.model)
    std = made.ledger()["noise_multiplier"] * 0.5
    for indices in made.batches():
        each = case.loop(indices)
        expected = (0.5 / each.norm(dim=1)).clamp(max=1) @ each
        expected += flat([*rng.normal(noise, [*trained.values()], std)])
        made.backward(case.losses, indices)

        torch.testing.assert_close(flat(list(case.gradients().values())), expected / 8, rtol=0, atol=1e-12)
        optimiser.step()


@pytest.mark.parametrize("physical", [1, 3])
def test_physical_size(case: Case, physical: int) -> None:
    """How many examples pass at once changes the cut and nothing else."""
    found: list[Tensor] = []
    sizes: list[list[int]] = []
    for size in (physical, 32):
        made = engine(case.model, physical=size)

        def losses(indices: list[int]) -> Tensor:
            sizes[-1].append(len(indices))
            return case.losses(indices)

        for indices in made.batches():
            sizes.append([])
            made.backward(losses, indices)
            found.append(flat(list(case.gradients().values())))
    for cut, whole in zip(found[:6], found[6:], strict=True):
        torch.testing.assert_close(cut, whole, rtol=0, atol=1e-12)
    # The check before steps 1, 2 and 4 looks at two examples.
    assert all(max(sizes[at]) <= physical for at in (2, 4, 5))
    assert max(sum(each) for each in sizes[7:]) > physical


def steps(case: Case, seed: int | None, batch: int = 8) -> list[Tensor]:
    """Gradients of the steps, nothing updated."""
    made, found = engine(case.model, seed=seed, batch=batch), []
    for indices in made.batches():
        made.backward(case.losses, indices)
        found.append(flat(list(case.gradients().values())))
    return found


def test_seed() -> None:
    """A seed repeats every step to the bit, no step repeats another, and another seed is another run."""
    case = small()
    first, second, other = (steps(case, seed) for seed in (1, 1, 2))

    assert all(map(torch.equal, first, second))
    assert not any(map(torch.equal, first, other))
    assert not any(torch.equal(one, another) for i, one in enumerate(first) for another in first[:i])


def test_fused_optimiser() -> None:
    """A fused optimiser moves a parameter that lies transposed in memory by each value's own gradient."""
    moved = []
    for fused in (False, True):
        case = small()
        first: Any = case.model.get_submodule("0")
        first.weight = nn.Parameter(first.weight.detach().t().contiguous().t())
        private = engine(case.model)
        optimiser = torch.optim.SGD(case.model.parameters(), lr=0.5, fused=fused)
        for indices in private.batches():
            private.backward(case.losses, indices)
            optimiser.step()
        moved.append(flat([*case.trained().values()]).detach())

    torch.testing.assert_close(moved[0], moved[1], rtol=1e-12, atol=0)


def test_no_seed() -> None:
    """Without a seed two engines differ in their batches, and in the noise where both draw everyone."""
    case, noised, drawn = small(), [], []
    for _ in range(2):
        torch.manual_seed(0)
        noised.append(steps(case, None, batch=24))
        drawn.append(next(engine(case.model, seed=None).batches()))

    assert not any(map(torch.equal, *noised))
    assert drawn[0] != drawn[1]


def test_noise_of_entropy() -> None:
    """Without a seed the noise has the standard deviation that the ledger says."""
    model = nn.Linear(400, 400)
    made = engine(model, privacy=replace(PRIVACY, delta=1e-7), seed=None, examples=10**6, batch=1, epochs=1)
    # Nobody is drawn at this rate, or one of 1,000,000 whose gradient is at most 0.5 long.
    made.backward(lambda i: model(torch.zeros(len(i), 400)).square().sum(1), next(made.batches()))
    std = made.ledger()["noise_multiplier"] * 0.5
    assert model.weight.grad is not None

    # Six standard errors of a standard deviation, 1 / sqrt(2 n).
    assert pytest.approx(std, rel=6 / (2 * 160_000) ** 0.5) == model.weight.grad.std().item()


def test_empty_batches() -> None:
    """A batch that draws nobody, the first too, is a step with noise on every parameter, and steps are as declared."""
    case = small()
    made = engine(case.model, batch=1, epochs=1, seed=9)
    batches = []
    for indices in made.batches():
        batches.append(indices)
        made.backward(case.losses, indices)
        if not indices:
            assert all((gradient != 0).all() for gradient in case.gradients().values())
            assert case.gradients().keys() == case.trained().keys()

    assert [] == batches[0]
    assert 24 == len(batches) == made.steps == made.ledger()["steps"]


def test_ledger() -> None:
    """The ledger holds what the steps made so far have spent, at the end at most the budget."""
    case = small()
    made = engine(case.model, physical=5)
    same = plan(noise_multiplier=made.ledger()["noise_multiplier"])
    for done, indices in enumerate(made.batches()):
        assert (done, spent(same, done)) == (made.ledger()["steps"], made.ledger()["epsilon"])
        made.backward(case.losses, indices)
    found = made.ledger()

    assert (6, spent(same, 6)) == (found["steps"], found["epsilon"])
    assert 0.98 <= found["epsilon"] <= 1.0
    assert (8, "5 examples", 0.5, 24) == tuple(
        found[name] for name in ("logical_batch", "physical_batch", "clip", "examples")
    )
    assert "seeded" in found["noise"]
    assert "secure" == engine(case.model, seed=None).ledger()["noise"]


def test_exception() -> None:
    """Where losses raise within a batch no gradient is set and no step counted, and nothing of it is in a new try."""
    case = small()
    made = engine(case.model, physical=2)
    calls = []

    def losses(indices: list[int]) -> Tensor:
        calls.append(indices)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("too large")
        return case.losses(indices)

    indices = next(made.batches())
    with pytest.raises(torch.OutOfMemoryError):
        made.backward(losses, indices)

    assert not case.gradients()
    assert (0, 0.0) == (made.ledger()["steps"], made.ledger()["epsilon"])
    made.backward(case.losses, indices)
    expected = engine(case.model)
    whole = case.gradients()
    expected.backward(case.losses, next(expected.batches()))
    torch.testing.assert_close(whole, case.gradients(), rtol=0, atol=1e-12)


def test_lost_example() -> None:
    """An example without a finite gradient adds nothing; the step is made and counted."""
    case = small()
    made = engine(case.model)
    indices = next(made.batches())
    made.backward(lambda i: case.losses(i) / torch.tensor([index != indices[2] for index in i]), indices)
    noise = rng.generator(SEED, "noise")
    each = case.loop([index for index in indices if index != indices[2]])
    expected = (0.5 / each.norm(dim=1)).clamp(max=1) @ each
    std = made.ledger()["noise_multiplier"] * 0.5
    expected += flat([*rng.normal(noise, [*case.trained().values()], std)])

    torch.testing.assert_close(flat(list(case.gradients().values())), expected / 8, rtol=0, atol=1e-12)
    assert 1 == made.ledger()["steps"]


def test_unfreezing() -> None:
    """A layer unfrozen in the middle is clipped together with the rest, and noised; before it has no gradient."""
    case = small()
    lower = case.model.get_submodule("0")
    lower.requires_grad_(False)
    made = engine(case.model)
    noise = rng.generator(SEED, "noise")
    std = made.ledger()["noise_multiplier"] * 0.5
    for step, indices in enumerate(made.batches()):
        if step == 3:
            assert lower.weight.grad is None
            lower.requires_grad_(True)
        made.backward(case.losses, indices)
        each = case.loop(indices)
        expected = (0.5 / each.norm(dim=1)).clamp(max=1) @ each
        expected += flat([*rng.normal(noise, [*case.trained().values()], std)])
        torch.testing.assert_close(flat(list(case.gradients().values())), expected / 8, rtol=0, atol=1e-12)

    assert 6 == made.ledger()["steps"]
    assert len(case.gradients()) == len(list(case.model.parameters()))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_automatic_clipping(scale: float) -> None:
    """Under automatic clipping an example adds C g / (|g| + 0.01), which is shorter than C."""
    case = small()
    made = plan(clipping="automatic")
    for index in range(24):
        (each,) = case.loop([index]) * scale
        found = noised_sum(case.model, lambda i: case.losses(i) * scale, [[index]], made, torch.Generator())
        added = flat(list(found.values()))
        torch.testing.assert_close(added, 0.5 * each / (each.norm() + 0.01), rtol=1e-9, atol=1e-15)
        assert added.norm() < 0.5


RULE = "call it once for each batch that batches() gives, empty ones too"


def test_batch_left_out() -> None:
    """The next batch is refused while the last has not been passed to backward."""
    batches = engine(small().model).batches()
    next(batches)
    with pytest.raises(ValueError) as caught:
        next(batches)

    assert f"batch 1 was not passed to backward: {RULE}" == str(caught.value)


def test_other_examples() -> None:
    """Examples that were not drawn are refused; there are no more steps than declared, however often one breaks off."""
    case = small()
    made = engine(case.model)
    with pytest.raises(ValueError) as caught:
        made.backward(case.losses, [index + 1 for index in next(made.batches())])
    for left in (1, 2, 9):
        made = engine(case.model)
        for _ in range(3):
            for done, indices in enumerate(made.batches(), 1):
                made.backward(case.losses, indices)
                if done == left:
                    break

    assert "backward was given other examples than were drawn" in str(caught.value)
    assert made.steps == made.ledger()["steps"]
    assert made.ledger()["epsilon"] <= PRIVACY.epsilon


@pytest.mark.parametrize("place", [0, 1])
def test_check_is_blind_to_values(place: int) -> None:
    """An example that is not finite does not stop the run at its first step either, wherever it stands."""
    case = small()
    made = engine(case.model)
    indices = next(made.batches())
    made.backward(lambda i: case.losses(i) / torch.tensor([index != indices[place] for index in i]), indices)

    assert 1 == made.ledger()["steps"]
    assert flat(list(case.gradients().values())).isfinite().all()


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    """Embeddings, layer norms and linear layers are exact with no, one and two axes between example and value."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 2)).double()
    ids = torch.randint(9, shape)
    case = Case(model, lambda i: model(ids[i]).square().reshape(len(i), -1).sum(1))
    found = noised_sum(model, case.losses, [list(range(4))], plan(clip=0.5), torch.Generator())
    each = case.loop(list(range(4)))

    torch.testing.assert_close(flat(list(found.values())), (0.5 / each.norm(dim=1)).clamp(max=1.0) @ each)


def test_backward_without_batch() -> None:
    """A step without a batch is refused, and so is a second one on the same batch; neither counts."""
    case = small()
    made = engine(case.model)
    with pytest.raises(ValueError) as first:
        made.backward(case.losses, [0, 1])
    indices = next(made.batches())
    made.backward(case.losses, indices)
    before = case.gradients()
    with pytest.raises(ValueError) as second:
        made.backward(case.losses, indices)

    assert [f"backward was called without a new batch: {RULE}"] * 2 == [str(first.value), str(second.value)]
    assert 1 == made.ledger()["steps"]
    assert all(torch.equal(before[name], gradient) for name, gradient in case.gradients().items())


class Convolution(nn.Module):
    """A convolution, for which there is no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 2, 3)
        self.head = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [B, 1] of inputs [B, 5]."""
        found: Tensor = self.head(self.convolution(inputs[:, None]).flatten(1))
        return found


class Repeated(nn.Module):
    """A layer called a number of times, and a head."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.layer = nn.Linear(5, 5)
        self.head = nn.Linear(5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [B, 1] of inputs [B, 5]."""
        for _ in range(self.times):
            inputs = self.layer(inputs)
        found: Tensor = self.head(inputs)
        return found


class Beside(nn.Module):
    """A layer whose weight is used once more, without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1] of x [B, 5]."""
        found: Tensor = self.head(functional.linear(self.layer(x).tanh(), self.layer.weight))
        return found


class Bounded(nn.Module):
    """An embedding that shortens what is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, max_norm=0.1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1] of x [B, 5]."""
        found: Tensor = self.head(self.table(x.abs().long().clamp(max=8)).mean(1))
        return found


def normalised(place: int, *, trained: bool) -> nn.Module:
    """Two layers and, at that place, a batch norm."""
    layers = [nn.Linear(5, 5), nn.Linear(5, 1)]
    layers.insert(place, nn.BatchNorm1d(5).requires_grad_(trained))  # type: ignore[arg-type]
    return nn.Sequential(*layers)


class Added(nn.Module):
    """Adds in place to what a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.top = nn.Linear(5, 7), nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 1]."""
        y = self.layer(x)
        y += 1
        found: Tensor = self.top(y)
        return found


CHANGED = "the output of a module that trains is changed in place, so its gradient cannot be told: "
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "trained batch norm": (
        lambda: normalised(1, trained=True),
        "1 is a batch norm, which mixes examples: call its eval(), or exchange it",
    ),
    "frozen batch norm below what trains": (
        lambda: normalised(0, trained=False),
        "0 is a batch norm, which mixes examples: call its eval(), or exchange it",
    ),
    "used beside its call": (Beside, "layer.weight is used beside the call of its module, which its rule does not see"),
    "in place": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 1)),
        f"{CHANGED}set inplace=False on 1",
    ),
    "in place, an input kept": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Hardtanh(inplace=True), nn.Linear(7, 1)),
        f"{CHANGED}set inplace=False on 2",
    ),
    "in place, by hand": (Added, f"{CHANGED}write x = x + y in place of x += y"),
    "max_norm": (Bounded, "table has a max_norm, so a look-up changes its weights without noise: leave it out"),
    "nothing trains": (lambda: nn.Linear(5, 1).requires_grad_(False), "the losses depend on nothing that trains: let"),
    "convolution": (
        Convolution,
        "convolution.weight trains, but there is no rule for Conv1d: freeze it, or let the module compute with a "
        "leading example axis, [B, ...] for [...], and say so by `example_axis = True`",
    ),
    "called twice": (lambda: Repeated(2), "layer is called twice in one forward pass, which its rule does not cover"),
    "not called": (lambda: Repeated(0), "layer has trained parameters, but is not called: freeze it, or call it"),
    "half": (
        lambda: nn.Linear(5, 1).half(),
        "weight is torch.float16, too coarse for norms and noise: train it in float32",
    ),
    "bfloat": (
        lambda: nn.Linear(5, 1).bfloat16(),
        "weight is torch.bfloat16, too coarse for norms and noise: train it in floa",
    ),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_refused_model(make: Callable[[], nn.Module], said: str) -> None:
    """A model whose examples' gradients cannot be told apart or noised is refused at its first step by its place."""
    case = regression(make())
    made = engine(case.model)
    with pytest.raises(ValueError) as caught:
        made.backward(case.losses, next(made.batches()))

    assert str(caught.value).startswith(said)
    assert not case.gradients()
    assert 0 == made.ledger()["steps"]


def test_batch_norm_in_eval() -> None:
    """A frozen batch norm in evaluation mode does not mix examples and is let through."""
    model = normalised(1, trained=False)
    model[1].eval()  # type: ignore[index]
    case = regression(model)
    made = engine(model)
    made.backward(case.losses, next(made.batches()))

    assert case.gradients().keys() == case.trained().keys()


def test_batch_norm_back_in_training() -> None:
    """A batch norm let through in evaluation mode is refused once the model is put back into training mode."""
    model = normalised(1, trained=False)
    model[1].eval()  # type: ignore[index]
    case = regression(model)
    made = engine(model)
    batches = made.batches()
    made.backward(case.losses, next(batches))
    model.train()
    held = [buffer.clone() for buffer in model.buffers()]
    with pytest.raises(ValueError, match="1 is a batch norm, which mixes examples: call its eval"):
        made.backward(case.losses, next(batches))

    assert 1 == made.ledger()["steps"]
    assert all(torch.equal(buffer, old) for buffer, old in zip(model.buffers(), held, strict=True))


@pytest.mark.parametrize(
    ("reduce", "shape"), [(torch.mean, "()"), (lambda losses: losses[:, None], "(5, 1)")], ids=["mean", "column"]
)
def test_not_one_loss_each(reduce: Callable[[Tensor], Tensor], shape: str) -> None:
    """Losses that are not one for each example are refused with their shape."""
    case = small()
    with pytest.raises(ValueError) as caught:
        noised_sum(case.model, lambda i: reduce(case.losses(i)), [list(range(5))], plan(), torch.Generator())

    assert f"losses have shape {shape}, but must be one for each of 5 examples" == str(caught.value)


def test_batch_larger_than_data() -> None:
    """A batch larger than the data is refused with both numbers and the remedy."""
    with pytest.raises(ValueError, match="batch 25 is larger than the 24 training examples: choose a batch of at mos"):
        engine(small().model, batch=25)


def test_shuffling() -> None:
    """Shuffled batches, whose epsilon would be no guarantee, are refused with the remedy."""
    privacy = Privacy(epsilon=1.0, delta=1e-3, sampling="shuffle")
    with pytest.raises(ValueError, match="sampling 'shuffle' has no accountant here: take 'poisson'"):
        engine(small().model, privacy=privacy)


@pytest.mark.parametrize("name", ["examples", "batch", "epochs", "physical"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "2", None])
def test_no_count(name: str, value: object) -> None:
    """A count that is no whole number, or none at all, is refused by its name: noise is found for what is then made."""
    with pytest.raises(
        ValueError, match=f"^{name} must be a whole number of at least 1, not {re.escape(repr(value))}$"
    ):
        engine(small().model, **{name: value})


def test_counts_of_numpy() -> None:
    """Whole numbers of numpy are whole numbers."""
    assert 6 == engine(small().model, examples=np.int64(24), batch=np.int32(8), epochs=np.int64(2)).steps


@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_mixing_from_a_later_step_on(start: int) -> None:
    """Losses that begin to mix examples at some step are refused at the next step of 1, 2, 4, 8, ... at the latest."""
    case = small()
    made = engine(case.model, epochs=4)
    step = 0

    def losses(indices: Sequence[int]) -> Tensor:
        found = case.losses(indices)
        return found if step < start else found + found.mean()

    mixed = False
    for indices in made.batches():
        step += 1
        try:
            made.backward(losses, indices)
        except ValueError as error:
            mixed = "the loss of one example has a gradient at another" in str(error)
            break

    assert mixed
    assert min(power for power in (1, 2, 4, 8) if power >= start) == step


def test_checks_are_few() -> None:
    """Looking again at the losses takes a few passes of two examples, not one at each step."""
    case, passes = small(), []
    made = engine(case.model, epochs=30, physical=24)
    for indices in made.batches():
        made.backward(lambda i: passes.append(len(i)) or case.losses(i), indices)  # type: ignore[func-returns-value]

    assert made.steps == 90
    assert len(passes) <= made.steps + 3 * 7


def frozen_first() -> tuple[Case, PrivacyEngine, list[int]]:
    """A model whose first layer is frozen, its engine and a first batch."""
    case = small()
    case.model[0].requires_grad_(False)  # type: ignore[index]
    made = engine(case.model)
    return case, made, next(batch for batch in made.batches() if batch)


def test_second_optimiser() -> None:
    """An optimiser that would update the model by a gradient without noise is stopped before it does."""
    case, made, indices = frozen_first()
    made.backward(case.losses, indices)
    first = case.model[0]  # type: ignore[index]
    first.requires_grad_(True)
    first.weight.grad = torch.ones_like(first.weight)
    before = first.weight.detach().clone()
    with pytest.raises(ValueError, match=r"of 0\.weight is not the one that backward set, so it has no"):
        torch.optim.SGD(first.parameters(), lr=1.0).step()

    assert torch.equal(before, first.weight)


def test_plain_backward() -> None:
    """So is one that is to use what an ordinary backward pass made."""
    case, made, indices = frozen_first()
    made.backward(case.losses, indices)
    case.model.zero_grad()
    case.losses(indices).sum().backward()
    with pytest.raises(ValueError, match=r"2\.weight is not the one that backward set"):
        torch.optim.SGD(case.model.parameters(), lr=1.0).step()


def test_parameter_added_later() -> None:
    """A parameter that joins later is noised from the next step on; frozen again, it keeps no gradient to move by."""
    case = small()
    first = case.model[0]  # type: ignore[index]
    first.requires_grad_(False)
    made = engine(case.model)
    optimiser = torch.optim.SGD(case.model.parameters(), lr=1.0, weight_decay=0.1)
    moved = []
    for step, indices in enumerate(made.batches()):
        first.requires_grad_(step in (1, 2))
        before = first.weight.detach().clone()
        made.backward(case.losses, indices)
        optimiser.step()
        moved.append(not torch.equal(before, first.weight))

    assert moved == [False, True, True, False, False, False]


def test_optimisers_of_others() -> None:
    """Gradients may be changed in place; other models, and this one once its engine is gone, are left alone."""
    case, made, indices = frozen_first()
    made.backward(case.losses, indices)
    torch.nn.utils.clip_grad_norm_(case.model.parameters(), 0.1)
    torch.optim.SGD(case.model.parameters(), lr=1.0).step()
    for model in (small().model, case.model):
        if model is case.model:
            del made
            gc.collect()
        for parameter in model.parameters():
            parameter.requires_grad_(True).grad = torch.ones_like(parameter)
        torch.optim.SGD(model.parameters(), lr=1.0).step()


def test_gradient_checkpointing() -> None:
    """Gradient checkpointing is refused with what to do."""
    model = bert().model
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="gradient checkpointing runs modules twice per pass"):
        engine(model)
