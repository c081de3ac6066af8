"""What a figure is, and the pieces that several figures draw: points, lines, panels.

A colour is the name of a variable of the page's style sheet, such as "--ok": the page puts in the value that holds
when it draws, light or dark. A point's cell, or row, is in `ids`, a line's in `meta`, so that a filter can leave it
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import isfinite
from typing import Any

from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.report.figures.values import is_private
from peft_dp.suite.verdicts.cells import Verdict

Plot = dict[str, Any]
"""One drawing: `data` and `layout` as plotly.js takes them."""

Trace = dict[str, Any]
"""One entry of a drawing's `data`."""

SERIES = tuple(f"--series-{number}" for number in range(1, 9))
WITHOUT_DP, WITH_DP, PRINTED = "--without-dp", "--with-dp", "--printed"
PRIVACY_COLOURS = ((False, WITHOUT_DP), (True, WITH_DP))
"""Whether private, and the colour."""

QUANTITIES = {
    "score": ("score, times 100", 1.0),
    "epoch_seconds": ("seconds an epoch", 1.0),
    "peak_bytes": ("peak memory, MB", 1e6),
}
"""Quantity -> title of its axis with the unit, and what a value is divided by."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure, or what it is missing.

    Attributes:
        name: Short name, unique in its table.
        title: What it shows.
        note: How to read it.
        alt: The same for those who do not see it, with what there is to be seen.
        plots: What is drawn -> the drawing; the reader chooses where there are several; empty where nothing is to show.
        needs: Which records it is made of.
        paper: The paper's figure that it follows.
    """

    name: str
    title: str
    note: str = ""
    alt: str
    plots: Mapping[str, Plot] = field(default_factory=dict)
    needs: str
    paper: str = ""


def points(places: Sequence[tuple[Verdict, Any, Any]], *, whole_rows: bool = False, **more: Any) -> Trace:
    """Return a trace of points.

    Args:
        places: Verdict, x and y of each.
        whole_rows: Whether a verdict stands for its whole row.
        more: Further attributes of the trace.
    """
    ids = [verdict.cell.id for verdict, _, _ in places]
    return {
        "type": "scatter",
        "ids": [name.rpartition("/")[0] for name in ids] if whole_rows else ids,
        "x": [x for _, x, _ in places],
        "y": [y for _, _, y in places],
    } | more


def line(verdict: Verdict, number: int, x: Sequence[float], y: Sequence[float | None]) -> Trace:
    """Return a trace of one cell's curve, the `number`-th of its drawing; dotted with DP."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": escape(verdict.cell.row.id),
        "legendgroup": verdict.cell.id,
        "meta": verdict.cell.id,
        "x": x,
        "y": y,
        "line": {
            "color": SERIES[number % len(SERIES)],
            "width": 1.5,
            "dash": "dot" if is_private(verdict) else "solid",
        },
        "marker": {"size": 5, "symbol": number // len(SERIES)},
        "hovertemplate": f"{cell_name(verdict.cell)}<br>%{{x:,}}: %{{y:.4g}}<extra></extra>",
    }


def panels(left: str, right: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the layout of two panels beside each other that share their lines."""
    return {
        "height": 130 + 22 * len(names),
        "xaxis": {"domain": [0, 0.56], "title": {"text": left}, "rangemode": "normal"},
        "xaxis2": {"domain": [0.62, 1], "title": {"text": right}, "anchor": "y"},
        "yaxis": {"type": "category", "categoryarray": names, "categoryorder": "array", "automargin": True, "dtick": 1},
    }


def above_legend(layout: dict[str, Any], lines: int, height: int = 320) -> dict[str, Any]:
    """Return the layout with room below for a legend of so many lines."""
    return layout | {"height": height + 20 * -(-lines // 4)}


def if_any(plot: Plot, shown: Any, name: str = "") -> dict[str, Plot]:
    """Return the drawing by its name, or none where there is nothing to show."""
    return {name: plot} if shown else {}


def cell_name(cell: Cell) -> str:
    """Return row and task, as plotly may show them."""
    return escape(f"{cell.row.id} {cell.task}")


def row_name(cell: Cell) -> str:
    """Return the row, as plotly may show it."""
    return escape(cell.row.id)


def over_tasks(tasks: Iterable[str]) -> str:
    """Return what a mean is taken over, in words."""
    names = sorted(tasks)
    return f"{'mean over ' * (len(names) > 1)}{', '.join(names)}"


def json_values(value: Any) -> Any:
    """Return the same in JSON's values: numbers to six digits, and null for what is no number."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: json_values(item) for name, item in value.items()}
    return [json_values(item) for item in value] if isinstance(value, list | tuple) else value
