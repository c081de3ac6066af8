"""Share of clipped examples and the epsilon spent, over steps; one drawing per task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from peft_dp.records import Record
from peft_dp.suite.report.figures.drawing import Figure, Plot, Trace, above_legend, if_any, line
from peft_dp.suite.report.figures.values import by_task, curve, is_private
from peft_dp.suite.verdicts.cells import Verdict


def spending(verdicts: Sequence[Verdict]) -> Figure:
    """Draw the share of clipped examples and the epsilon spent, over steps; one drawing per task."""
    plots: dict[str, Plot] = {}
    private = [verdict for verdict in verdicts if is_private(verdict)]
    for task, found in by_task(private).items():
        lines: list[Trace] = []
        for number, verdict in enumerate(found):
            clipped = line(verdict, number, *curve(verdict, lambda epoch: epoch.clipped))
            epsilon = line(verdict, number, *epsilon_over_steps(verdict.records[0]))
            lines += [clipped, epsilon | {"yaxis": "y2", "showlegend": False}]
        layout = {
            "xaxis": {"title": {"text": "steps"}, "anchor": "y2", "rangemode": "tozero"},
            "yaxis": {"domain": [0.56, 1], "title": {"text": "clipped share"}, "tickformat": ".0%", "range": [0, 1.05]},
            "yaxis2": {"domain": [0, 0.44], "title": {"text": "epsilon spent"}, "rangemode": "tozero"},
        }
        plots |= if_any({"data": lines, "layout": above_legend(layout, len(found), 400)}, lines, task)
    return Figure(
        name="spending",
        title="Clipped share and epsilon over steps",
        alt=f"Lines of {len(private)} private cells over steps: share of examples clipped above, epsilon spent below.",
        plots=plots,
        needs="private records",
    )


def epsilon_over_steps(record: Record) -> tuple[list[int], list[float]]:
    """Return steps and the epsilon spent by then, by the ledger's accountant.

    There are four points at most, for an accountant takes its time: the start, two ends of epochs, and the end.
    """
    ledger = record.ledger
    if not ledger:
        return [], []
    ends = list(accumulate(epoch.steps for epoch in record.trail))[:-1]
    between = sorted({ends[len(ends) * part // 4] for part in (0, 2)}) if ends else []
    known = (ledger["noise_multiplier"], ledger["sample_rate"], ledger["delta"], ledger["accountant"])
    return (
        [0, *between, ledger["steps"]],
        [0.0, *(_epsilon(steps, *known) for steps in between), ledger["epsilon"]],
    )


def _epsilon(steps: int, noise: float, rate: float, delta: float, accountant: str) -> float:
    from peft_dp.privacy.plan import Plan, spent

    plan = Plan(
        examples=1,
        batch=1,
        steps=steps,
        steps_per_epoch=steps,
        sampling="poisson",
        sample_rate=rate,
        noise_multiplier=noise,
        delta=delta,
        accountant=accountant,
    )
    return spent(plan, steps)
