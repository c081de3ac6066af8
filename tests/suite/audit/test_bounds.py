"""Bounds on epsilon from scores: against exact cases and another implementation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import pytest
from scipy.special import ndtr
from scipy.stats import binom

from peft_dp.privacy.plan import private_plan, spent
from peft_dp.spec import Privacy
from peft_dp.suite.audit import attack, bounds
from peft_dp.suite.audit.bounds import gaussian_bound, gaussian_epsilon, one_run_bound

# What comes from the two functions for this in google-deepmind/jax_privacy, attack.py, at significance 0.05, delta
# 1e-5. The last is of guesses at random.
PEERS = [
    ((100, 100, 100), 8.2162, 3.4902),
    ((8000, 8000, 8000), 15.7543, 7.6680),
    ((8000, 8000, 4800), 0.6189, 0.3675),
    ((8000, 400, 280), 0.8481, 0.6580),
    ((8000, 80, 70), 1.5889, 1.3272),
    ((2000, 200, 150), 1.1742, 0.8185),
    ((8000, 400, 200), 0.0, 0.0),
]


@pytest.mark.parametrize(("counts", "gaussian", "one_run"), PEERS, ids=str)
def test_bounds_equal_a_peer(counts: tuple[int, int, int], gaussian: float, one_run: float) -> None:
    """Both bounds are those of another implementation."""
    assert gaussian_bound(*counts) == pytest.approx(gaussian, abs=1e-3)
    assert one_run_bound(*counts) == pytest.approx(one_run, abs=1e-3)


@pytest.mark.parametrize("guesses", [10, 100, 1000])
def test_pure_bound_is_exact(guesses: int) -> None:
    """At delta 0 the one-run bound of m right guesses is the epsilon at which m coins all come up with chance 5 %."""
    chance = 0.05 ** (1 / guesses)

    assert one_run_bound(2 * guesses, guesses, guesses, delta=0.0) == pytest.approx(
        math.log(chance / (1 - chance)), abs=2e-4
    )


@pytest.mark.parametrize("bound", [gaussian_bound, one_run_bound])
def test_bounds_grow(bound: Callable[[int, int, int], float]) -> None:
    """A bound grows with the right guesses, and with the canaries where all are guessed."""
    assert [0.0, 0.0] == [bound(1000, 0, 0), bound(1000, 1000, 500)]
    by_right = [bound(1000, 1000, right) for right in range(500, 1001, 50)]
    by_canaries = [bound(m, m, m) for m in (100, 300, 1000, 3000)]

    assert by_right == sorted(by_right)
    assert by_right[-1] > by_right[-2] > by_right[2] > 0
    assert by_canaries == sorted(set(by_canaries))


@pytest.mark.parametrize(("guesses", "right"), [(100, 100), (1000, 1000), (1000, 700), (1000, 550)])
def test_bounds_are_bounds(guesses: int, right: int) -> None:
    """Neither bound is above the mechanism under which so many right guesses still have a chance of 5 %."""
    mus = numpy.arange(0, 20, 0.001)
    exact = gaussian_epsilon(float(mus[binom.sf(right - 1, guesses, ndtr(mus / 2)) <= 0.05].max()), bounds.DELTA)

    assert 0 < gaussian_bound(guesses, guesses, right) <= exact
    assert 0 < one_run_bound(guesses, guesses, right) <= exact


@pytest.mark.parametrize("delta", [1e-5, 1e-2])
@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 8.0])
def test_gaussian_epsilon(mu: float, delta: float) -> None:
    """At that epsilon the privacy profile of two unit normals mu apart is delta; 0 and infinity map to themselves."""
    epsilon = gaussian_epsilon(mu, delta)
    profile = ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu)

    assert profile == pytest.approx(delta, rel=1e-6)
    assert [0.0, 0.0, math.inf] == [gaussian_epsilon(value, delta) for value in (-1.0, 0.0, math.inf)]


def test_gaussian_epsilon_of_little() -> None:
    """A distance whose total variation is below delta has epsilon 0."""
    assert gaussian_epsilon(0.01, delta=0.01) == 0.0


@pytest.mark.parametrize(
    ("canaries", "noise", "published", "caught"),
    [(500, 1.0, 0.22, 0), (2000, 1.0, 0.87, 0), (10_000, 1.0, 1.15, 0), (10_000, 0.5, None, 12), (500, 0.25, None, 12)],
)
def test_power(canaries: int, noise: float, published: float | None, caught: int) -> None:
    """None of twelve draws at mu 0.5 is above the claim; at mu 1 all are with 10,000 canaries, at mu 2 with 500."""
    mu, found = 0.5 / noise, []
    for seed in range(12):
        draw = numpy.random.default_rng(seed)
        inside = draw.random(canaries) < 0.5
        found.append(bounds.lower_bound(draw.normal(size=canaries) + mu * inside, inside, gaussian_bound))

    assert sum(bound > 1.99 for bound in found) == caught
    if published is not None:
        assert numpy.median(found) == pytest.approx(published, abs=0.3)
        assert bounds.power(canaries, mu) == pytest.approx(numpy.median(found), abs=0.3)


def test_distance() -> None:
    """Mu's lower limit is above the true one in as many runs as it says."""
    above, runs = 0, 20_000
    draw = numpy.random.default_rng(0)
    for _ in range(runs):
        inside = draw.random(300) < 0.5
        above += bounds.distance(3 * draw.normal(size=300) + 1.5 * inside, inside)[1] > 0.5

    assert 1e-6 < binom.cdf(above, runs, bounds.ERROR) < 1 - 1e-6


@pytest.mark.parametrize(("noise", "seen"), [(1.0, 0.001), (0.9, 0.91), (0.85, 0.999)])
def test_what_is_seen(noise: float, seen: float) -> None:
    """Three draws of 10,000 canaries refute noise a tenth too small in 9 audits of 10."""
    draw, canaries, runs = numpy.random.default_rng(0), attack.DRAWS * attack.CANARIES, 500
    claim = private_plan(Privacy(epsilon=attack.EPSILON, delta=bounds.DELTA), 10_000, 10_000, attack.STEPS)
    claimed, mu = spent(claim, claim.steps), math.sqrt(claim.steps) / claim.noise_multiplier
    refuted = 0
    for _ in range(runs):
        inside = draw.random(canaries) < 0.5
        limit = bounds.distance(draw.normal(size=canaries) + mu / noise * inside, inside)[1]
        refuted += gaussian_epsilon(limit, bounds.DELTA) > claimed

    assert 1e-6 < binom.cdf(refuted, runs, seen) <= 1
    assert 1e-6 < binom.sf(refuted - 1, runs, seen) <= 1
