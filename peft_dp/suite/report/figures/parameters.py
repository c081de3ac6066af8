"""Mean score of each row against the number of trained values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import log10
from typing import Any

from peft_dp.suite.report.figures.drawing import (
    PRIVACY_COLOURS,
    QUANTITIES,
    Figure,
    Trace,
    if_any,
    over_tasks,
    points,
    row_name,
)
from peft_dp.suite.report.figures.values import comparable_rows, expected_row_mean, is_private, row_mean
from peft_dp.suite.verdicts.cells import Verdict

Row = Sequence[Verdict]


def parameters(verdicts: Sequence[Verdict]) -> Figure:
    """Draw the mean score of each row against the number of trained values."""
    tasks, rows = comparable_rows(verdicts, "score", "trainable")
    ordered = sorted(rows.values(), key=lambda row: (row_mean(row, "trainable"), -row_mean(row, "score")))
    best = [*accumulate((row_mean(row, "score") for row in ordered), max)]
    # Names of all would cover each other, and so would those of neighbours on one side.
    named = [row[0].cell.row.id for i, row in enumerate(ordered) if not i or best[i] > best[i - 1]]
    sides = {name: "top right" if i % 2 else "top left" for i, name in enumerate(named)}
    axis: dict[str, Any] = {"type": "log", "title": {"text": "trained values"}, "exponentformat": "SI", "dtick": 1}
    if ordered:  # room for the names at both ends
        ends = [log10(row_mean(row, "trainable")) for row in (ordered[0], ordered[-1])]
        axis["range"] = [ends[0] - 1, ends[1] + 0.5]
    layout = {"xaxis": axis, "yaxis": {"title": {"text": QUANTITIES["score"][0]}}}
    highest = f"; {named[-1]} is highest with {best[-1]:.1f}" if named else ""
    return Figure(
        name="parameters",
        title="Score against trained values",
        note=f"{over_tasks(tasks)}; named are the rows that none smaller beats",
        alt=f"Scatter plot of {len(rows)} rows, trained values across on a logarithmic axis and score up{highest}.",
        plots=if_any({"data": _traces(ordered, sides), "layout": layout}, ordered),
        needs="records of rows on the same tasks",
        paper="SLaSh, Figure 1",
    )


def _traces(rows: Sequence[Row], sides: dict[str, str]) -> list[Trace]:
    """Return what is expected and what we got, without DP and with.

    Args:
        rows: The rows.
        sides: Id of a row that is named -> where its name stands.
    """
    traces = []
    for private, colour in PRIVACY_COLOURS:
        for expected in (True, False):
            places = [
                (row[0], row_mean(row, "trainable"), score)
                for row in rows
                if is_private(row[0]) == private
                and (score := expected_row_mean(row) if expected else row_mean(row, "score")) is not None
            ]
            if not places:
                continue
            symbol = ("diamond" if private else "circle") + "-open" * expected
            hover = [f"{row_name(of.cell)}<br>{x:,.0f} trained values, score {y:.2f}" for of, x, y in places]
            traces.append(
                points(
                    places,
                    whole_rows=True,
                    name=f"{'expected' if expected else 'ours'}, {'with' if private else 'without'} DP",
                    mode="markers" if expected else "markers+text",
                    text=[row_name(of.cell) if of.cell.row.id in sides else "" for of, _, _ in places],
                    textposition=[sides.get(of.cell.row.id, "top center") for of, _, _ in places],
                    hovertext=hover,
                    hoverinfo="text",
                    marker={"color": colour, "symbol": symbol, "size": 8},
                )
            )
    return traces
