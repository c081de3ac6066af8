"""Two folders of records: what moved beyond noise, and what is named as the cause."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp, log, sqrt
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from scipy.stats import t

from peft_dp import Places, Record, Spec
from peft_dp.records import Records
from peft_dp.runs import runs
from peft_dp.spec import Optimiser, Privacy
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main
from peft_dp.suite.papers import reader
from peft_dp.suite.verdicts.drift import Drift, drift, render_drift
from peft_dp.suite.verdicts.folder import read_folder

Make = Callable[..., Spec]
FIVE = [70.0, 71.0, 72.0, 73.0, 74.0]
"""Variance 2.5."""
FOLDER = reader.FOLDER
PRIVACY = Privacy(epsilon=8.0, delta=1e-3)


@pytest.fixture(autouse=True)
def no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is a cell's: the only table has no row."""
    table = tmp_path / "expected" / "no" / "rows.json"
    table.parent.mkdir(parents=True)
    texts = {"paper": "no", "table": "rows", "title": "Empty", "source": "a test", "budget": "smoke"}
    table.write_text(json.dumps(texts | {"defaults": {}, "tasks": {}, "rows": []}))
    monkeypatch.setattr(reader, "FOLDER", tmp_path / "expected")


def keep(
    folder: Path,
    spec: Spec,
    scores: Sequence[float],
    *,
    torch: str = "1",
    seconds: Sequence[float] = (),
    peak: float = 1e6,
    ledger: dict[str, Any] | None = None,
    together: int = 1,
    workers: int = 1,
    gpu: str | None = None,
    **values: float,
) -> None:
    """Keeps a record a score, of seeds 0, 1, ..."""
    for seed, score in enumerate(scores):
        Records(folder).save(
            Record(
                key=f"{spec.seeded(seed).digest}",
                spec=spec.seeded(seed),
                values={"score": score} | values,
                ledger=ledger,
                trail=[],
                cost={"epoch_seconds": seconds[seed] if seconds else 1.0, "peak_bytes": peak},
                sources={"data": "d", "weights": "w", "code": "c"},
                environment={
                    "versions": {"torch": torch},
                    "seeds_together": together,
                    "side_by_side": workers,
                    "gpu": gpu,
                    "date": folder.name,
                },
            )
        )


def between(folder: Path) -> Drift:
    """The drift from the folder's `a` to its `b`."""
    return drift(read_folder(folder / "a"), read_folder(folder / "b"))


def candidates(found: Drift, kind: str = "score") -> list[str]:
    """What may be the cause."""
    return [one.name for one in found.differs[kind] if one.candidate]


def test_changed_learning_rate(spec: Make, places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two real runs of two methods, one with another learning rate, it names the rate as the cause."""
    common: dict[str, Any] = {"task": "entities", "readout": "tokens", "train": 60, "dev": 60, "dropout": False}
    for name, rate in (("a", 0.1), ("b", 0.003)):
        for method, own, epochs in (("head", rate, 4), ("bitfit", 0.01, 1)):
            every = spec(method=method, optimiser=Optimiser(rate=own), epochs=epochs, **common)
            runs([every.seeded(seed) for seed in range(3)], places, Records(tmp_path / name))
    code = main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    found = json.loads(capsys.readouterr().out)
    words = {change["name"]: (change["word"], "score" in change["moved"]) for change in found["changes"]}
    (cause,) = [one for one in found["differs"]["score"] if one["candidate"]]

    assert code == 1
    assert {"head entities": ("worse", True), "bitfit entities": ("same", False)} == words
    assert ("optimiser.rate", "0.1", "0.003") == (cause["name"], cause["before"], cause["after"])


def test_nothing_moved(spec: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder beside itself has not moved."""
    keep(tmp_path / "a", spec(), FIVE, ledger={"epsilon": 8.0, "noise_multiplier": 1.0})

    assert 0 == main(["compare", str(tmp_path / "a"), str(tmp_path / "a")])
    assert "nothing moved beyond chance; spec, hashes, machine and versions are the same" in capsys.readouterr().out


@pytest.mark.parametrize(("share", "word"), [(0.99, "within noise"), (1.01, "better"), (-1.01, "worse"), (0, "same")])
def test_score(spec: Make, tmp_path: Path, share: float, word: str) -> None:
    """A score moved where its mean leaves the t interval at 0.1 % of the spread over seeds of both folders."""
    noise = t.ppf(0.9995, 8) * sqrt(2.5) * sqrt(1 / 5 + 1 / 5)
    keep(tmp_path / "a", spec(), FIVE)
    keep(tmp_path / "b", spec(), [score + share * noise for score in FIVE])
    found = between(tmp_path)

    assert word == found.changes[0].word
    assert found.moved == (abs(share) > 1)
    if share:
        assert noise == pytest.approx(found.changes[0].noise)


def test_spread_of_a_seed_that_repeats(spec: Make, tmp_path: Path) -> None:
    """Seeds that gave the same in both folders tell of the spread but once."""
    keep(tmp_path / "a", spec(), FIVE)
    keep(tmp_path / "b", spec(), FIVE)

    assert between(tmp_path).changes[0].noise == pytest.approx(t.ppf(0.9995, 4) * sqrt(2.5) * sqrt(1 / 5 + 1 / 5))


def test_one_seed(spec: Make, tmp_path: Path) -> None:
    """Without seeds that repeat, the guess from the size of the dev set stands for the spread."""
    for name, score in (("a", 80.0), ("b", 81.0)):
        keep(tmp_path / name, spec(dev=400), [score])
    # 0.7 standard errors of an accuracy of 81 % on 400 examples, 8 degrees of freedom.
    noise = t.ppf(0.9995, 8) * 0.7 * 100 * sqrt(0.81 * 0.19 / 400) * sqrt(2)

    assert between(tmp_path).changes[0].noise == pytest.approx(noise)


def test_recorded_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell has its id, and the spread that was recorded of it."""
    monkeypatch.setattr(reader, "FOLDER", FOLDER)
    cell = papers.find("embedded/smoke/bitfit/sentiment")
    values: dict[str, Any] = {name: expect.value for name, expect in cell.expect.items()}
    for name, score in (("a", 80.0), ("b", 81.0)):
        keep(tmp_path / name, cell.spec, [score], **values)
    (change,) = between(tmp_path).changes
    scores = cell.recorded["bitfit"]["sentiment"]

    assert cell.id == change.name
    assert change.noise == pytest.approx(t.ppf(0.9995, len(scores) - 1) * stdev(scores) * sqrt(2), rel=1e-3)


def test_changed_library(spec: Make, tmp_path: Path) -> None:
    """A library that changed only where a score moved is the cause; one that changed everywhere is listed after."""
    other = spec(method="head")
    for name, shift, torch in (("a", 0.0, "1"), ("b", 20.0, "2")):
        keep(tmp_path / name, spec(), [score + shift for score in FIVE], torch=torch)
        keep(tmp_path / name, other, FIVE, torch="1")
    found = between(tmp_path)

    assert ["versions.torch"] == candidates(found)
    keep(tmp_path / "b", other, FIVE, torch="2")
    found = between(tmp_path)

    assert not candidates(found)
    assert [("versions.torch", 1, 1)] == [(one.name, one.moved, one.others) for one in found.differs["score"]]
    assert "nothing differs there alone" in render_drift(found)


def test_causes_in_order(spec: Make, tmp_path: Path) -> None:
    """What differs only where a score moved comes before what differs everywhere."""
    rates = {"a": 0.01, "b": 0.5}
    for name, shift, torch in (("a", 0.0, "1"), ("b", 20.0, "2")):
        moved = spec(optimiser=Optimiser(rate=rates[name]))
        keep(tmp_path / name, moved, [score + shift for score in FIVE], torch=torch)
        keep(tmp_path / name, spec(method="head"), FIVE, torch=torch)
    found = between(tmp_path).differs["score"]

    assert [("optimiser.rate", True), ("versions.torch", False)] == [(one.name, one.candidate) for one in found]


def test_costs_without_repeats(spec: Make, tmp_path: Path) -> None:
    """One run a folder gives a ratio, and no reason to call it more than chance."""
    keep(tmp_path / "a", spec(), [70.0])
    keep(tmp_path / "b", spec(), [70.0], seconds=[100.0], peak=5e6)
    (change,) = between(tmp_path).changes

    assert {"epoch_seconds": 100.0, "peak_bytes": 5.0} == change.ratios
    assert ({}, []) == (change.allowed, change.moved)


@pytest.mark.parametrize(("share", "moved"), [(0.99, []), (1.01, ["epoch_seconds"]), (-1.01, ["epoch_seconds"])])
def test_seconds(spec: Make, tmp_path: Path, share: float, moved: list[str]) -> None:
    """Seconds moved where their ratio leaves the t interval of the logarithm over repeats."""
    seconds = [1.0, 1.1, 1.2]
    logs = [log(second) for second in seconds]
    factor = t.ppf(0.9995, 4) * stdev(logs) * sqrt(1 / 3 + 1 / 3)
    keep(tmp_path / "a", spec(), FIVE[:3], seconds=seconds)
    keep(tmp_path / "b", spec(), FIVE[:3], seconds=[second * exp(share * factor) for second in seconds])
    (change,) = between(tmp_path).changes

    assert moved == change.moved
    assert exp(factor) == pytest.approx(change.allowed["epoch_seconds"])


def test_seconds_of_seeds_trained_together(spec: Make, tmp_path: Path) -> None:
    """Seeds that share a clock are no repeats."""
    keep(tmp_path / "a", spec(), FIVE, together=5)
    keep(tmp_path / "b", spec(), FIVE, together=5, seconds=[9.0] * 5)

    assert ({}, []) == (between(tmp_path).changes[0].allowed, between(tmp_path).changes[0].moved)


@pytest.mark.parametrize(("workers", "moved"), [(1, ["epoch_seconds", "peak_bytes"]), (2, ["peak_bytes"])])
def test_seconds_in_company(spec: Make, tmp_path: Path, workers: int, moved: list[str]) -> None:
    """Seconds taken beside other workers and alone are shown, and said not to compare; bytes compare as ever."""
    keep(tmp_path / "a", spec(), FIVE)
    keep(tmp_path / "b", spec(), FIVE, seconds=[2.0] * 5, peak=2e6, workers=workers)
    found = between(tmp_path)
    (change,) = found.changes

    assert moved == change.moved
    assert {"epoch_seconds": 2.0, "peak_bytes": 2.0} == change.ratios
    assert ("times taken with 1 and 2 workers side by side do not compare" in render_drift(found)) == (workers == 2)
    assert [one.name for one in found.differs["peak_bytes"]] == ["side_by_side"] * (workers == 2)


def test_seconds_of_another_card(spec: Make, tmp_path: Path) -> None:
    """Seconds taken on another card are shown, and said not to compare."""
    keep(tmp_path / "a", spec(), FIVE, gpu="A100")
    keep(tmp_path / "b", spec(), FIVE, seconds=[2.0] * 5, gpu="H100")
    found = between(tmp_path)

    assert not found.changes[0].moved
    assert "times taken on A100 and H100 do not compare: run all on one" in render_drift(found)


def test_repeats_in_company(spec: Make, tmp_path: Path) -> None:
    """Seeds of which one was taken beside another worker are no repeats of their seconds."""
    for name in ("a", "b"):
        keep(tmp_path / name, spec(), FIVE)
        keep(tmp_path / name, spec(), FIVE[:1], seconds=[9.0], workers=2)
    (change,) = between(tmp_path).changes

    assert {"peak_bytes"} == change.allowed.keys()
    assert change.uneven


def test_memory_that_repeats(spec: Make, tmp_path: Path) -> None:
    """Where repeats need the same bytes, a byte more has moved."""
    keep(tmp_path / "a", spec(), FIVE)
    keep(tmp_path / "b", spec(), FIVE, peak=1e6 + 1)

    assert ["peak_bytes"] == between(tmp_path).changes[0].moved


def test_ledger(spec: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any difference of what is promised counts; the shares of clipped examples promise nothing."""
    private = spec(privacy=PRIVACY)
    keep(tmp_path / "a", private, FIVE, ledger={"epsilon": 7.99, "noise_multiplier": 1.0, "clipped": [0.5]})
    keep(tmp_path / "b", private, FIVE, ledger={"epsilon": 7.99, "noise_multiplier": 1.0, "clipped": [0.6]})

    assert not between(tmp_path).moved
    keep(tmp_path / "b", private, FIVE, ledger={"epsilon": 7.98, "noise_multiplier": 1.0, "clipped": [0.6]})

    assert 1 == main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "privacy differs in 1 cell: bitfit sentiment epsilon 8\n  epsilon: 7.99 -> 7.98" in capsys.readouterr().out


def test_nearest_spec(spec: Make, tmp_path: Path) -> None:
    """A changed spec is held against the nearest of its method, task and privacy; what has none is named."""
    rate = replace(spec().optimiser, rate=0.5)
    keep(tmp_path / "a", spec(), [70.0])
    keep(tmp_path / "a", spec(method="head"), [70.0])
    keep(tmp_path / "b", spec(optimiser=rate), [70.0])
    keep(tmp_path / "b", spec(optimiser=rate, epochs=9), [70.0])
    keep(tmp_path / "b", spec(privacy=PRIVACY), [70.0])
    found = between(tmp_path)

    assert [{"optimiser.rate": ("0.01", "0.5")}] == [change.differs for change in found.changes]
    assert (["head sentiment"], {"bitfit sentiment", "bitfit sentiment epsilon 8"}) == (found.only[0], {*found.only[1]})


def test_equal_spec_first(spec: Make, tmp_path: Path) -> None:
    """A run that both folders have is not held against another."""
    keep(tmp_path / "a", spec(epochs=9), [70.0])
    keep(tmp_path / "a", spec(), [70.0])
    keep(tmp_path / "b", spec(), [70.0])
    found = between(tmp_path)

    assert [{}] == [change.differs for change in found.changes]
    assert 1 == len(found.only[0])


def test_other_seeds(spec: Make, tmp_path: Path) -> None:
    """Folders of different seeds say so."""
    keep(tmp_path / "a", spec(), FIVE)
    keep(tmp_path / "b", spec(), FIVE[:2])

    assert {"seed": ("0, 1, 2, 3, 4", "0, 1")} == between(tmp_path).changes[0].differs


def test_nothing_shared(spec: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders of different methods cannot be compared."""
    keep(tmp_path / "a", spec(), FIVE)
    keep(tmp_path / "b", spec(method="head"), FIVE)

    assert 2 == main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "share no run: compare folders of the same cells" in capsys.readouterr().err
