"""The numbers that figures show: means over the runs of a cell, over the cells of a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from math import inf, isfinite
from statistics import fmean

from peft_dp.records import mean
from peft_dp.suite.verdicts.cells import Verdict
from peft_dp.training.trail import Epoch


def our_mean(verdict: Verdict, quantity: str) -> float | None:
    """Return the mean of a quantity over a cell's runs; None where a run lacks it.

    A score of random weights is lacking too: it says nothing about a method.
    """
    if quantity == "score" and any(record.spec.weights == "random" for record in verdict.records):
        return None
    return mean(verdict.records, quantity)


def is_private(verdict: Verdict) -> bool:
    """Whether the cell trains with DP."""
    return verdict.cell.spec.privacy is not None


def by_task(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Return task -> verdicts."""
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.cell.task, []).append(verdict)
    return found


def comparable_rows(verdicts: Sequence[Verdict], *quantities: str) -> tuple[frozenset[str], dict[str, list[Verdict]]]:
    """Return the set of tasks that most rows ran on, and row -> its cells on these.

    Rows that lack a task of the set are left out, for means over other sets do not compare; so are cells without a
    finite number for each quantity.
    """
    rows: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if all(isfinite(_mean_or_inf(verdict, quantity)) for quantity in quantities):
            rows.setdefault(verdict.cell.row.id, []).append(verdict)
    sets = Counter(frozenset(verdict.cell.task for verdict in row) for row in rows.values())
    tasks = max(sets, key=lambda some: (sets[some], len(some)), default=frozenset[str]())
    held = {name: [verdict for verdict in row if verdict.cell.task in tasks] for name, row in rows.items()}
    return tasks, {name: row for name, row in held.items() if len(row) == len(tasks)}


def row_mean(row: Sequence[Verdict], quantity: str) -> float:
    """Return the mean of a quantity over the cells of a row; infinite where a run lacks it."""
    return fmean(_mean_or_inf(verdict, quantity) for verdict in row)


def _mean_or_inf(verdict: Verdict, quantity: str) -> float:
    value = our_mean(verdict, quantity)
    return inf if value is None else value


def expected_row_mean(row: Sequence[Verdict]) -> float | None:
    """Return the mean of what is expected of a row's scores; None where a cell expects none."""
    found = [verdict.finding("score") for verdict in row]
    known = [finding.expected for finding in found if finding]
    return fmean(known) if len(known) == len(found) else None


def curve(verdict: Verdict, quantity: Callable[[Epoch], float | None]) -> tuple[list[int], list[float | None]]:
    """Return the steps at the ends of epochs, of the first run, and the mean over the runs of what an epoch gave."""
    steps = list(accumulate(epoch.steps for epoch in verdict.records[0].trail))
    epochs = zip(*(map(quantity, record.trail) for record in verdict.records), strict=False)
    means = [fmean(known) if (known := [v for v in seeds if v is not None]) else None for seeds in epochs]
    return ([], []) if all(mean is None for mean in means) else (steps, means)
