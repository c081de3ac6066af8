"""Tests of the private step for loops of one's own: what it releases, when it refuses, what it counts."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from peft_dp import Privacy, rng
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.plan import spent

from .engine_cases import PRIVACY, SEED, Case, bert, engine, flat, plan, small


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
