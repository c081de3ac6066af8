"""How far two means of seeds may lie apart: computed from spreads, never typed.

Theirs is a mean of n runs and ours one of N on the same dev examples, so that
only the spread s over seeds counts. With f degrees of freedom behind s the two differ by more
than t(f, 1 - a/2) * s * sqrt(1/n + 1/N) with chance a (a t prediction interval);
rounding comes on top. Five seeds alone leave 4 degrees of freedom, with which the interval at
0.1 % is useless: s is pooled over the rows of a task.

Where no spread is printed, 0.7 times the standard error of the dev set stands for it: over the 40
cells of SLaSh's own rows the printed spreads are 0.6 times it, 0.7 when freed of the bias of five runs.
The 16 of its JR-WARP rows are 1.4 times it, so the guess is given few degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from statistics import variance

AMBER, RED = 0.05, 0.001
PRIOR_SHARE, PRIOR_FREEDOM = 0.7, 8
PRIVATE = 2.0
"""How many times further private runs spread: 2.1 and 1.5 times in this project's recorded runs, none being printed."""
POWER = 0.8
COLLAPSED = RED
"""Chance with which a spread that is like the others counts as one of a run that collapsed."""


@dataclass(frozen=True)
class Spread:
    """A standard deviation over seeds.

    Attributes:
        value: In points.
        freedom: Degrees of freedom behind it.
    """

    value: float
    freedom: int

    def half_width(self, theirs: int, ours: int, chance: float) -> float:
        """Largest difference of two means, of so many runs, but for that chance."""
        from scipy.special import stdtrit

        return float(stdtrit(self.freedom, 1 - chance / 2)) * self.value * sqrt(1 / theirs + 1 / ours)

    def detectable(self, theirs: int, ours: int, chance: float = AMBER, power: float = POWER) -> float:
        """Smallest true difference that lies outside `half_width` with that power."""
        from scipy.special import nctdtrinc, stdtrit

        # That chance alone puts such a difference beyond the far end is left out.
        shift = nctdtrinc(self.freedom, 1 - power, stdtrit(self.freedom, 1 - chance / 2))
        return float(shift) * self.value * sqrt(1 / theirs + 1 / ours)

    def collapsed(self, rest: Spread) -> bool:
        """Whether it is larger than another by more than chance explains (F test): that of runs that collapsed."""
        from scipy.special import fdtri

        return self.value**2 > float(fdtri(self.freedom, rest.freedom, 1 - COLLAPSED)) * rest.value**2


def pooled(spreads: Sequence[Spread]) -> Spread:
    """One spread from several of the same quantity, those that collapsed left out.

    Raises:
        ValueError: There is none.
    """
    if not spreads:
        raise ValueError("no spread to pool")
    others = [[*spreads[:i], *spreads[i + 1 :]] for i in range(len(spreads))]
    kept = [s for s, rest in zip(spreads, others, strict=True) if not rest or not s.collapsed(joined(rest))]
    return joined(kept or spreads)


def joined(spreads: Sequence[Spread]) -> Spread:
    """One spread from at least one, by squares and degrees of freedom."""
    freedom = sum(spread.freedom for spread in spreads)
    return Spread(sqrt(sum(spread.freedom * spread.value**2 for spread in spreads) / freedom), freedom)


def of_runs(scores: Sequence[float]) -> Spread:
    """The spread of at least two runs."""
    return Spread(sqrt(variance(scores)), len(scores) - 1)


def prior(metric: str, score: float, examples: int, positive: float = 0.5, *, private: bool = False) -> Spread:
    """What to expect of a spread that was not printed.

    Args:
        metric: Name of a metric in `measuring.metrics`.
        score: Printed score, times 100.
        examples: Number of dev examples.
        positive: Share of class 1, for F1 and Matthews' correlation.
        private: Whether noise adds to the spread.
    """
    share = PRIOR_SHARE * (PRIVATE if private else 1)
    return Spread(share * standard_error(metric, score / 100, examples, positive) * 100, PRIOR_FREEDOM)


def resolution(metric: str, score: float, examples: int, positive: float = 0.5) -> float:
    """How far another sample of dev examples would move a score in 19 cases of 20, in points; arguments as in `prior`.

    Nearer than that two scores are one result: the dev set says no more of the task itself.
    """
    from scipy.special import ndtri

    return float(ndtri(1 - AMBER / 2)) * 100 * standard_error(metric, score / 100, examples, positive)


def standard_error(metric: str, score: float, examples: int, positive: float = 0.5) -> float:
    """Of a score between 0 and 1, the examples being a sample.

    Accuracy is binomial; a correlation r of normal values has (1 - r^2) / sqrt(n), a sixth more by ranks. The others
    follow from the shares of the confusion matrix, multinomial, by their derivatives, recall and precision taken
    equal: F1 = 2 H / (2 H + E) from those of hits H and errors E, Matthews' correlation from all four (Yule 1912).
    """
    score = min(max(score, 0.0), 1.0)
    if metric in ("pearson", "spearman"):
        return (1 - score**2) / sqrt(examples)
    if metric == "mcc":
        skew = (1 - 2 * positive) ** 2 / (positive * (1 - positive))
        return sqrt((1 - score) * (1 + score + skew * score * (2 - score) / 2) / examples)
    if metric in ("f1", "entity_f1"):
        hits, errors = positive * score, 2 * positive * (1 - score)
        whole = 2 * hits + errors
        by_hits, by_errors = 2 * errors / whole**2, -2 * hits / whole**2
        square = by_hits**2 * hits * (1 - hits) + by_errors**2 * errors * (1 - errors)
        return sqrt((square - 2 * by_hits * by_errors * hits * errors) / examples)
    return sqrt(score * (1 - score) / examples)


@cache
def best_of(runs: int) -> float:
    """Mean of the largest of so many standard normal values."""
    from scipy.integrate import quad
    from scipy.stats import norm

    return float(quad(lambda x: x * runs * norm.pdf(x) * norm.cdf(x) ** (runs - 1), -10, 10)[0])
