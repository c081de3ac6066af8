"""What scores of canaries say of epsilon: bounds from guesses, and from the distance of two normal samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, log_ndtr, ndtr, ndtri
from scipy.stats import binom

DELTA = 1e-5
ERROR = 0.001
"""Share of audits of a right engine that refute its claim."""
CONFIDENCE = 0.95
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the canaries that may be guessed at, the farthest from the middle; a fifth of them chooses the best."""

Bound = Callable[[int, int, int], float]
"""Canaries, guesses, and those of them that are right -> lower bound on epsilon."""


def gaussian_bound(canaries: int, guesses: int, right: int, delta: float = DELTA) -> float:
    """Lower bound on epsilon where the trade-off function is a Gaussian's (Mahloujifar et al. 2024).

    A mu is refuted if, were so many right guesses to have a chance of 5 % under it, the chances that one canary is
    guessed right (r) or wrong (h) while at least i are right would, at i = 0, add up to more than there are guesses.
    """

    def refuted(mu: float) -> bool:
        r, h = (1 - CONFIDENCE) * right / canaries, (1 - CONFIDENCE) * (guesses - right) / canaries
        for i in range(right - 1, -1, -1):
            grown = max(h, float(ndtr(ndtri(r) - mu)))
            if grown == h:
                break
            r, h = min(r + i / (guesses - i) * (grown - h), 1.0), grown
        return r + h > guesses / canaries

    return gaussian_epsilon(_largest(refuted), delta)


def one_run_bound(canaries: int, guesses: int, right: int, delta: float = DELTA) -> float:
    """Lower bound on epsilon of any mechanism (Steinke et al. 2023).

    Right guesses are no more than a binomial's at chance e^epsilon / (1 + e^epsilon), but for what delta adds.
    """
    fewer = numpy.arange(1, right + 1)

    def refuted(epsilon: float) -> bool:
        chance = expit(epsilon)
        tail = binom.sf(right - 1, guesses, chance)
        near = (binom.sf(right - 1 - fewer, guesses, chance) - tail) / fewer
        return bool(tail + 2 * canaries * delta * near.max(initial=0.0) < 1 - CONFIDENCE)

    return _largest(refuted)


def _largest(refuted: Callable[[float], bool]) -> float:
    """The largest value that is refuted, to 1e-4; 0 if none is."""
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of the Gaussian mechanism of sensitivity over standard deviation mu (Balle and Wang 2018, theorem 8)."""
    if not 0 < mu < math.inf:
        return max(mu, 0.0)

    def excess(epsilon: float) -> float:
        first, second = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        return float(ndtr(first) - numpy.exp(epsilon + log_ndtr(second))) - delta

    high = mu * (mu / 2 - float(ndtri(delta)))  # there the first term alone is delta
    return float(brentq(excess, 0, high, xtol=1e-9)) if excess(0) > 0 else 0.0


def lower_bound(scores: NDArray[numpy.float64], inside: NDArray[numpy.bool_], bound: Bound) -> float:
    """The bound from four fifths of the canaries, guessed at as is best on the other fifth."""
    fifth = len(scores) // 5
    middle = (scores[:fifth][inside[:fifth]].mean() + scores[:fifth][~inside[:fifth]].mean()) / 2
    far, right = abs(scores - middle), (scores > middle) == inside

    def found(part: slice, least: float) -> float:
        guessed = far[part] >= least
        return bound(len(guessed), int(guessed.sum()), int((guessed & right[part]).sum()))

    edges = numpy.quantile(far[:fifth], [1 - share for share in SHARES])
    return found(slice(fifth, None), max(edges, key=lambda least: found(slice(fifth), least)))


def power(canaries: int, mu: float) -> float:
    """The Gaussian bound from the number of guesses to be expected at that mu, at the best threshold."""
    rest = canaries - canaries // 5
    found = []
    for least in numpy.arange(0, 4, 0.25):
        right, wrong = ndtr(mu / 2 - least), ndtr(-mu / 2 - least)
        found.append(gaussian_bound(rest, round(rest * float(right + wrong)), round(rest * float(right))))
    return max(found)


def distance(scores: NDArray[numpy.float64], inside: NDArray[numpy.bool_]) -> tuple[float, float]:
    """Mu of the scores and its lower limit, by the large-sample variance of a standardised difference.

    Mu is the difference of two normal samples' means over their common spread (Hedges and Olkin 1985, chapter 5).
    """
    first, second = scores[inside], scores[~inside]
    variance = (first.var() * len(first) + second.var() * len(second)) / (len(scores) - 2)
    if variance == 0:
        return math.inf, math.inf
    mu = float((first.mean() - second.mean()) / math.sqrt(variance))
    error = math.sqrt(1 / len(first) + 1 / len(second) + mu**2 / (2 * len(scores)))
    return mu, mu - NormalDist().inv_cdf(1 - ERROR) * error
