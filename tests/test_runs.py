"""Tests of the whole line on a tiny backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import peft_dp
from peft_dp import Places, Record, Spec
from peft_dp.measuring import scores
from peft_dp.records import Records
from peft_dp.runs import runs
from peft_dp.spec import Privacy
from peft_dp.training.fleet import share_frozen
from peft_dp.training.job import Job, Sources, build, find_sources
from peft_dp.training.run import Trained
from peft_dp.training.trail import Epoch, Trace

Make = Callable[..., Spec]
PRIVACY = Privacy(epsilon=8.0, delta=1e-3)


@pytest.mark.parametrize("privacy", [None, Privacy(epsilon=8.0, delta=1e-3)], ids=["plain", "private"])
@pytest.mark.parametrize("method", ["full", "head", "bitfit"])
def test_repeats(spec: Make, places: Places, method: str, privacy: Privacy | None) -> None:
    """The same spec twice gives the same record but for time, memory and machine."""
    first = peft_dp.run(spec(method=method, privacy=privacy), places)

    assert first.result() == peft_dp.run(spec(method=method, privacy=privacy), places).result()


@pytest.fixture
def private(spec: Make, places: Places) -> Record:
    """A private run whose last batch would be a smaller rest."""
    return peft_dp.run(spec(train=23, batch=6, epochs=3, privacy=PRIVACY), places)


@pytest.mark.parametrize("privacy", [None, PRIVACY], ids=["plain", "private"])
def test_another_seed(spec: Make, places: Places, privacy: Privacy | None) -> None:
    """Another seed is another run with other losses, of the same cost in steps and values."""
    first, second = (peft_dp.run(spec(seed=seed, privacy=privacy), places) for seed in (0, 1))

    assert first.key != second.key
    assert [epoch.loss for epoch in first.trail] != [epoch.loss for epoch in second.trail]
    assert {name: first.values[name] for name in scores.KNOWN} == {name: second.values[name] for name in scores.KNOWN}


def test_record(spec: Make, places: Places) -> None:
    """A record holds every quantity a row may ask for, an entry an epoch, and what it was made from."""
    record = peft_dp.run(spec(train=20), places)

    assert {*scores.KNOWN, *scores.TRAINED} == set(record.values)
    assert [(20, 3), (20, 3)] == [(epoch.examples, epoch.steps) for epoch in record.trail]
    assert {"data", "weights", "files", "code"} == set(record.sources)
    assert record.environment["device"] == "cpu"
    assert all(value > 0 for value in record.cost.values())
    assert {"epoch_seconds", "examples_per_second", "tokens_per_second", "peak_bytes"} == set(record.cost)


def test_ledger_of_a_plain_run(spec: Make, places: Places) -> None:
    """A run without privacy has no ledger, no noise, and clips nothing."""
    record = peft_dp.run(spec(), places)

    assert record.ledger is None
    assert record.values["noise_multiplier"] == 0
    assert {None} == {epoch.clipped for epoch in record.trail}


def test_ledger(private: Record) -> None:
    """The ledger holds what was spent, on how many steps of what, under which neighbours."""
    found: dict[str, Any] = private.ledger or {}
    steps = 3 * (23 // 6)

    assert 0 < found["epsilon"] <= 8.0
    assert {
        "steps": steps,
        "examples": 23,
        "sample_rate": 6 / 23,
        "sampling": "poisson",
        "clip": 1.0,
        "delta": 1e-3,
        "accountant": "prv",
        "logical_batch": 6,
        "matches_accountant": True,
        "neighbouring": "add or remove one example",
    }.items() <= found.items()
    assert private.values["steps"] == steps == sum(epoch.steps for epoch in private.trail)
    assert found["noise_multiplier"] == private.values["noise_multiplier"] > 0


def test_clipped(private: Record) -> None:
    """The share of clipped examples lies between 0 and 1, the same in the ledger and the trail."""
    shares: list[float] = (private.ledger or {})["clipped"]

    assert shares == [epoch.clipped for epoch in private.trail]
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize(("sampling", "matches"), [("poisson", True), ("shuffle", False)])
def test_shuffling_is_no_guarantee(spec: Make, places: Places, sampling: Any, matches: bool) -> None:
    """A ledger says that the epsilon of shuffled batches does not hold."""
    run = spec(privacy=PRIVACY)
    job = build(run, find_sources(run, places))
    epoch = Epoch(loss=0.0, clipped=0.5, examples=24, tokens=99, steps=3, seconds=1.0)
    nothing = Trace(streams={}, order="", initial=None, steps=[])
    found = Trained([epoch], 0, replace(job.plan, sampling=sampling), nothing, "cpu").ledger or {}

    assert (sampling, matches, 3) == (found["sampling"], found["matches_accountant"], found["steps"])


@pytest.mark.parametrize(
    ("method", "task", "expected"),
    [
        # d = 16, L = 2 and a feed-forward width m = 32, not 4 d: biases (7 d + m) L + d; a head of d + 1 an output.
        ("bitfit", "sentiment", (7 * 16 + 32) * 2 + 16 + 17 * 2),
        ("bitfit", "inference", (7 * 16 + 32) * 2 + 16 + 17 * 3),
        ("bitfit", "similarity", (7 * 16 + 32) * 2 + 16 + 17),
        ("head", "sentiment", 17 * 2),
    ],
)
def test_trainable(spec: Make, places: Places, method: str, task: str, expected: int) -> None:
    """The number of trained values is the closed form of the method's paper, and a head."""
    record = peft_dp.run(spec(method=method, task=task, epochs=1), places)

    assert expected == record.values["trainable"]


@pytest.mark.parametrize("privacy", [None, PRIVACY], ids=["plain", "private"])
def test_kept(
    spec: Make, places: Places, tmp_path: Path, privacy: Privacy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is kept is read the second time, not trained."""
    folder = Records(tmp_path)
    first = peft_dp.run(spec(privacy=privacy), places, folder)
    (path,) = tmp_path.iterdir()
    modified = path.stat().st_mtime_ns

    def train(*arguments: object) -> Record:
        raise AssertionError("trains again")

    monkeypatch.setattr("peft_dp.implementations._base.fit_together", train)
    second = peft_dp.run(spec(privacy=privacy), places, folder)

    assert modified == path.stat().st_mtime_ns
    assert [path] == list(tmp_path.iterdir())
    assert first == second


def test_kept_under_its_own_key(spec: Make, places: Places, tmp_path: Path) -> None:
    """Another seed is not answered with the record that is there."""
    folder = Records(tmp_path)
    first, second = (peft_dp.run(spec(seed=seed, epochs=1), places, folder) for seed in (0, 1))

    assert len(list(tmp_path.iterdir())) == 2
    assert first.result() != second.result()


def test_diverged_run_is_not_kept(spec: Make, places: Places, tmp_path: Path) -> None:
    """A run that ends in an error leaves no record."""
    rate = replace(spec().optimiser, name="sgd", rate=1e30, schedule="constant")
    with pytest.raises(FloatingPointError):
        peft_dp.run(spec(optimiser=rate), places, Records(tmp_path))

    assert not list(tmp_path.iterdir())


def test_diverged_private_run_is_kept(spec: Make, places: Places, tmp_path: Path) -> None:
    """A private run that diverges is a run like any other: it ends, is kept, and is read again."""
    rate = replace(spec().optimiser, name="sgd", rate=1e30, schedule="constant")
    run = spec(optimiser=rate, privacy=PRIVACY)
    first = peft_dp.run(run, places, Records(tmp_path))

    assert first.result() == peft_dp.run(run, places, Records(tmp_path)).result()


def test_seeds_together(spec: Make, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that have no record train together and are kept one by one, each as it is alone but for rounding."""
    monkeypatch.setattr("peft_dp.training.fleet.SHARE", 0.9)
    specs = [spec(dropout=False, seed=seed) for seed in range(3)]
    alone = [peft_dp.run(one, places) for one in specs]
    folder = Records(tmp_path)
    kept = peft_dp.run(specs[1], places, folder)
    found = runs(specs, places, folder)

    assert [record.spec.seed for record in found] == [0, 1, 2]
    assert found[1] == kept
    assert [record.environment["seeds_together"] for record in found] == [2, 1, 2]
    assert len(list(tmp_path.iterdir())) == 3
    for record, same in zip(found, alone, strict=True):
        assert record.key == same.key
        assert record.values.keys() == same.values.keys()
        assert [epoch.loss for epoch in record.trail] == pytest.approx([epoch.loss for epoch in same.trail], rel=1e-4)
        assert (record.cost["peak_bytes"], record.trail[0].tokens) == (same.cost["peak_bytes"], same.trail[0].tokens)


def test_frozen_values_are_held_once(spec: Make, places: Places) -> None:
    """Jobs that train together hold the frozen model once."""
    first, other = (build(s, find_sources(s, places)) for s in (spec(seed=0), spec(seed=1)))
    share_frozen(first, other)
    values = dict(first.backbone.model.named_parameters())
    for name, parameter in other.backbone.model.named_parameters():
        assert (parameter is values[name]) == (not parameter.requires_grad)


def test_diverged_seed(spec: Make, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one of several seeds diverges, those before it are kept and the message names it."""
    monkeypatch.setattr("peft_dp.training.fleet.SHARE", 0.9)
    specs = [spec(dropout=False, seed=seed) for seed in range(3)]

    def broken(wanted: Spec, sources: Sources) -> Job:
        job = build(wanted, sources)
        if wanted.seed == 1:
            job.backbone.head[0].data.fill_(float("nan"))
        return job

    monkeypatch.setattr("peft_dp.runs.build", broken)
    with pytest.raises(FloatingPointError, match="seed 1: the training loss of epoch 1 is not finite"):
        runs(specs, places, Records(tmp_path))

    assert len(list(tmp_path.glob("*seed0*"))) == len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("privacy", "public", "kept"), [(PRIVACY, False, False), (PRIVACY, True, True), (None, False, True)]
)
def test_private_data_leave_no_trace(
    spec: Make, places: Places, monkeypatch: pytest.MonkeyPatch, privacy: Privacy | None, public: bool, kept: bool
) -> None:
    """The record of a private run on data that are not public keeps no trace, which is exact."""

    def own(spec: Spec, places: Places) -> Any:
        sources = find_sources(spec, places)
        return replace(sources, task=replace(sources.task, public=public))

    monkeypatch.setattr("peft_dp.runs.find_sources", own)

    (record,) = runs([spec(privacy=privacy)], places)

    assert kept == (record.trace is not None)
