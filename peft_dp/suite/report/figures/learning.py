"""Training loss over epochs, the mean over seeds; one drawing per task."""

from __future__ import annotations

from collections.abc import Sequence

from peft_dp.suite.report.figures.drawing import Figure, Plot, above_legend, if_any, line
from peft_dp.suite.report.figures.values import by_task, curve
from peft_dp.suite.verdicts.cells import Verdict


def learning(verdicts: Sequence[Verdict]) -> Figure:
    """Draw training loss over epochs, the mean over seeds; one drawing per task."""
    plots: dict[str, Plot] = {}
    for task, found in by_task(verdicts).items():
        curves = [curve(verdict, lambda epoch: epoch.loss)[1] for verdict in found]
        lines = [
            line(verdict, number, [*range(1, len(losses) + 1)], losses)
            for number, (verdict, losses) in enumerate(zip(found, curves, strict=True))
        ]
        layout = {
            "xaxis": {"title": {"text": "epochs"}, "dtick": 1 if max(map(len, curves)) <= 12 else None},
            "yaxis": {"title": {"text": "mean training loss"}},
        }
        drawing = {"data": lines, "layout": above_legend(layout, len(lines))}
        plots |= if_any(drawing, [trace for trace in lines if trace["y"]], task)
    return Figure(
        name="learning",
        title="Learning curves",
        alt=f"Lines of training loss over epochs for {len(verdicts)} cells, one drawing for each task; dotted with DP.",
        plots=plots,
        needs="records with a trail of epochs",
    )
