"""How far two means of seeds may lie apart: computed from spreads, never typed.

Theirs is a mean of n runs and ours one of N on the same dev examples, so that
only the spread s over seeds counts. With f degrees of freedom behind s the two differ by more
than t(f, 1 - a/2) * s * sqrt(1/n + 1/N) with chance a (a t prediction interval);
rounding comes on top. Five seeds alone leave 4 degrees of freedom, with which the interval at
0.1 % is useless: s is pooled over the rows of a task.

Where no spread is printed, 0.7 times the standard error of the dev set stands for it: over SLaSh's 40
cells the printed spreads are 0.6 times it (0.7 when freed of the bias of five runs), and scatter
about that as those of 8 degrees of freedom or fewer would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import variance

AMBER, RED = 0.05, 0.001
PRIOR_SHARE, PRIOR_FREEDOM = 0.7, 8
POWER = 0.8
COLLAPSED = 3.0
"""A printed spread this many times that of the other rows together is one of a run that collapsed."""
POSITIVE = {"mrpc": 0.684, "qqp": 0.368}
"""Share of class 1 in the dev set, for the error of F1."""


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
        from scipy.stats import t

        return float(t.ppf(1 - chance / 2, self.freedom)) * self.value * sqrt(1 / theirs + 1 / ours)

    def detectable(self, theirs: int, ours: int, chance: float = AMBER, power: float = POWER) -> float:
        """Smallest true difference that lies outside `half_width` with that power."""
        from scipy.optimize import brentq
        from scipy.stats import nct, t

        limit = t.ppf(1 - chance / 2, self.freedom)

        def short(shift: float) -> float:
            return float(nct.sf(limit, self.freedom, shift) + nct.cdf(-limit, self.freedom, shift) - power)

        return float(brentq(short, 0.0, 10 * limit)) * self.value * sqrt(1 / theirs + 1 / ours)


def pooled(spreads: Sequence[Spread]) -> Spread:
    """One spread from several of the same quantity, those that collapsed left out.

    Raises:
        ValueError: There is none.
    """
    if not spreads:
        raise ValueError("no spread to pool")

    def whole(some: Sequence[Spread]) -> Spread:
        freedom = sum(spread.freedom for spread in some)
        return Spread(sqrt(sum(spread.freedom * spread.value**2 for spread in some) / freedom), freedom)

    kept = []
    for spread in spreads:
        rest = [other for other in spreads if other is not spread]
        if not rest or spread.value <= COLLAPSED * whole(rest).value:
            kept.append(spread)
    return whole(kept or spreads)


def of_runs(scores: Sequence[float]) -> Spread:
    """The spread of at least two runs."""
    return Spread(sqrt(variance(scores)), len(scores) - 1)


def prior(metric: str, score: float, examples: int, positive: float = 0.5) -> Spread:
    """What to expect of a spread that was not printed.

    Args:
        metric: Name of a metric in `tasks.metrics`.
        score: Printed score, times 100.
        examples: Number of dev examples (of entities, for their F1).
        positive: Share of class 1, for F1.
    """
    return Spread(PRIOR_SHARE * standard_error(metric, score / 100, examples, positive) * 100, PRIOR_FREEDOM)


def standard_error(metric: str, score: float, examples: int, positive: float = 0.5) -> float:
    """Of a score between 0 and 1, the examples being a sample.

    Accuracy is binomial; a correlation r has sqrt((1 - r^2) / n) at most; F1 = 2 H / (2 H + E) follows from the
    shares of hits H and of errors E, each binomial, by their derivatives, recall and precision taken equal.
    """
    score = min(max(score, 0.0), 1.0)
    if metric in ("mcc", "pearson", "spearman"):
        return sqrt((1 - score**2) / examples)
    if metric in ("f1", "entity_f1"):
        hits, errors = positive * score, 2 * positive * (1 - score)
        whole = 2 * hits + errors
        by_hits, by_errors = 2 * errors / whole**2, -2 * hits / whole**2
        square = by_hits**2 * hits * (1 - hits) + by_errors**2 * errors * (1 - errors)
        return sqrt((square - 2 * by_hits * by_errors * hits * errors) / examples)
    return sqrt(score * (1 - score) / examples)


def best_of(runs: int) -> float:
    """Mean of the largest of so many standard normal values."""
    from scipy.integrate import quad
    from scipy.stats import norm

    return float(quad(lambda x: x * runs * norm.pdf(x) * norm.cdf(x) ** (runs - 1), -10, 10)[0])
