"""The price of privacy: a quantity with and without DP, for each pair of cells alike in all else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from statistics import fmean
from typing import NamedTuple

from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.report.figures.drawing import (
    QUANTITIES,
    WITH_DP,
    WITHOUT_DP,
    Figure,
    Plot,
    Trace,
    panels,
    points,
)
from peft_dp.suite.report.figures.values import is_private, our_mean
from peft_dp.suite.verdicts.cells import Verdict


class Pair(NamedTuple):
    """Two cells alike but for privacy.

    Attributes:
        private: The one with DP.
        without: Our mean of the other.
        with_dp: Our mean of the private one.
    """

    private: Verdict
    without: float
    with_dp: float

    @property
    def change(self) -> float:
        """Relative change by privacy."""
        return (self.with_dp - self.without) / self.without

    @property
    def name(self) -> str:
        """Row of the private cell, as plotly may show it."""
        return escape(self.private.cell.row.id)


def price(verdicts: Sequence[Verdict], quantity: str) -> Figure:
    """Draw a quantity with and without privacy, and its relative change; one drawing per task."""
    tasks: dict[str, list[Pair]] = defaultdict(list)
    for other, private in paired(verdicts):
        without, with_dp = our_mean(other, quantity), our_mean(private, quantity)
        if without and with_dp is not None:
            tasks[other.cell.task].append(Pair(private, without, with_dp))
    every = [pair.change for pairs in tasks.values() for pair in pairs]
    mean = f"; the mean change is {fmean(every):+.1%}" if every else ""
    what = "Score" if quantity == "score" else "Epoch time"
    return Figure(
        name=f"price-{quantity.replace('_', '-')}",
        title=f"{what} without and with DP, and its change",
        alt=f"{what} of {len(every)} pairs of cells alike but for privacy, and the relative change as bars{mean}.",
        # plotly's first line is the lowest
        plots={task: _plot(pairs[::-1], QUANTITIES[quantity][0]) for task, pairs in tasks.items()},
        needs="records of cells alike in method, settings and task, with and without privacy",
        paper="Khan, Figures 3 and 4" if quantity == "score" else "Khan, Figures 5 and 6",
    )


def paired(verdicts: Sequence[Verdict]) -> list[tuple[Verdict, Verdict]]:
    """Return (without privacy, with) for every private cell whose like ran too: same task, model, method and settings.

    What privacy itself sets may differ: batches, epochs, examples, optimiser.
    """

    def like(cell: Cell) -> tuple[object, ...]:
        spec = cell.spec
        return cell.task, spec.backbone, spec.method, repr(sorted(spec.config.items())), spec.head, spec.readout

    others = {like(verdict.cell): verdict for verdict in verdicts if not is_private(verdict)}
    return [(others[key], v) for v in verdicts if is_private(v) and (key := like(v.cell)) in others]


def _plot(pairs: Sequence[Pair], title: str) -> Plot:
    """Return a drawing: pairs of markers on the left, changes on the right."""
    layout = panels(title, "change by DP, %", [pair.name for pair in pairs])
    changes = [0.0, *(100 * pair.change for pair in pairs)]
    low, high = min(changes), max(changes)
    room = 0.4 * (high - low)  # for the words beside the bars
    layout["xaxis2"] |= {"zeroline": True, "range": [low - room * (low < 0), high + room * (high > 0)]}
    lines = [_connection(pair) for pair in pairs]
    markers = [
        points(
            [(pair.private, getattr(pair, side), pair.name) for pair in pairs],
            name=words,
            mode="markers",
            hovertemplate=f"%{{y}}, {words}: %{{x:.4g}}<extra></extra>",
            marker={"color": colour, "symbol": symbol, "size": 9},
        )
        for side, words, colour, symbol in (
            ("without", "without DP", WITHOUT_DP, "circle"),
            ("with_dp", "with DP", WITH_DP, "diamond"),
        )
    ]
    return {"data": [*lines, *markers, _bars(pairs)], "layout": layout}


def _connection(pair: Pair) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [pair.without, pair.with_dp],
        "y": [pair.name, pair.name],
        "meta": pair.private.cell.id,
        "line": {"color": "--rule", "width": 3},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _bars(pairs: Sequence[Pair]) -> Trace:
    changes = [100 * pair.change for pair in pairs]
    return points(
        [(pair.private, change, pair.name) for pair, change in zip(pairs, changes, strict=True)],
        type="bar",
        orientation="h",
        name="relative change",
        xaxis="x2",
        text=[f"{change:+.{int(abs(change) < 10)}f}" for change in changes],
        textposition="auto",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:+.2f} %<extra></extra>",
        marker={"color": "--change"},
    )
