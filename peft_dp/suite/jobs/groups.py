"""How cells are divided among processes or jobs of about equal length."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peft_dp.spec import Spec

if TYPE_CHECKING:
    from peft_dp.suite.plan.estimate import Estimate

Part = tuple[str, list[Spec], float]
"""A cell's id, some of its runs, and the seconds that they take."""


def parts(found: Sequence[Estimate], most: float) -> list[Part]:
    """Return what is not divided further: a cell, or each run of a cell that takes more than `most` seconds."""
    pieces: list[Part] = []
    for each in found:
        specs = each.cell.specs(each.seeds)
        some = [specs] if each.seconds <= most else [[spec] for spec in specs]
        pieces += [(each.cell.id, piece, each.seconds * len(piece) / len(specs)) for piece in some]
    return pieces


def joined(pieces: Sequence[Part]) -> dict[str, list[Spec]]:
    """Return the runs of some parts by the ids of their cells."""
    runs: dict[str, list[Spec]] = {}
    for name, specs, _ in pieces:
        runs.setdefault(name, []).extend(specs)
    return runs


def grouped(seconds: Sequence[float], number: int) -> list[list[int]]:
    """Return indices in at most `number` groups of about equal sums: the largest first, each to the smallest sum."""
    order = sorted(range(len(seconds)), key=lambda at: -seconds[at])
    groups: list[list[int]] = [[] for _ in order[:number]]
    sums = [(0.0, group) for group in range(len(groups))]
    for at in order:
        least, group = sums[0]
        groups[group].append(at)
        heapq.heapreplace(sums, (least + seconds[at], group))
    return groups
