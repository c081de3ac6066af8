"""A run beside the recorded run of its seed: bands, places, other streams, baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from peft_dp import Record, Spec
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.verdicts.cells import judge_cell
from peft_dp.suite.verdicts.finding import Finding
from peft_dp.suite.verdicts.replay import FACTOR, FLOORS, MOST, Replay, bands, kept_of, replay, unlike
from peft_dp.training.trail import Epoch, Step, Trace

Make = Callable[..., Spec]

STEP = Step(
    batch="b1",
    tokens=100,
    loss=0.7,
    norms=3.0,
    clipped=4,
    summed=(10.0, 3.0),
    released=(20.0, -5.0),
    given=(2.0, 0.5),
    update=(0.1, 0.02),
)
TRACE = Trace(
    streams={"batches": "s1", "noise": "s2"},
    order="o",
    initial=(5.0, 1.0),
    steps=[STEP, replace(STEP, batch="b2")],
    answers="0110" * 25,
)


@pytest.fixture
def run(spec: Make) -> Callable[..., Record]:
    """Makes a record with a trace."""

    def make(seed: int = 0, *, score: float = 80.0, device: str = "cpu", trace: Trace | None = TRACE) -> Record:
        epochs = [Epoch(loss=loss, clipped=None, examples=8, tokens=200, steps=2, seconds=1.0) for loss in (0.69, 0.5)]
        return Record(
            key="0" * 64,
            spec=spec(seed=seed),
            values={"score": score},
            ledger=None,
            trail=epochs,
            trace=trace,
            cost={},
            sources={"data": "d", "files": "f", "weights": "w", "code": "c"},
            environment={"device": device, "versions": {"torch": "2", "peft-dp": "1"}, "threads": 1},
        )

    return make


def beside(record: Record, other: Record, drift: dict[str, float] | None = None) -> Replay:
    """The replay of a record beside another of its seed."""
    return replay(record, kept_of(other), other.values["score"], drift)


def stepped(at: int, **fields: Any) -> Trace:
    """The trace with other values in one step."""
    steps = [replace(step, **fields) if number == at else step for number, step in enumerate(TRACE.steps, start=1)]
    return replace(TRACE, steps=steps)


def test_equal(run: Callable[..., Record]) -> None:
    """Equal runs repeat, with no gap at all."""
    found = beside(run(), run())

    assert found.parted is None
    assert not any(gap.size for gap in found.gaps)


@pytest.mark.parametrize(
    ("trace", "place"),
    [
        (replace(TRACE, order="p"), "order of batches"),
        (replace(TRACE, initial=(5.0, 1.001)), "initial values"),
        (replace(TRACE, steps=[STEP]), "number of traced steps"),
        (stepped(1, batch="b3"), "batch of step 1"),
        (stepped(1, tokens=99), "tokens of step 1"),
        (stepped(1, loss=0.70002), "loss of step 1"),
        (stepped(1, loss=None), "loss of step 1"),
        (stepped(2, norms=3.001), "norms of the gradients of step 2"),
        (stepped(1, clipped=6), "number clipped of step 1"),
        (stepped(1, summed=(10.001, 3.0)), "clipping of step 1"),
        (stepped(1, released=(20.0, -4.9)), "noise of step 1"),
        (stepped(1, given=(2.001, 0.5)), "mean gradient of step 1"),
        (stepped(2, update=(0.101, 0.02)), "update of step 2"),
        (stepped(2, update=None), "update of step 2"),
        (replace(TRACE, answers="0110" * 24 + "1001"), "answers"),
        (replace(TRACE, answers="0110"), "number of answers"),
    ],
)
def test_place(run: Callable[..., Record], trace: Trace, place: str) -> None:
    """The first quantity beyond its band is named, whatever comes after it."""
    later = replace(trace, answers="1" * 100) if place != "number of answers" else trace
    for one in (trace, later):
        parted = beside(run(trace=one), run()).parted
        assert parted
        assert place == parted.place


def test_rounding_is_no_difference(run: Callable[..., Record]) -> None:
    """What moves by less than its floor, and one answer of a hundred, repeats."""
    trace = replace(
        stepped(1, loss=0.7 * (1 + 1e-6), summed=(10.00005, 3.00005), update=(0.1000005, 0.02)),
        answers="0" + TRACE.answers[1:-1] + "1" if isinstance(TRACE.answers, str) else "",
    )

    assert beside(run(trace=trace), run()).parted is None


def test_score_that_answers_do_not_give(run: Callable[..., Record]) -> None:
    """The same answers with another score is a change of the score: a record that was edited, or of the metric."""
    parted = beside(run(score=75.0), run()).parted

    assert parted
    assert "score" == parted.place


def test_bands() -> None:
    """A band is the floor, or a multiple of the drift; of a loss in float32 never over 20 parts in a million."""
    assert bands("fp32", None) == FLOORS["fp32"]
    wide = bands("fp32", {"loss": 1e-3, "values": 1e-3, "answers": 2.0})
    assert wide == FLOORS["fp32"] | {"loss": MOST, "values": FACTOR * 1e-3, "answers": FACTOR * 2.0}
    assert MOST == 20e-6
    assert bands("bf16", {"loss": 2e-3})["loss"] == FACTOR * 2e-3


def test_drift_widens(run: Callable[..., Record]) -> None:
    """What parts without a measured drift repeats within a multiple of it."""
    moved = run(trace=stepped(1, update=(0.1001, 0.02)))

    assert beside(moved, run()).parted
    assert beside(moved, run(), {"update": 1e-3}).parted is None


def test_other_generator(run: Callable[..., Record]) -> None:
    """On another device other streams are named, and nothing is compared; on the same one they are a fault."""
    trace = replace(TRACE, streams=TRACE.streams | {"noise": "s3"})
    there, here = beside(run(device="cuda", trace=trace), run()), beside(run(trace=trace), run())

    assert ["noise"] == list(there.streams)
    assert "seed 0 is no replay of its recording: another generator draws noise here" == str(there)
    assert here.parted
    assert ("random numbers", inf) == (here.parted.place, here.parted.size)


def test_no_trace(run: Callable[..., Record]) -> None:
    """A record without a trace replays nothing, and says so."""
    with pytest.raises(ValueError, match="keeps no trace to replay"):
        kept_of(run(trace=None))


def test_unlike() -> None:
    """What differs between two runs' circumstances is listed, dates and the like left out."""
    then = {"versions": {"torch": "2", "peft": "1"}, "threads": 1, "date": "a"}
    now = {"versions": {"torch": "3", "peft": "1"}, "threads": 2, "date": "b"}

    assert "torch 2 -> 3, threads 1 -> 2" == unlike(now, then)


class TestCell:
    """What a cell's verdict makes of replays."""

    @pytest.fixture
    def recorded(self, cell: Callable[..., Cell], run: Callable[..., Record]) -> Cell:
        """A cell whose seeds 0 to 4 were recorded with traces."""
        scores = [80.0, 70.0, 71.0, 69.0, 72.0]
        made = cell(recorded={"row": {"sentiment": scores}})
        held = vars(made)
        held["runs"] = {seed: kept_of(run(seed, score=score)) for seed, score in enumerate(scores)}
        held["scores_by_seed"] = dict(enumerate(scores))
        held["drift"], held["provenance"] = {}, {"threads": 2}
        return made

    def found(self, cell: Cell, *records: Record, **options: Any) -> tuple[str, Finding]:
        """Status of the cell, and what is said of its replay."""
        verdict = judge_cell(cell, records, **options)
        (finding,) = [finding for finding in verdict.findings if finding.quantity == "replay"]
        return verdict.status, finding

    def test_repeats(self, recorded: Cell, run: Callable[..., Record]) -> None:
        """One run decides: seed 0 repeats its own recording, however far it lies from the other seeds."""
        status, finding = self.found(recorded, run(0))

        assert ("reproduced", True) == (status, finding.repeats)
        assert "seed 0 repeats its recording" in str(finding)

    def test_parts(self, recorded: Cell, run: Callable[..., Record]) -> None:
        """A run that parts is red although its score is within the seeds' spread; place and circumstances are named."""
        status, finding = self.found(recorded, run(1, score=70.0, trace=stepped(1, released=(20.4, -5.1))))

        assert "differs" == status
        assert "seed 1 parts from its recording at: noise of step 1 by 0.02 of itself" in finding.band
        assert finding.band.endswith("what differs: threads 2 -> 1")

    def test_changed_settings(self, recorded: Cell, run: Callable[..., Record]) -> None:
        """A row whose settings changed since it was recorded is red, and says what to do."""
        vars(recorded)["runs"] = {0: replace(recorded.runs[0], spec="another")}
        status, finding = self.found(recorded, run(0))

        assert "differs" == status
        assert "record the row again with `peft-dp bless`" in finding.band

    def test_other_stream(self, recorded: Cell, run: Callable[..., Record]) -> None:
        """Where a stream is another, the band over the other seeds decides, and the words say why."""
        trace = replace(TRACE, streams=TRACE.streams | {"noise": "s3"})
        verdict = judge_cell(recorded, [run(0, score=70.5, device="cuda", trace=trace)])
        score = verdict.finding("score")

        assert verdict.status in {"consistent", "undecided", "reproduced"}
        assert score
        assert score.expected == 70.5  # seeds 1 to 4: its own is left out
        assert "another generator draws noise here" in str(verdict)

    def test_baseline(self, cell: Callable[..., Cell], run: Callable[..., Record]) -> None:
        """Any run is held to an earlier one of its spec and seed; without one that is said."""
        before = run(0)
        baseline = {before.spec.digest: before}
        same, moved = run(0), run(0, trace=stepped(1, loss=0.71))

        assert "reproduced" == self.found(cell(), same, baseline=baseline)[0]
        status, finding = self.found(cell(), moved, baseline=baseline)
        assert "differs" == status
        assert "parts from the baseline at: loss of step 1" in finding.band
        status, finding = self.found(cell(), run(1), baseline=baseline)
        assert "the baseline has no run of it" in finding.band
        assert "differs" != status
