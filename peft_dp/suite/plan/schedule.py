"""The order in which several workers take tests, and when the last test ends."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def dealt(tests: Sequence[T], workers: int) -> list[T]:
    """Return tests, given from the longest to the shortest, in an order in which no long test waits behind another.

    pytest-xdist first gives each worker the next two tests, and then one for each test that ends. So each worker
    begins with one of the longest, and has one of the shortest in store.
    """
    if len(tests) < 2 * workers:
        return list(tests)
    pairs = zip(tests[:workers], reversed(tests[-workers:]), strict=True)
    return [*(test for pair in pairs for test in pair), *tests[workers:-workers]]


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Return the seconds after which the last test ends, where pytest-xdist gives tests out in this order."""
    if len(seconds) < 2 * workers:
        return max(sum(seconds[worker::workers]) for worker in range(workers))
    busy = [(seconds[2 * worker], seconds[2 * worker + 1]) for worker in range(workers)]
    heapq.heapify(busy)
    for more in seconds[2 * workers :]:
        now, stored = busy[0]
        heapq.heapreplace(busy, (now + stored, more))
    return max(now + stored for now, stored in busy)
