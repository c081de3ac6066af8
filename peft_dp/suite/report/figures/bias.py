"""How far each term of biases and scales moved in each layer; one map per cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

from peft_dp.suite.report.figures.drawing import Figure, Plot, cell_name
from peft_dp.suite.verdicts.cells import Verdict


def bias(verdicts: Sequence[Verdict]) -> Figure:
    """Draw how far each term of biases and scales moved in each layer; one map per cell."""
    plots = {}
    for verdict in verdicts:
        if moved := [record.moved for record in verdict.records if record.moved]:
            plots[cell_name(verdict.cell)] = _map(verdict.cell.id, moved)
    return Figure(
        name="bias",
        title="How far biases and scales moved",
        alt=f"Heat maps of {len(plots)} cells: layers across, terms down, mean absolute change as colour.",
        plots=plots,
        needs="records of methods that train biases or scales",
        paper="BitFit+, Figures 4 to 15",
    )


def _map(cell: str, moved: Sequence[Mapping[str, Sequence[float]]]) -> Plot:
    """Return the map of a cell from what moved in each of its runs: term -> change per layer."""
    terms = list(moved[0])
    means = [
        [fmean(layer) for layer in zip(*(run[term] for run in moved if term in run), strict=False)] for term in terms
    ]
    trace = {
        "type": "heatmap",
        "meta": cell,
        "z": means,
        "x": [str(layer + 1) for layer in range(max(map(len, means)))],
        "y": [escape(term) for term in terms],
        "colorscale": [[0, "--heat-0"], [0.5, "--heat-1"], [1, "--heat-2"]],
        "colorbar": {"title": {"text": "mean |change|", "side": "right"}, "thickness": 12},
        "hovertemplate": "layer %{x}, %{y}: %{z:.3g}<extra></extra>",
    }
    layout = {
        "height": 150 + 24 * len(terms),
        "xaxis": {"title": {"text": "layer, lowest first"}, "type": "category"},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
    }
    return {"data": [trace], "layout": layout}
