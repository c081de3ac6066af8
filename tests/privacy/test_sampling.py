"""Which examples a step sees: chances under Poisson sampling, coverage under shuffling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import binomtest, chisquare, norm

from peft_dp import rng
from peft_dp.privacy import sampling
from peft_dp.privacy.plan import Plan, ledger, private_plan
from peft_dp.spec import Privacy

CHANCE = 1e-6
"""A test of chance fails where a right sampler would give what was seen less often than this."""


def plan(**fields: Any) -> Plan:
    """A plan over 50 examples, 20 an epoch in batches of 8."""
    base: dict[str, Any] = {
        "examples": 50,
        "batch": 8,
        "steps": 6,
        "steps_per_epoch": 6,
        "sampling": "poisson",
        "sample_rate": 8 / 50,
    }
    return Plan(**(base | fields))


def epoch(made: Plan, seed: int = 0) -> list[list[int]]:
    """The batches of one epoch."""
    return list(sampling.epoch(made, rng.generator(seed, "batches")))


@pytest.fixture(scope="module", params=[rng.generator(0, "batches"), rng.Entropy()], ids=["seeded", "entropy"])
def drawn(request: pytest.FixtureRequest) -> torch.Tensor:
    """Whether an example is in a batch, of many Poisson batches [steps, examples], from either source."""
    batches = sampling.epoch(plan(steps_per_epoch=4000), request.param)
    found = torch.zeros(4000, 50, dtype=torch.bool)
    for row, batch in zip(found, batches, strict=True):
        row[batch] = True
    return found


def test_poisson_rate(drawn: torch.Tensor) -> None:
    """An example is in a batch as often as the sample rate says."""
    assert binomtest(int(drawn.sum()), drawn.numel(), 8 / 50).pvalue > CHANCE


@pytest.mark.parametrize("source", [rng.generator(0, "batches"), rng.Entropy()], ids=["seeded", "entropy"])
def test_accountant_rate(source: rng.Source) -> None:
    """Over 4,000 steps examples are drawn as often as the rate that the ledger accounts for, and not 2 % oftener."""
    budget = Privacy(epsilon=8.0, delta=1e-4, accountant="rdp")
    made = private_plan(budget, examples=1000, batch=50, epochs=200)
    accounted = ledger(made, 0, seeded=False)["sample_rate"]
    counts = torch.tensor([len(batch) for _ in range(200) for batch in sampling.epoch(made, source)])
    drawn = int(counts.sum())

    assert 4000 == len(counts) == made.steps
    assert binomtest(drawn, 1000 * 4000, accounted).pvalue > CHANCE
    assert binomtest(drawn, 1000 * 4000, 1.02 * accounted).pvalue < CHANCE


def test_poisson_every_example(drawn: torch.Tensor) -> None:
    """No example is drawn more often than another."""
    assert chisquare(drawn.sum(0).numpy()).pvalue > CHANCE


def test_poisson_batch_sizes(drawn: torch.Tensor) -> None:
    """Batch sizes vary as a binomial's do; they are not the expected batch."""
    sizes = drawn.sum(1).double()
    variance = 50 * 8 / 50 * (1 - 8 / 50)
    # The variance of a sample variance is about 2 sigma^4 / n.
    gap = (sizes.var().item() - variance) / (variance * math.sqrt(2 / len(sizes)))

    assert 2 * norm.sf(abs(gap)) > CHANCE


def test_poisson_independent(drawn: torch.Tensor) -> None:
    """That an example was drawn says nothing about its neighbour, nor about the next step."""
    rate = (8 / 50) ** 2
    for both in (drawn[:, :-1] & drawn[:, 1:], drawn[:-1] & drawn[1:]):
        # Pairs share an example, so their count spreads a little more than a binomial; twice is ample.
        spread = 2 * math.sqrt(rate * (1 - rate) / both.numel())

        assert abs(both.double().mean().item() - rate) < norm.isf(CHANCE) * spread


def test_poisson_empty() -> None:
    """A step that draws no example is still a step."""
    assert [[], [], []] == epoch(plan(sample_rate=0.0, steps_per_epoch=3))


def test_poisson_everyone() -> None:
    """At a rate of 1 each batch is the whole data."""
    assert [list(range(50))] * 2 == epoch(plan(sample_rate=1.0, steps_per_epoch=2))


def test_global_generator() -> None:
    """The global generator's state has no part in the batches, and is left alone."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = epoch(plan())

    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert first == epoch(plan())


def test_shuffle_covers_all() -> None:
    """Without privacy an epoch has every example once, in batches of the asked size but the last."""
    batches = epoch(plan(sampling="shuffle", steps_per_epoch=7))

    assert [8] * 6 + [2] == [len(batch) for batch in batches]
    assert list(range(50)) == sorted(index for batch in batches for index in batch)


def test_shuffle_drops_the_rest() -> None:
    """With privacy every batch is whole: an epoch has no example twice and leaves the rest out."""
    batches = epoch(plan(sampling="shuffle", steps_per_epoch=6, clip=1.0))
    flat = [index for batch in batches for index in batch]

    assert [8] * 6 == [len(batch) for batch in batches]
    assert len(set(flat)) == len(flat) == 48


def test_shuffle_every_place() -> None:
    """An example is as likely in the first batch as any other."""
    generator = rng.generator(0, "batches")
    made = plan(sampling="shuffle", steps_per_epoch=7)
    counts = torch.zeros(50)
    for _ in range(2000):
        counts[next(iter(sampling.epoch(made, generator)))] += 1

    assert chisquare(counts.numpy()).pvalue > CHANCE


@pytest.mark.parametrize("kind", ["poisson", "shuffle"])
def test_seed(kind: str) -> None:
    """The stream determines the batches; another seed and another epoch have others."""
    made = plan(sampling=kind)
    generator = rng.generator(0, "batches")
    first, second = (list(sampling.epoch(made, generator)) for _ in range(2))

    assert first == epoch(made)
    assert first != second
    assert first != epoch(made, seed=1)
