"""What a run has to do, known without data and without torch: examples, tokens, lengths, and about how many FLOPs."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

from peft_dp import registry, tasks
from peft_dp.spec import Spec

METHOD_FLOPS = {"full": 1.5, "diff_pruning": 1.5, "gradual": 0.6, "head": 0.25}
"""Method -> its FLOPs over those of a forward and a backward pass without gradients of weights, where not about 1."""


def examples(spec: Spec) -> int:
    """Return the number of training examples."""
    return tasks.find(spec.task).train if spec.train is None else spec.train


def tokens(spec: Spec) -> float:
    """Return the tokens that a run sees in training, in expectation."""
    return spec.epochs * examples(spec) * mean_length(spec.task, spec.max_length)


@cache
def mean_length(task: str, most: int) -> float:
    """Return the mean number of tokens per example, where an example is cut at `most` tokens."""
    drawn = lengths(task, most, 256)
    return sum(drawn) / len(drawn)


def lengths(task: str, most: int, count: int, first: float = 0.0) -> list[int]:
    """Return the lengths of that many examples, cut at `most` tokens, evenly over the task's distribution.

    Args:
        task: Its lengths are taken to be log-normal.
        most: The longest that an example may be.
        count: How many.
        first: Share of the distribution, the shortest examples, that is left out.

    Raises:
        ValueError: No such task.
    """
    known = tasks.find(task)
    mean, deviation = known.tokens, known.log_deviation
    shares = (first + (1 - first) * (i + 0.5) / count for i in range(count))
    heights = (NormalDist().inv_cdf(share) for share in shares)
    return [min(most, max(3, round(mean * math.exp(deviation * height - deviation**2 / 2)))) for height in heights]


def flops(spec: Spec) -> float:
    """Return the FLOPs of a run to leading order, those of the linear layers: enough to put cells in order.

    Raises:
        ValueError: No such backbone or task.
    """
    return 4 * linear_values(spec.backbone) * METHOD_FLOPS.get(spec.method, 1.0) * tokens(spec)


@cache
def linear_values(backbone: str) -> int:
    """Return the number of values in the linear weights of a backbone's layers: 4 d^2 + 2 d f in each.

    Raises:
        ValueError: No such backbone.
    """
    found = registry.load("backbones", backbone)
    depth, width, inner = (found.CONFIG[name] for name in found.FAMILY.sizes)
    values: int = depth * (4 * width**2 + 2 * width * inner)
    return values
