"""All figures of a table."""

from __future__ import annotations

from collections.abc import Sequence

from peft_dp.suite.report.figures.agreement import agreement
from peft_dp.suite.report.figures.bias import bias
from peft_dp.suite.report.figures.cost import cost
from peft_dp.suite.report.figures.drawing import Figure
from peft_dp.suite.report.figures.learning import learning
from peft_dp.suite.report.figures.parameters import parameters
from peft_dp.suite.report.figures.price import price
from peft_dp.suite.report.figures.spending import spending
from peft_dp.suite.verdicts.cells import Verdict


def table_figures(verdicts: Sequence[Verdict]) -> list[Figure]:
    """Return the figures of one table, in the page's order, from the verdicts of its cells that ran."""
    return [
        agreement(verdicts),
        parameters(verdicts),
        cost(verdicts),
        price(verdicts, "score"),
        price(verdicts, "epoch_seconds"),
        bias(verdicts),
        learning(verdicts),
        spending(verdicts),
    ]
