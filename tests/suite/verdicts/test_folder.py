"""A folder of records: which verdicts it gives, and what is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peft_dp import Record, code
from peft_dp.records import Records
from peft_dp.spec import Spec
from peft_dp.suite import papers
from peft_dp.suite.verdicts.folder import read_folder

Keep = Callable[..., Path]

ROW: dict[str, Any] = {"title": "A row", "cells": {"sentiment": {}, "inference": {}}}
"""Its count of trained values is what is expected of it, so that any score passes."""
TABLE: dict[str, Any] = {
    "title": "Made up",
    "source": "a test",
    "budget": "smoke",
    "defaults": {"backbone": "bert", "dev": 8, "optimiser": {"rate": 0.01}, "epochs": 1, "batch": 8},
    "tasks": {"sentiment": {}, "inference": {}},
    "rows": [
        ROW | {"id": method, "spec": {"method": method}, "expect": {"trainable": {"value": 338}}}
        for method in ("head", "bitfit")
    ],
}


@pytest.fixture
def tables(tables: Path) -> None:
    """Two tables of two rows and two tasks each, in place of the project's own; the second's cells are private."""
    private = {"defaults": TABLE["defaults"] | {"privacy": {"epsilon": 8.0, "delta": 0.01}}}
    for name, more in (("b", {}), ("a", private)):
        path = tables / name / "table.json"
        path.parent.mkdir()
        path.write_text(json.dumps(TABLE | more | {"paper": name, "table": "table"}))


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Saves a record with that score, key and date, and gives its file."""

    def save(spec: Spec, score: float = 50.0, key: str = "0", date: str | None = "2026-01-01T00:00:00+00:00") -> Path:
        values = {"score": score, "trainable": 338.0}
        rest: dict[str, Any] = {"ledger": None, "trail": [], "cost": {"epoch_seconds": 1.0, "peak_bytes": 1e6}}
        environment = {"date": date} if date else {}
        record = Record(key=key * 64, spec=spec, values=values, sources={}, environment=environment, **rest)
        return Records(tmp_path / "records").save(record)

    return save


def test_order(tables: None, keep: Keep, tmp_path: Path) -> None:
    """There is one verdict a cell that ran, in the order of the tables, with its records in the order of seeds."""
    for name in ("b/table/head/inference", "a/table/bitfit/sentiment", "b/table/head/sentiment"):
        for seed in (10, 9, 0):
            keep(papers.find(name).spec.seeded(seed), score=50.0 + seed)
    found = read_folder(tmp_path / "records")

    assert ["a/table/bitfit/sentiment", "b/table/head/sentiment", "b/table/head/inference"] == [
        verdict.cell.id for verdict in found.verdicts
    ]
    assert [[50.0, 59.0, 60.0]] * 3 == [[r.values["score"] for r in verdict.records] for verdict in found.verdicts]
    assert {"no expectation"} == {verdict.status for verdict in found.verdicts}
    assert (tmp_path / "records", [], []) == (found.path, found.others, found.damaged)


def test_records_below(tables: None, keep: Keep, tmp_path: Path) -> None:
    """Folders within the folder are read as well, as where several sessions keep theirs side by side."""
    keep(papers.find("b/table/head/sentiment").spec)

    assert len(read_folder(tmp_path).verdicts) == 1


@pytest.mark.parametrize(("first", "second"), [("0", "f"), ("f", "0")])
@pytest.mark.parametrize("old", ["2026-01-01T23:00:00+00:00", None])
def test_newest_counts(tables: None, keep: Keep, tmp_path: Path, first: str, second: str, old: str | None) -> None:
    """Of two records of one seed the newest counts, wherever their files stand; one without a date is the oldest."""
    spec = papers.find("b/table/head/sentiment").spec
    keep(spec, 40.0, first, old)
    keep(spec, 60.0, second, "2026-01-02T00:00:00+00:00")
    keep(spec.seeded(1), 70.0)
    (verdict,) = read_folder(tmp_path / "records").verdicts

    assert [60.0, 70.0] == [record.values["score"] for record in verdict.records]


def test_others(tables: None, keep: Keep, tmp_path: Path) -> None:
    """A record of no cell, as of a row on another backbone, is kept apart."""
    cell = papers.find("b/table/head/sentiment")
    keep(cell.spec)
    other = replace(cell.spec, backbone="roberta")
    keep(other, key="1")
    found = read_folder(tmp_path / "records")

    assert [other] == [record.spec for record in found.others]
    assert [cell.id] == [verdict.cell.id for verdict in found.verdicts]


def test_cells_of_one_run(tables: None, keep: Keep, tmp_path: Path) -> None:
    """Two cells that ask for the same run each have a verdict on it."""
    path = tmp_path / "expected" / "c" / "table.json"
    path.parent.mkdir()
    path.write_text(json.dumps(TABLE | {"paper": "c", "table": "table"}))
    keep(papers.find("b/table/head/sentiment").spec)

    assert ["b/table/head/sentiment", "c/table/head/sentiment"] == [
        verdict.cell.id for verdict in read_folder(tmp_path / "records").verdicts
    ]


def test_damaged(tables: None, keep: Keep, tmp_path: Path) -> None:
    """A file that is no whole record is named, and the others are judged."""
    cell = papers.find("b/table/head/sentiment")
    keep(cell.spec)
    half, empty = (keep(cell.spec.seeded(seed)) for seed in (1, 2))
    half.write_text(half.read_text()[:100])
    empty.write_text("{}")
    found = read_folder(tmp_path / "records")
    (verdict,) = found.verdicts

    assert [0] == [record.spec.seed for record in verdict.records]
    assert [str(half), str(empty)] == [text.split(" is not a record: ")[0] for text in found.damaged]


def test_no_folder(tmp_path: Path) -> None:
    """A folder that is not there is refused by name, and so is a file."""
    (tmp_path / "file").write_text("")
    for name in ("none", "file"):
        with pytest.raises(ValueError) as caught:
            read_folder(tmp_path / name)

        assert str(caught.value).startswith(f"{tmp_path / name} is not a folder: give ")


def test_no_record(tables: None, tmp_path: Path) -> None:
    """A folder without a whole record is refused, with the first damaged file and their number."""
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "notes.txt").write_text("")
    with pytest.raises(ValueError) as empty:
        read_folder(tmp_path / "records")
    for name in ("one.json", "two.json"):
        (tmp_path / "records" / name).write_text("{")
    with pytest.raises(ValueError) as broken:
        read_folder(tmp_path / "records")

    assert str(empty.value) == f"{tmp_path / 'records'} holds no whole record"
    assert str(broken.value).startswith(
        f"{tmp_path / 'records'} holds no whole record, but 2 damaged: {tmp_path / 'records' / 'one.json'} is not a "
    )


@pytest.mark.parametrize("lacks", ["score", "epoch_seconds", "peak_bytes"])
def test_no_whole_run(keep: Keep, tables: None, tmp_path: Path, lacks: str) -> None:
    """A record without what every run measures is named beside the damaged ones."""
    spec = papers.cells()[0].spec
    keep(spec)
    path = keep(spec.seeded(1), key="f")
    data = json.loads(path.read_text())
    for part in ("values", "cost"):
        data[part].pop(lacks, None)
    path.write_text(json.dumps(data))
    found = read_folder(tmp_path / "records")

    assert [f"{path} is not the record of a whole run: it has no {lacks}"] == found.damaged
    assert [0] == [record.spec.seed for verdict in found.verdicts for record in verdict.records]


def test_pipe(keep: Keep, tables: None, tmp_path: Path) -> None:
    """A pipe among the records is named, and not waited for."""
    keep(papers.cells()[0].spec)
    os.mkfifo(tmp_path / "records" / "pipe.json")

    assert [f"{tmp_path / 'records' / 'pipe.json'} is no file"] == read_folder(tmp_path / "records").damaged


def test_which_counts(keep: Keep, tables: None, tmp_path: Path) -> None:
    """A record made by the files that are here counts before others of its run, then the newest that is not to come."""
    spec = papers.cells()[0].spec
    made = {"1": "2026-01-01", "2": "2026-03-01", "3": "2999-01-01"}
    paths = {
        score: keep(spec, score=float(score), key=score, date=f"{date}T00:00:00+00:00") for score, date in made.items()
    }
    (newest,) = read_folder(tmp_path / "records").verdicts
    current = keep(spec, score=4.0, key="4", date="2025-01-01T00:00:00+00:00")
    data = json.loads(current.read_text())
    current.write_text(json.dumps(data | {"sources": {"code": code.sha256(spec)}}))
    found = read_folder(tmp_path / "records")

    assert [2.0] == [record.values["score"] for record in newest.records]
    assert [4.0] == [record.values["score"] for record in found.verdicts[0].records]
    assert [
        f"{spec.method} on {spec.task}, seed 0: 4 records differ (scores 1.00, 2.00, 3.00, 4.00); "
        f"{current} counts, {paths['2']} does not"
    ] == found.differing


def test_alike_do_not_differ(keep: Keep, tables: None, tmp_path: Path) -> None:
    """Records of one run that say the same are no news."""
    for key in "12":
        keep(papers.cells()[0].spec, key=key)

    assert [] == read_folder(tmp_path / "records").differing
