"""Records against a claim: how far the worst pair falls short, and how far chance may let it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean

from peft_dp.records import Record
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.claim import Claim
from peft_dp.suite.verdicts.bands import (
    RED,
    Spread,
    pooled,
)
from peft_dp.suite.verdicts.cells import TIME, printed_spreads, spread_assumed, spread_over_seeds, with_ours
from peft_dp.suite.verdicts.finding import Finding
from peft_dp.validate import Missing


def judge_claim(claim: Claim, runs: Mapping[str, Sequence[Record]]) -> Finding:
    """A claim against records: how far the worst pair falls short, and how far chance may let it.

    A score may fall short by what seeds explain (one-sided, at the red level); other quantities not at all.

    Args:
        claim: The claim.
        runs: Id of each of its cells that can run -> records; a cited one stands with its printed number.

    Raises:
        Missing: It is about times, and those of the records do not compare.
    """
    held = [record for cell in claim.needed for record in runs[cell.id]]
    if claim.quantity == TIME and (why := uneven(held)):
        raise Missing(why)
    pairs = claim.pairs(*([_value(cell, claim.quantity, runs) for cell in side] for side in claim.sides))
    sign = 1.0 if claim.relation in (">", ">=") else -1.0
    gaps = [sign * (right - left) for left, right in pairs]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    allowed = _slack(claim, worst, runs) if claim.quantity == "score" else 0.0
    return Finding(
        quantity=f"{claim.quantity} short of the claim",
        expected=0.0,
        ours=max(gaps[worst], 0.0 if claim.holds(pairs) else 5e-324),
        allowed=allowed,
        unusual=0.0,
    )


def uneven(records: Sequence[Record]) -> str:
    """Why the times of some records do not compare: other workers beside them, or another card; "" where they do."""
    workers = sorted({f"{record.environment.get('side_by_side', 1)}" for record in records})
    if len(workers) > 1:
        return f"times taken with {' and '.join(workers)} workers side by side do not compare: run all with as many"
    cards = sorted({str(record.environment.get("gpu") or "no GPU") for record in records})
    return f"times taken on {' and '.join(cards)} do not compare: run all on one" if len(cards) > 1 else ""


def _value(cell: Cell, quantity: str, runs: Mapping[str, Sequence[Record]]) -> float:
    if cell.row.cited:
        return cell.expect[quantity].value
    return fmean((record.values | record.cost)[quantity] for record in runs[cell.id])


def _slack(claim: Claim, pair: int, runs: Mapping[str, Sequence[Record]]) -> float:
    """What chance explains of a pair's difference."""
    square, freedom = 0.0, 10**6
    for cells, factor in zip(claim.sides, (1.0, claim.times), strict=True):
        weight = factor / len(cells) if claim.over == "mean" and cells else factor
        for cell in cells if claim.over == "mean" else cells[pair : pair + 1]:
            scores = [] if cell.row.cited else [record.values["score"] for record in runs[cell.id]]
            if theirs := cell.recorded.get(cell.own.row.id, {}).get(cell.task):
                spread = spread_over_seeds(cell, cell.recorded, theirs)
            elif "score" in cell.expect:
                spread = with_ours(pooled(printed_spreads(cell)), scores)
            else:
                spread = with_ours(spread_assumed(cell, fmean(scores)), scores)
            number = cell.expect["score"].runs if cell.row.cited else len(scores)
            square += (weight * spread.value) ** 2 / number
            freedom = min(freedom, spread.freedom)
    return Spread(sqrt(square), freedom).half_width(1, 10**9, 2 * RED)
