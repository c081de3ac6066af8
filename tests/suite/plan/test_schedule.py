"""The order in which workers take tests, beside pytest-xdist's own scheduler."""

from __future__ import annotations

import heapq
import random
from types import SimpleNamespace
from typing import Any

import pytest

from peft_dp.suite.plan.schedule import dealt, makespan


def scheduled(seconds: list[float], workers: int) -> float:
    """When the last test ends under pytest-xdist's scheduler, one test at a time, on a clock that is made up."""
    load = pytest.importorskip("xdist.scheduler.load", reason="needs pytest-xdist: pip install -e '.[parallel]'")
    settings: dict[str, Any] = {"tx": [f"{workers}*popen"], "maxschedchunk": 1}
    scheduler = load.LoadScheduling(SimpleNamespace(getvalue=settings.get, getoption=settings.get))
    queues: list[list[int]] = [[] for _ in range(workers)]
    nodes = [_Node(queue) for queue in queues]
    for node in nodes:
        scheduler.add_node(node)
        scheduler.add_node_collection(node, [f"{test}" for test in range(len(seconds))])
    scheduler.schedule()
    running = [(seconds[queue[0]], at) for at, queue in enumerate(queues) if queue]
    heapq.heapify(running)
    now = 0.0
    while running:
        now, at = heapq.heappop(running)
        done = queues[at].pop(0)
        scheduler.mark_test_complete(nodes[at], done, seconds[done])
        if queues[at]:
            heapq.heappush(running, (now + seconds[queues[at][0]], at))
    return now


class _Node:
    """What a scheduler sees of a worker."""

    shutting_down = False

    def __init__(self, queue: list[int]) -> None:
        self.send_runtest_some = queue.extend
        self.gateway = self  # of which the scheduler's log asks the id
        self.id = "gw"

    def shutdown(self) -> None:
        """Does nothing: a worker without tests stands still."""


@pytest.mark.parametrize("workers", [1, 2, 7, 64])
@pytest.mark.parametrize("number", [1, 5, 13, 127, 128, 400])
def test_makespan(number: int, workers: int) -> None:
    """The time that a plan gives for several workers is that of pytest-xdist's scheduler."""
    draw = random.Random(number * workers)
    seconds = dealt(sorted((draw.lognormvariate(0, 1.5) for _ in range(number)), reverse=True), workers)

    assert scheduled(seconds, workers) == pytest.approx(makespan(seconds, workers), rel=1e-12)


@pytest.mark.parametrize("workers", [1, 2, 7, 64])
def test_dealt(workers: int) -> None:
    """Every test stays, none of the longest waits behind another, and what is left goes from the longest down."""
    tests = list(range(200))
    found = dealt(tests, workers)

    assert tests == sorted(found)
    assert list(range(workers)) == found[: 2 * workers : 2]
    assert found[2 * workers :] == sorted(found[2 * workers :])
