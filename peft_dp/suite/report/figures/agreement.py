"""Our scores against what was expected, each beside its band."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import isfinite

from peft_dp.suite.report.figures.drawing import Figure, Trace, cell_name, if_any, points
from peft_dp.suite.verdicts.cells import Verdict
from peft_dp.suite.verdicts.finding import Finding, Status

COLOURS: dict[Status, tuple[str, str]] = {
    "reproduced": ("--ok", "circle"),
    "consistent": ("--ok", "circle-open"),
    "undecided": ("--unsure", "circle-open"),
    "amber": ("--amber", "triangle-up"),
    "differs": ("--off", "x"),
    "known difference": ("--known", "diamond"),
}
"""Status -> colour and marker: neither alone tells two of them apart."""

Scored = Sequence[tuple[Verdict, Finding]]
"""Cells with what was found of their score."""


def agreement(verdicts: Sequence[Verdict]) -> Figure:
    """Draw our scores against what was expected, each beside its band."""
    found = [(verdict, finding) for verdict in verdicts if (finding := verdict.finding("score"))]
    scores = [score for _, finding in found for score in (finding.ours, finding.expected) if isfinite(score)]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    edge = 0.1 * (high - low) + 1
    low, high = low - edge, high + edge
    diagonal = {"type": "line", "x0": low, "y0": low, "x1": high, "y1": high, "line": {"color": "--rule", "width": 1}}
    layout = {
        "xaxis": {"range": [low, high], "title": {"text": "expected: printed or recorded, times 100"}},
        "yaxis": {"range": [low, high], "title": {"text": "ours, times 100"}},
        "shapes": [diagonal | {"layer": "below"}],
    }
    counts = Counter(verdict.status for verdict, _ in found)
    summary = ", ".join(f"{counts[status]} {status}" for status in COLOURS if counts[status])
    return Figure(
        name="agreement",
        title="Expected against ours",
        alt=f"Scatter plot of {len(found)} cells, expected score across and ours up, beside the diagonal: {summary}.",
        plots=if_any({"data": [*_bands(found), *_scores(found)], "layout": layout}, found),
        needs="cells with a printed or a recorded score",
    )


def _bands(found: Scored) -> list[Trace]:
    return [
        points(
            [(verdict, finding.expected, finding.expected) for verdict, finding in found],
            name=name,
            mode="markers",
            hoverinfo="skip",
            marker={"color": colour, "symbol": "square", "size": 5},
            error_y={
                "type": "data",
                "array": [getattr(finding, width) for _, finding in found],
                "color": colour,
                "thickness": 5,
                "width": 0,
            },
        )
        for name, width, colour in (
            ("allowed at 0.1 %", "allowed", "--band"),
            ("usual at 5 %", "unusual", "--band-inner"),
        )
    ]


def _scores(found: Scored) -> list[Trace]:
    """Return one trace per status."""
    traces = []
    for status, (colour, symbol) in COLOURS.items():
        of_status = [(verdict, finding) for verdict, finding in found if verdict.status == status]
        text = [
            f"{cell_name(verdict.cell)}<br>expected {finding.expected:.2f}, ours {finding.ours:.2f}, "
            f"allowed ±{finding.allowed:.2f}<br>{verdict.status}"
            for verdict, finding in of_status
        ]
        if of_status:
            places = [(verdict, finding.expected, finding.ours) for verdict, finding in of_status]
            marker = {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": colour}}
            traces.append(points(places, name=status, mode="markers", text=text, hoverinfo="text", marker=marker))
    return traces
