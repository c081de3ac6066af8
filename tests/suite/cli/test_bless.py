"""`peft-dp bless`: what it records, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import peft_dp
from peft_dp.suite import bless
from peft_dp.suite.cli.main import main


def test_bless(
    tables: Path,
    here: list[str],
    tree: Callable[[bool | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`bless` writes the score and the trace of every seed of every cell, how far repeats drift, and what made it."""
    tree(False)
    code = main(["bless", "made/up", *here])
    (written,) = json.loads((tables / "made" / "up.recorded.json").read_text())["blessings"]
    (right, wrong) = peft_dp.cells("made/up")

    assert code == 0
    assert {"right", "wrong"} == set(written["scores"])
    assert ["0", "1", "2", "3", "4"] == list(written["scores"]["right"]["sentiment"])
    assert written["provenance"]["revision"] == "0" * 40
    assert {"date", "versions", "cpu", "threads"} <= set(written["provenance"])
    # One run under two names.
    assert right.recorded["right"] == wrong.recorded["wrong"]
    assert right.runs == wrong.runs
    assert [0, 1, 2, 3, 4] == list(right.runs)
    assert {"loss", "values", "update", "answers"} == right.drift.keys()
    assert right.drift["loss"] < 20e-6


def test_bless_one_row(
    tables: Path, here: list[str], tree: Callable[[bool | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row blessed anew keeps what was recorded for the others, with what made that."""
    tree(False)
    monkeypatch.setattr(bless, "VARIANTS", ())  # its repeats are another test's
    old = {"right": {"sentiment": {"0": 1.0, "1": 2.0}}, "wrong": {"sentiment": {"0": 3.0, "1": 4.0}}}
    path = tables / "made" / "up.recorded.json"
    path.write_text(json.dumps({"blessings": [{"provenance": {"date": "before"}, "scores": old}]}))
    code = main(["bless", "made/up/right", *here])
    first, second = json.loads(path.read_text())["blessings"]
    empty: dict[str, Any] = {"losses": {}, "runs": {}, "drift": {}}

    assert code == 0
    assert first == {"provenance": {"date": "before"}, "scores": {"wrong": old["wrong"]}} | empty
    for quantity in ("scores", "losses"):
        assert list(second[quantity]) == ["right"]
        assert len(second[quantity]["right"]["sentiment"]) == 5


def test_bless_no_such_row(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row that the table lacks is bad input."""
    assert main(["bless", "made/up/rihgt"]) == 2
    assert "table made/up has no row 'rihgt'" in capsys.readouterr().err


def test_bless_too_few_seeds(
    tables: Path, here: list[str], tree: Callable[[bool | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Four seeds are too few: exit code 2, and nothing is written."""
    tree(False)
    code = main(["bless", "made/up", "--seeds", "4", *here])

    assert code == 2
    assert "--seeds 4 is too few to know a spread: give at least 5" in capsys.readouterr().err
    assert not (tables / "made" / "up.recorded.json").exists()


@pytest.mark.parametrize("dirty", [True, None])
def test_bless_without_a_commit(
    tables: Path,
    here: list[str],
    tree: Callable[[bool | None], None],
    capsys: pytest.CaptureFixture[str],
    dirty: bool | None,
) -> None:
    """A package with changes, or in no checkout, makes no record: no commit could be named."""
    tree(dirty)
    code = main(["bless", "made/up", *here])

    assert code == 2
    assert "commit" in capsys.readouterr().err
    assert not (tables / "made" / "up.recorded.json").exists()


def test_bless_unknown_table(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown table is exit code 2, with the list of those there are."""
    assert main(["bless", "made/down"]) == 2
    assert "no table 'made/down'; known: made/up" in capsys.readouterr().err
