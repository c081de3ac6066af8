"""Seconds an epoch and peak memory of each row, and their ratio to the row that trains most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

from peft_dp.suite.report.figures.drawing import (
    PRINTED,
    PRIVACY_COLOURS,
    QUANTITIES,
    Figure,
    Trace,
    if_any,
    over_tasks,
    panels,
    points,
    row_name,
)
from peft_dp.suite.report.figures.values import comparable_rows, is_private, row_mean
from peft_dp.suite.verdicts.cells import Verdict

Row = Sequence[Verdict]
Kind = tuple[bool, str]
"""Whether private, and the backbone: what rows must share for a ratio."""


def cost(verdicts: Sequence[Verdict]) -> Figure:
    """Draw seconds an epoch and peak memory of each row, and their ratio to the row that trains most."""
    tasks, rows = comparable_rows(verdicts, "epoch_seconds", "peak_bytes", "trainable")
    largest = _largest(rows)
    rows = dict(reversed(rows.items()))  # plotly's first line is the lowest
    traces: list[Trace] = []
    for axis, quantity in (("", "epoch_seconds"), ("2", "peak_bytes")):
        traces += _ours(rows, largest, quantity, axis)
        traces += _printed(rows, quantity, axis)
    seconds, memory = QUANTITIES["epoch_seconds"][0], QUANTITIES["peak_bytes"][0]
    layout = panels(seconds, memory, [escape(name) for name in rows]) | {"barmode": "overlay"}
    against = " and ".join(row_name(row[0].cell) for row in largest.values())
    return Figure(
        name="cost",
        title="Time and memory",
        note=f"{over_tasks(tasks)}; labels: times that of {against}",
        alt=f"Bar charts of {len(rows)} rows: seconds an epoch on the left, peak memory in MB on the right.",
        plots=if_any({"data": traces, "layout": layout}, rows),
        needs="records with costs",
        paper="SLaSh, Table 5; DP-BiTFiT's ratios",
    )


def _kind(verdict: Verdict) -> Kind:
    return is_private(verdict), verdict.cell.spec.backbone


def _largest(rows: Mapping[str, Row]) -> dict[Kind, Row]:
    """Return the row of each kind that trains most; the table's first of equals."""
    largest: dict[Kind, Row] = {}
    for row in rows.values():
        held = largest.setdefault(_kind(row[0]), row)
        if row_mean(row, "trainable") > row_mean(held, "trainable"):
            largest[_kind(row[0])] = row
    return largest


def _ours(rows: Mapping[str, Row], largest: Mapping[Kind, Row], quantity: str, axis: str) -> list[Trace]:
    """Return our bars on one of the two x axes, without DP and with."""
    title, unit = QUANTITIES[quantity]
    traces = []
    for private, colour in PRIVACY_COLOURS:
        places = [
            (row[0], row_mean(row, quantity) / unit, escape(name))
            for name, row in rows.items()
            if is_private(row[0]) == private
        ]
        if not places:
            continue
        wholes = [row_mean(largest[_kind(verdict)], quantity) / unit for verdict, _, _ in places]
        ratios = [f"{value / whole:.2g}x" if whole else "" for (_, value, _), whole in zip(places, wholes, strict=True)]
        traces.append(
            points(
                places,
                whole_rows=True,
                type="bar",
                orientation="h",
                name="ours, with DP" if private else "ours, without DP",
                legendgroup=str(private),
                showlegend=not axis,
                text=ratios,
                hovertemplate=f"%{{y}}: %{{x:.4g}} {title}<extra></extra>",
                textposition="auto",
                marker={"color": colour},
                xaxis=f"x{axis}",
            )
        )
    return traces


def _printed(rows: Mapping[str, Row], quantity: str, axis: str) -> list[Trace]:
    """Return the paper's numbers on one of the two x axes; no trace where it prints none."""
    title, unit = QUANTITIES[quantity]
    places = [
        (row[0], fmean(values) / unit, escape(name))
        for name, row in rows.items()
        if (values := [v.cell.expect[quantity].value for v in row if quantity in v.cell.expect])
    ]
    trace = points(
        places,
        whole_rows=True,
        name="paper",
        mode="markers",
        legendgroup="paper",
        showlegend=not axis,
        hovertemplate=f"%{{y}}: paper %{{x:.4g}} {title}<extra></extra>",
        marker={"color": PRINTED, "symbol": "diamond-open", "size": 9},
        xaxis=f"x{axis}",
    )
    return [trace] if places else []
