"""Tests of where draws come from: secret noise is normal and fresh, seeded streams repeat and never touch."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from scipy.stats import chisquare, kstest, norm
from torch import Tensor

from peft_dp import rng

CHANCE = 1e-6
"""A test of chance fails where a right source would give what was seen less often than this."""
COUNT = 500_000
"""Values a test looks at: of so many the variance is off by 1 %, five standard errors, less often than that."""
STREAMS: list[rng.Stream] = ["initialisation", "batches", "dropout", "gates", "noise"]


def one(source: rng.Source, like: Tensor) -> Tensor:
    """Return normal values for one tensor."""
    (found,) = rng.normal(source, [like], 1.0)
    return found


@pytest.fixture(scope="module")
def uniform() -> Tensor:
    """Values from the system's entropy."""
    return rng.Entropy().uniform(COUNT)


@pytest.fixture(scope="module")
def normal() -> Tensor:
    """Noise of standard deviation 1 from the system's entropy."""
    return rng.Entropy().normal(torch.Size([COUNT]), 1.0)


def uncorrelated(first: Tensor, second: Tensor) -> bool:
    """Whether the correlation of two rows of values is within chance."""
    found = torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    return 2 * float(norm.sf(abs(found) * math.sqrt(len(first)))) > CHANCE


def test_uniform(uniform: Tensor) -> None:
    """Secret uniform values lie within (0, 1), and as often in one part of it as in another."""
    assert uniform.dtype == torch.float64
    assert 0 < uniform.min()
    assert uniform.max() < 1
    assert kstest(uniform.numpy(), "uniform").pvalue > CHANCE


@pytest.mark.parametrize("bit", [1, 2, 20, 51])
def test_bits_of_uniform(uniform: Tensor, bit: int) -> None:
    """High bits and low ones are 1 half of the time."""
    ones = int((uniform * 2.0**bit).floor().remainder(2).sum())

    assert chisquare([ones, COUNT - ones]).pvalue > CHANCE


def test_normal(normal: Tensor) -> None:
    """Secret noise is normal by Kolmogorov and Smirnov, of variance 1 to 1 %, and reaches far out."""
    assert kstest(normal.numpy(), "norm").pvalue > CHANCE
    assert pytest.approx(1.0, abs=0.01) == normal.var().item()
    # Beyond four there should be 32; fewer than 9 or more than 66 happen less often than once in a million.
    assert 9 <= int((normal.abs() > 4).sum()) <= 66


@pytest.mark.parametrize("lag", [1, 2, 4, 8, COUNT // 2])
def test_normal_is_independent(normal: Tensor, lag: int) -> None:
    """Neither a value of the noise nor its size says anything about one further on."""
    for values in (normal, normal.square()):
        assert uncorrelated(values[:-lag], values[lag:])


@pytest.mark.parametrize("std", [1e-6, 0.25, 300.0])
def test_std(std: float) -> None:
    """The noise is as large as asked."""
    found = rng.Entropy().normal(torch.Size([100, 2000]), std)

    assert found.shape == (100, 2000)
    # Six standard errors of a standard deviation, 1 / sqrt(2 n).
    assert pytest.approx(std, rel=6 / math.sqrt(2 * found.numel())) == found.std().item()


def test_two_draws() -> None:
    """Two draws from the system's entropy share no value, under one state of the global generator."""
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        source = rng.Entropy()
        draws += [source.uniform(1000), source.normal(torch.Size([1000]), 1.0)]

    assert not any(torch.isin(first, second).any() for first, second in combinations(draws, 2))


def test_entropy_takes_no_seed() -> None:
    """A seed for secret noise is refused with its value and the remedy."""
    with pytest.raises(ValueError) as caught:
        rng.Entropy().manual_seed(7)

    said = "secure noise takes no seed, but 7 was given: leave the seed out, or take seeded noise"
    assert said == str(caught.value)


def test_streams() -> None:
    """The streams of one seed and of the next are all different and uncorrelated."""
    draws = [one(rng.generator(seed, stream), torch.empty(20_000)) for seed in (0, 1) for stream in STREAMS]

    assert all(uncorrelated(first, second) for first, second in combinations(draws, 2))


def test_one_stream_leaves_another() -> None:
    """Drawing from one stream does not move another."""
    expected = rng.chances(rng.generator(0, "batches"), 100)
    batches, noise = rng.generator(0, "batches"), rng.generator(0, "noise")
    one(noise, torch.empty(50))

    assert torch.equal(expected, rng.chances(batches, 100))


def test_seeded_draws() -> None:
    """A seeded generator repeats its draws, goes on from one to the next, and leaves the global one alone."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (
        [draw for _ in range(2) for draw in (rng.chances(source, 100), one(source, torch.empty(3, 7)).flatten())]
        for source in (rng.generator(0, "noise"), rng.generator(0, "noise"))
    )

    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[1], first[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("source", [rng.Entropy(), rng.generator(0, "noise")], ids=["entropy", "seeded"])
def test_like(source: rng.Source, dtype: torch.dtype) -> None:
    """Noise has the shape and the type of the tensor it is for."""
    like = torch.zeros(2, 0, 3, dtype=dtype), torch.zeros((), dtype=dtype), torch.zeros(5, 3, dtype=dtype).T
    for each in like:
        found = one(source, each)
        assert (each.shape, dtype) == (found.shape, found.dtype)
        assert found.ne(0).all()


@pytest.mark.parametrize("source", [rng.Entropy(), rng.generator(0, "batches")], ids=["entropy", "seeded"])
def test_chances(source: rng.Source) -> None:
    """Chances are uniform from either source."""
    assert kstest(rng.chances(source, 100_000).numpy(), "uniform").pvalue > CHANCE


@pytest.mark.parametrize("block", [1, 7, 64, 2**20])
def test_noise_is_one_flat_draw(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a value gets depends on its place in the order of all values, not on the tensor that it lies in."""
    monkeypatch.setattr(rng, "BLOCK", block)
    apart = [torch.empty(5, 4), torch.empty(()), torch.empty(0), torch.empty(3, 16)]
    first, other = (
        torch.cat([part.flatten() for part in rng.normal(rng.generator(0, "noise"), like, 2.0)])
        for like in (apart, [torch.empty(69)])
    )

    assert torch.equal(first, other)
    assert len(first.unique()) == 69


def test_noise_fills_large_tensors() -> None:
    """A tensor of several blocks has no value twice, and the standard deviation that was asked for."""
    values = torch.cat([*rng.normal(rng.generator(0, "noise"), [torch.empty(2 * rng.BLOCK + 3), torch.empty(9)], 2.0)])

    assert values.std().item() == pytest.approx(2.0, rel=5e-3)
    assert not torch.equal(values[: rng.BLOCK], values[rng.BLOCK : 2 * rng.BLOCK])
    assert values.isfinite().all()
