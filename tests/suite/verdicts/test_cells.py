"""Verdicts: the band worked out by hand, the statuses, and what cannot be judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import copysign, sqrt
from typing import Any

import pytest
from scipy.optimize import brentq
from scipy.stats import nct, t

from peft_dp import Places, Record, Spec, rng
from peft_dp.runs import runs
from peft_dp.spec import Privacy
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.table import Expect, Row
from peft_dp.suite.verdicts.bands import Spread
from peft_dp.suite.verdicts.cells import Verdict, judge_cell, printed_spreads
from peft_dp.suite.verdicts.finding import Finding
from peft_dp.training.trail import Epoch

Make = Callable[..., Spec]


@pytest.fixture
def records(spec: Make) -> Callable[..., list[Record]]:
    """Makes one record a score."""

    def make(*scores: float, **values: float) -> list[Record]:
        rest: dict[str, Any] = {"ledger": None, "trail": [], "cost": {}, "sources": {}, "environment": {}}
        return [
            Record(key="0" * 64, spec=spec(seed=seed), values={"score": score} | values, **rest)
            for seed, score in enumerate(scores)
        ]

    return make


FIVE = [70.0, 71.0, 72.0, 73.0, 74.0]
"""Mean 72, variance 2.5."""


def only(verdict: Verdict) -> Finding:
    """The single finding of a verdict."""
    (finding,) = verdict.findings
    return finding


def test_band_of_one_run(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """The band of one run against five is t(4) times the spread times sqrt(1/5 + 1), and half a step of the score."""
    finding = only(judge_cell(cell(recorded={"row": {"sentiment": FIVE}}), records(73.0)))
    width = sqrt(2.5) * sqrt(1 / 5 + 1)

    assert (72.0, 73.0) == (finding.expected, finding.ours)
    # 8.610 and 2.776 are the tabled quantiles of t with four degrees of freedom; half of 100/500 is 0.1.
    assert finding.allowed == pytest.approx(8.610 * width + 0.1, rel=1e-4)
    assert finding.unusual == pytest.approx(2.776 * width + 0.1, rel=1e-3)


def test_band_narrows_with_runs(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Five runs of ours are judged by their mean, in a band sqrt(2/5) of the spread wide."""
    finding = only(judge_cell(cell(recorded={"row": {"sentiment": FIVE}}), records(*FIVE[::-1])))

    assert finding.ours == 72.0
    assert finding.allowed == pytest.approx(float(t.ppf(0.9995, 4)) * sqrt(2.5) * sqrt(2 / 5) + 0.1)


def test_spread_is_pooled(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Rows of a task share spread and degrees of freedom; a row that spreads less takes the pooled spread."""
    wide = [60.0, 62.0, 64.0, 66.0, 68.0]
    finding = only(judge_cell(cell(recorded={"row": {"sentiment": FIVE}, "other": {"sentiment": wide}}), records(72.0)))
    pooled = (4 * 2.5 + 4 * 10.0) / 8

    assert finding.allowed == pytest.approx(float(t.ppf(0.9995, 8)) * sqrt(pooled) * sqrt(1.2) + 0.1)


def test_wide_row_keeps_its_own(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """A row that spreads more than the pool is judged by its own spread."""
    wide = [60.0, 62.0, 64.0, 66.0, 68.0]
    finding = only(judge_cell(cell(recorded={"row": {"sentiment": wide}, "other": {"sentiment": FIVE}}), records(64.0)))

    assert finding.allowed == pytest.approx(float(t.ppf(0.9995, 8)) * sqrt(10.0) * sqrt(1.2) + 0.1)


def test_private_rows_are_pooled_apart(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Neither private rows nor other tasks enter the pool of a row without privacy."""
    recorded = {
        "row": {"sentiment": FIVE, "inference": [0.0, 50.0, 100.0]},
        "row-dp": {"sentiment": [10.0, 30.0, 50.0, 70.0, 90.0]},
    }
    finding = only(judge_cell(cell(recorded=recorded), records(72.0)))

    assert finding.allowed == pytest.approx(float(t.ppf(0.9995, 4)) * sqrt(2.5) * sqrt(1.2) + 0.1)


def test_private_by_the_table(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Whether a row is private is decided by its whole spec: here the table's, which one row sets aside."""
    recorded = {"row": {"sentiment": FIVE}, "plain": {"sentiment": [10.0, 30.0, 50.0, 70.0, 90.0]}}
    made = cell(recorded=recorded)
    row, plain = made.table.rows
    privacy = {"privacy": {"epsilon": 1.0, "delta": 0.1}}
    rows = [row, replace(plain, spec={"privacy": None})]
    table = replace(made.table, defaults=made.table.defaults | privacy, rows=rows)
    finding = only(judge_cell(replace(made, table=table), records(72.0)))

    assert finding.allowed == pytest.approx(float(t.ppf(0.9995, 4)) * sqrt(2.5) * sqrt(1.2) + 0.1)


def test_seeds_without_spread(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Seeds that all scored alike leave half a step of the dev set: one example more or less is off."""
    same = cell(recorded={"row": {"sentiment": [70.0] * 5}}, dev=50)

    # The margin is 1.96 standard errors of 50 examples, 12.7 points.
    assert ["reproduced", "reproduced", "differs"] == [judge_cell(same, records(x)).status for x in (70.0, 71.0, 72.0)]


@pytest.mark.parametrize(
    ("ours", "status"),
    [
        (72.0, "reproduced"),
        (71.42, "reproduced"),
        (72.58, "reproduced"),
        (72.59, "undecided"),
        (71.41, "undecided"),
        (76.9, "undecided"),
        (67.1, "undecided"),
        (77.0, "amber"),
        (67.0, "amber"),
        (87.0, "amber"),
        (57.0, "amber"),
        (87.1, "differs"),
        (56.9, "differs"),
    ],
)
def test_recorded_status(
    cell: Callable[..., Cell], records: Callable[..., list[Record]], ours: float, status: str
) -> None:
    """Within 0.58 of the mean a score is proved equal, up to 4.93 nothing is shown, up to 15.04 a word is due."""
    # The margin is 1.960 sqrt(72 * 28 / 400) = 4.400. Of it sqrt(2.5) sqrt(1/5 + 1) = 1.732 times t(4) = 2.132, the
    # quantile at 5 % one-sided, and rounding, 0.125, are taken off. Amber has 2.776 in its place, red 8.610.
    made = cell(recorded={"row": {"sentiment": FIVE}}, dev=400)

    assert status == judge_cell(made, records(ours)).status


@pytest.mark.parametrize(
    ("ours", "status"),
    [
        (70.0, "no expectation"),
        (72.0, "no expectation"),
        (68.0, "no expectation"),
        (72.01, "differs"),
        (67.9, "differs"),
    ],
)
def test_printed_status(
    cell: Callable[..., Cell], records: Callable[..., list[Record]], ours: float, status: str
) -> None:
    """A count is right up to its tolerance, ends included, and knows no amber; alone it tells nothing of learning."""
    made = cell({"trainable": Expect(value=70.0, within=2.0)})

    assert status == judge_cell(made, records(50.0, trainable=ours)).status


@pytest.mark.parametrize(
    ("ours", "status"), [(99.0, "reproduced"), (70.0, "reproduced"), (68.0, "reproduced"), (67.9, "differs")]
)
def test_at_least(cell: Callable[..., Cell], records: Callable[..., list[Record]], ours: float, status: str) -> None:
    """Of a number that is a lower bound, more is no difference, and the verdict's text says so."""
    made = cell({"trainable": Expect(value=70.0, within=2.0, at_least=True)})
    finding = only(judge_cell(made, records(50.0, trainable=ours)))

    assert status == finding.status
    assert "expected at least 70, ours " in str(finding)


def beside(cell: Cell, *others: Expect) -> Cell:
    """The same cell in a table with further rows of printed scores."""
    rows = [Row(id=f"other{i}", title="", cells={cell.task: {"score": other}}) for i, other in enumerate(others)]
    return replace(cell, table=replace(cell.table, rows=[cell.row, *rows]))


def quantile(freedom: int) -> float:
    """Of t, for the red band."""
    return float(t.ppf(0.9995, freedom))


def test_printed_band(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """A printed score over five runs has a band by its printed spread, and half a step of its digits: RTE's 6.68."""
    finding = only(judge_cell(cell({"score": Expect(value=81.5, std=2.18, runs=5)}), records(80.0)))

    # 2.776 and 8.610 are the tabled quantiles of t with four degrees of freedom.
    assert finding.unusual == pytest.approx(2.776 * 2.18 * sqrt(1.2) + 0.05, abs=2e-3)
    assert finding.allowed == pytest.approx(8.610 * 2.18 * sqrt(1.2) + 0.05, abs=2e-3)


def test_printed_band_pools_the_task(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """The spreads of the other rows of the task are pooled in, and so is that of our runs."""
    made = beside(cell({"score": Expect(value=72.1, std=1.0, runs=5)}), Expect(value=60.0, std=2.0, runs=3))
    one, five = (only(judge_cell(made, records(*scores))) for scores in ([72.0], FIVE))

    assert one.allowed == pytest.approx(quantile(6) * sqrt((4 * 1 + 2 * 4) / 6) * sqrt(1.2) + 0.05)
    assert five.allowed == pytest.approx(quantile(10) * sqrt((4 * 1 + 2 * 4 + 4 * 2.5) / 10) * sqrt(0.4) + 0.05)


@pytest.mark.parametrize(
    ("runs", "status"), [((81.4,), "reproduced"), ((80.0,), "undecided"), ((80.0, 79.6, 80.4), "reproduced")]
)
def test_more_runs_decide(
    cell: Callable[..., Cell], records: Callable[..., list[Record]], runs: tuple[float, ...], status: str
) -> None:
    """What one run leaves undecided three prove: RTE 81.5 with a spread of 1.93 over five rows, 277 examples."""
    rows = [Expect(value=70.5, std=1.93, runs=5)] * 4
    made = beside(cell({"score": Expect(value=81.5, std=1.93, runs=5)}, dev=277), *rows)
    finding = only(judge_cell(made, records(*runs)))

    # t(20) = 1.725 and t(22) = 1.717 are tabled; three runs bring the spread to sqrt((20 * 1.93^2 + 2 * 0.4^2) / 22).
    one, three = 1.725 * 1.93 * sqrt(1.2) + 0.05, 1.717 * sqrt((20 * 1.93**2 + 0.32) / 22) * sqrt(1 / 5 + 1 / 3) + 0.05
    assert finding.unsure == pytest.approx(one if len(runs) == 1 else three, rel=1e-3)
    assert finding.margin == pytest.approx(1.96 * 100 * sqrt(0.815 * 0.185 / 277), rel=1e-4)
    assert status == finding.status


def test_coarse_digits_prove_less(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Half a step of the printed digits counts as unsure: a column of whole points hides as much."""
    score = Expect(value=70.0, std=1.0, runs=5)
    tenths, wholes = (
        only(judge_cell(beside(cell({"score": score}), Expect(value=other)), records(70.0))) for other in (70.5, 71.0)
    )

    assert wholes.unsure - tenths.unsure == pytest.approx(0.45)


def test_too_few_runs(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Where even equal means prove nothing the words say so; else they give the width in which they do."""
    few, many = (
        only(judge_cell(cell({"score": Expect(value=70.5, std=std, runs=5)}), records(70.5))) for std in (3.0, 1.0)
    )

    assert ("undecided", "reproduced") == (few.status, many.status)
    assert few.band.startswith("too few runs to be reproduced, too few runs there to decide, amber beyond 9.17, ")
    # 1.96 sqrt(70.5 * 29.5 / 500) = 3.997, less 2.132 sqrt(1.2) and 0.05.
    assert many.band.startswith("reproduced within 1.61, amber beyond 3.09, ")


def test_collapsed_runs_of_ours(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Runs of ours of which one collapsed do not widen the band that they are held to."""
    made = cell({"score": Expect(value=70.5, std=1.0, runs=5)})
    score, spread = judge_cell(made, records(70.0, 70.0, 70.0, 70.0, 20.0)).findings

    assert score.allowed == pytest.approx(quantile(4) * sqrt(0.4) + 0.05)
    assert ("differs", "amber") == (score.status, spread.status)


def test_collapsed_beside_collapsed(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Nor do they where a printed row collapsed as well: each alone stands out, together they would hide each other."""
    rows = [Expect(value=70.5, std=std, runs=5) for std in (0.56, 0.84, 4.17, 1.41)]
    score, spread = judge_cell(beside(cell({"score": rows[0]}), *rows[1:]), records(66.0, 70.0, 74.0)).findings
    rest = sqrt((0.56**2 + 0.84**2 + 1.41**2) / 3)

    assert score.allowed == pytest.approx(quantile(12) * rest * sqrt(1 / 5 + 1 / 3) + 0.05)
    assert (rest, 4.0) == pytest.approx((spread.expected, spread.ours))


@pytest.mark.parametrize(("ratio", "alarmed"), [(3.1, False), (3.2, True)])
@pytest.mark.parametrize("printed", [True, False])
def test_alarm(
    cell: Callable[..., Cell], records: Callable[..., list[Record]], ratio: float, alarmed: bool, printed: bool
) -> None:
    """Three runs that spread 3.16 times as much as others with 20 degrees of freedom turn amber, and nothing fails."""
    # F(2, 20) at 0.1 % is 9.95, tabled, and its root 3.155; 72 - s, 72, 72 + s spread by s.
    step = ratio * sqrt(2.5)
    if printed:
        five = Expect(value=72.0, std=sqrt(2.5), runs=5)
        made = beside(cell({"score": five}), *[replace(five, value=70.5)] * 4)
    else:
        made = cell(recorded={name: {"sentiment": FIVE} for name in "abcde"})
    verdict = judge_cell(made, records(72.0 - step, 72.0, 72.0 + step))
    alarms = [finding for finding in verdict.findings if finding.quantity == "spread"]

    assert alarmed == bool(alarms)
    assert ("amber" if alarmed else "reproduced") == verdict.status
    for alarm in alarms:
        assert alarm.status == "amber"
        assert [sqrt(2.5), step] == pytest.approx([alarm.expected, alarm.ours])
        assert f"Ours are {72 - step:.2f}, 72.00, {72 + step:.2f}" in str(verdict)


@pytest.mark.parametrize("scores", [(72.0,), (90.0,), (72.0, 72.0, 72.0)], ids=str)
def test_no_alarm(cell: Callable[..., Cell], records: Callable[..., list[Record]], scores: tuple[float, ...]) -> None:
    """One run, or runs that all score alike, have no spread to be alarmed of."""
    for expect, recorded in (
        ({"score": Expect(value=72.0, std=0.1, runs=5)}, None),
        (None, {"row": {"sentiment": FIVE}}),
    ):
        assert ["score"] == [
            finding.quantity for finding in judge_cell(cell(expect, recorded), records(*scores)).findings
        ]


def test_equal_runs_of_ours(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Runs of ours that all score alike say nothing of a spread."""
    made = cell({"score": Expect(value=70.5, std=1.0, runs=5)})

    assert only(judge_cell(made, records(70.0, 70.0))).allowed == pytest.approx(quantile(4) * sqrt(0.7) + 0.05)


def test_printed_spreads(cell: Callable[..., Cell]) -> None:
    """Spreads over several runs count, those of other rows of the task too; a single run's or none does not."""
    score = Expect(value=70.0, std=1.0, runs=5)
    made = beside(
        cell({"score": score}), Expect(value=60.0, std=2.0, runs=3), Expect(value=50.0), replace(score, runs=1)
    )

    assert [Spread(1.0, 4), Spread(2.0, 2)] == printed_spreads(made)


def test_no_printed_spread(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Without a spread 0.7 of the error of the dev set stands for it: 0.7 sqrt(0.801 * 0.199 / 400)."""
    made = cell({"score": Expect(value=80.1)}, dev=400)
    guess = 70 * sqrt(0.801 * 0.199 / 400)
    finding = only(judge_cell(made, records(80.0)))

    assert [Spread(pytest.approx(guess), 8)] == printed_spreads(made)  # type: ignore[arg-type]
    assert finding.allowed == pytest.approx(quantile(8) * guess * sqrt(2) + 0.05)


def test_wide_printed_row_keeps_its_own(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """A row that the paper prints with far more spread than the others is held to its own: 2.776 is t of 4 degrees."""
    quiet = [Expect(value=70.0 + i, std=0.5, runs=5) for i in range(4)]
    finding = only(judge_cell(beside(cell({"score": Expect(value=70.5, std=4.0, runs=5)}), *quiet), records(70.0)))

    assert finding.unusual == pytest.approx(2.776 * 4.0 * sqrt(1.2) + 0.05, abs=5e-3)


def test_step_of_the_column(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """70.0 beside 70.5 is printed to a tenth though JSON has no zero; 70 beside 71 to a whole: half a step is added."""
    score = Expect(value=70.0, std=1.0, runs=5)
    tenths, wholes = (
        only(judge_cell(beside(cell({"score": score}), Expect(value=other)), records(70.0))) for other in (70.5, 71.0)
    )

    assert wholes.unusual - tenths.unusual == pytest.approx(0.45)


def test_noise_spreads(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """Where no spread is printed, that of a private row is taken to be twice that of another."""
    expect = {"score": Expect(value=70.5)}
    plain, private = (only(judge_cell(cell(expect, recorded={name: {}}), records(70.0))) for name in ("row", "row-dp"))

    assert private.unusual - 0.05 == pytest.approx(2 * (plain.unusual - 0.05))


def test_best_of(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """From the best of five runs 1.163 spreads are taken off before ours is held against it."""
    made = cell({"score": Expect(value=80.1, best_of=5)}, dev=400)
    single = cell({"score": Expect(value=80.1)}, dev=400)
    finding, other = (only(judge_cell(each, records(80.0))) for each in (made, single))

    # 1.16296 is the tabled mean of the largest of five normal values.
    assert finding.expected == pytest.approx(80.1 - 1.16296 * 70 * sqrt(0.801 * 0.199 / 400), abs=1e-4)
    assert finding.allowed == other.allowed
    assert other.expected == 80.1


def test_unasserted(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """What is only shown is no finding; of a cell of nothing else nothing is expected."""
    shown = Expect(value=1.0, asserted=False)
    both = judge_cell(cell({"epoch_seconds": shown, "score": Expect(value=70.0)}), records(70.0, epoch_seconds=99.0))
    alone = judge_cell(cell({"epoch_seconds": shown}), records(70.0, epoch_seconds=99.0))

    assert ["score"] == [finding.quantity for finding in both.findings]
    assert ("no expectation", []) == (alone.status, alone.findings)


def test_mean_over_runs(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """A printed number is held against the mean of our runs."""
    finding = only(judge_cell(cell({"score": Expect(value=70.0)}), records(69.0, 72.0)))

    assert finding.ours == 70.5


def test_worst_counts(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """A cell is as bad as its worst quantity, and every quantity is in the verdict's text."""
    expect = {"trainable": Expect(value=10.0), "peak_bytes": Expect(value=70.0, within=2.0)}
    verdict = judge_cell(cell(expect), records(71.0, trainable=11.0, peak_bytes=71.0))

    assert ["differs", "reproduced"] == [finding.status for finding in verdict.findings]
    assert verdict.status == "differs"
    assert [
        "p/t/row/sentiment: differs",
        "OFF   trainable: expected 10, ours 11, gap +1, allowed 0",
        "ok    peak_bytes: expected 70, ours 71, gap +1, allowed 2",
        "again: peft-dp run p/t/row/sentiment",
    ] == str(verdict).splitlines()


def test_failure_text(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """A failure says both numbers, all widths, what they rest on, the loss that would be seen, and the command."""
    made = cell({"score": Expect(value=81.5, std=2.0, runs=5)}, dev=2000)
    three = [60.0, 62.0, 64.0]

    # Spread 2 on either side, 6 degrees of freedom, times sqrt(1/5 + 1/3) = 0.7303: t(6) = 1.943, 2.447, 5.959 are
    # tabled, and 1.96 standard errors of 2,000 examples are 1.702, less than 1.943 x 1.461. The power is scipy's.
    loss = brentq(lambda x: nct.sf(t.ppf(0.975, 6), 6, x) - 0.8, 0.1, 9.0) * 2 * sqrt(8 / 15)
    assert [
        "p/t/row/sentiment: differs",
        "OFF   score: expected 81.5, ours 62, gap -19.5, too few runs to be reproduced, amber beyond 3.62, "
        "differs beyond 8.75: spread 2 over seeds, 6 degrees of freedom, runs 5 there and 3 here, rounding 0.05; "
        f"a loss of {loss:.3g} is seen with power 80%",
        "again: peft-dp run p/t/row/sentiment",
    ] == str(judge_cell(made, records(*three))).splitlines()


@pytest.mark.parametrize(
    ("loss", "status"),
    [(0.5, "reproduced"), (0.54, "reproduced"), (0.56, "amber"), (0.63, "amber"), (0.66, "differs"), (None, "differs")],
)
def test_loss(
    cell: Callable[..., Cell],
    records: Callable[..., list[Record]],
    monkeypatch: pytest.MonkeyPatch,
    loss: float | None,
    status: str,
) -> None:
    """The last loss has a band of its own, t(4) x 0.0158 x sqrt(1/5 + 1); one that is not finite differs."""
    monkeypatch.setattr(Cell, "losses", {"row": {"sentiment": [0.48, 0.49, 0.50, 0.51, 0.52]}})
    first, last = (Epoch(loss=x, steps=1, examples=1, tokens=1, seconds=1.0, clipped=0.0) for x in (9.0, loss))
    (run,) = records(72.0)
    score, found, *_ = judge_cell(
        cell(recorded={"row": {"sentiment": FIVE}}), [replace(run, trail=[first, last])]
    ).findings

    # The quantiles are 2.776 and 8.610.
    assert (0.0481, 0.1491) == pytest.approx((found.unusual, found.allowed), abs=1e-4)
    assert ("loss", status) == (found.quantity, found.status)
    assert score.quantity == "score"


def test_loss_without_a_trail(
    cell: Callable[..., Cell], records: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that say nothing of their losses do not reproduce one."""
    monkeypatch.setattr(Cell, "losses", {"row": {"sentiment": [0.48, 0.49, 0.50, 0.51, 0.52]}})
    found = judge_cell(cell(recorded={"row": {"sentiment": FIVE}}), records(72.0)).finding("loss")

    assert found
    assert "differs" == found.status


def test_private_loss(
    cell: Callable[..., Cell], records: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a private run is held to nothing: it follows the noise."""
    monkeypatch.setattr(Cell, "losses", {"row-dp": {"sentiment": [0.48, 0.49, 0.50, 0.51, 0.52]}})
    (run,) = records(72.0)
    trail = [Epoch(loss=9.0, steps=1, examples=1, tokens=1, seconds=1.0, clipped=0.5)]
    found = judge_cell(cell(recorded={"row-dp": {"sentiment": FIVE}}), [replace(run, trail=trail)]).findings

    assert ["score"] == [finding.quantity for finding in found]


@pytest.mark.parametrize(
    ("seen", "status"), [(0.99, "differs"), (0.993, "reproduced"), (1.06, "reproduced"), (1.064, "differs")]
)
def test_noise(cell: Callable[..., Cell], records: Callable[..., list[Record]], seen: float, status: str) -> None:
    """The noise that was seen may lie off by chance, and above by what the drawn examples add at most."""
    (run,) = records(72.0)
    epoch = Epoch(loss=9.0, steps=5, examples=160, tokens=1, seconds=1.0, clipped=0.5, noise=seen, released=50_000)
    run = replace(run, trail=[epoch] * 2, ledger={"epsilon": 8.0, "noise_multiplier": 1.0})
    found = judge_cell(cell(recorded={"row-dp": {"sentiment": FIVE}}), [run]).finding("noise")

    # Of 100,000 values: 3.29 sqrt(2e-5) + 0.001 = 0.0157 and 2 x 3.29^2 / 1e5 = 0.0002, so sqrt(0.9841) at least;
    # examples add 2 (160^2 / 5 + 160) = 10,560, and 2 x 3.29 sqrt(10,560) = 676 with the noise: sqrt(1.1281) at most.
    assert found
    assert status == found.status
    assert (0.9920 if seen < 1 else 1.0621) == pytest.approx(1 + copysign(found.allowed, seen - 1), abs=1e-4)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0])
def test_noise_of_a_run(
    cell: Callable[..., Cell],
    spec: Callable[..., Spec],
    places: Places,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
) -> None:
    """A run whose noise is not what its ledger says differs, whatever its score."""
    normal = rng.normal
    monkeypatch.setattr(rng, "normal", lambda source, like, std: normal(source, like, factor * std))
    found = runs([spec(privacy=Privacy(epsilon=8.0, delta=1e-3, accountant="rdp"))], places)
    finding = judge_cell(cell(recorded={"row-dp": {"sentiment": FIVE}}), found).finding("noise")

    assert finding
    assert ("reproduced" if factor == 1.0 else "differs") == finding.status


@pytest.mark.parametrize(("ours", "status"), [(50.0, "known difference"), (70.0, "reproduced")])
def test_known_difference(
    cell: Callable[..., Cell], records: Callable[..., list[Record]], ours: float, status: str
) -> None:
    """A difference that the row announces is known; without the difference the cell is judged like any other."""
    verdict = judge_cell(cell({"score": Expect(value=70.0, std=0.5, runs=5)}, differs="a misprint"), records(ours))

    assert (status, "a misprint") == (verdict.status, verdict.reason)


def test_not_run(cell: Callable[..., Cell]) -> None:
    """A cell without records did not run."""
    assert Verdict(cell=cell(), reason="no GPU").status == "not run"


def test_nothing_expected(cell: Callable[..., Cell], records: Callable[..., list[Record]]) -> None:
    """A cell of which nothing is expected is run, shown, and called that."""
    verdict = judge_cell(cell(), records(50.0))

    assert "no expectation" == verdict.status
    assert len(verdict.records) == 1


def test_not_a_number_differs() -> None:
    """A value that is no number, as the mean of losses of which one is not finite, reproduces nothing."""
    finding = Finding(quantity="loss", expected=0.7, ours=float("nan"), allowed=0.1, unusual=0.1)

    assert "differs" == finding.status
