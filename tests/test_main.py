"""The command line: what each verb prints, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import peft_dp
from peft_dp import Places, expected
from peft_dp.__main__ import main
from peft_dp.measuring import environment
from peft_dp.privacy import gradients

Run = Callable[..., int]

TABLE: dict[str, Any] = {
    "paper": "made",
    "table": "up",
    "title": "Made up",
    "source": "a test",
    "budget": "smoke",
    "defaults": {
        "backbone": "bert",
        "train": 16,
        "dev": 8,
        "optimiser": {"rate": 0.01},
        "epochs": 1,
        "batch": 8,
        "max_length": 24,
        "method": "bitfit",
    },
    "tasks": {"sentiment": {}},
    "rows": [
        {
            "id": name,
            "title": "A row",
            "spec": {},
            "cells": {"sentiment": {"trainable": {"value": value, "within": 0, "why": "counted by hand"}}},
            "assumed": ["epochs"],
        }
        for name, value in (("right", 338), ("wrong", 1))
    ],
}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with one table of two cells on the tiny backbone, in place of the project's own."""
    folder = tmp_path / "expected"
    (folder / "made").mkdir(parents=True)
    (folder / "made" / "up.json").write_text(json.dumps(TABLE))
    monkeypatch.setattr(expected, "FOLDER", folder)
    expected._table.cache_clear()
    yield folder
    expected._table.cache_clear()


@pytest.fixture
def here(places: Places, tmp_path: Path) -> list[str]:
    """Arguments that say where the tiny backbone is and where records go."""
    return ["--backbones", str(places.backbones), "--records", str(tmp_path / "records"), "--device", "cpu"]


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool | None], None]]:
    """Says whether the package's checkout has changes; None for no checkout."""

    def say(dirty: bool | None) -> None:
        monkeypatch.setattr(environment, "_git", lambda folder: {"revision": "0" * 40, "dirty": dirty})
        environment.environment.cache_clear()

    yield say
    environment.environment.cache_clear()


def test_list_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`list --json` is one JSON list with an object a fact and a cell, in the order of the files."""
    code = main(["list", "--json"])
    found = json.loads(capsys.readouterr().out)

    assert code == 0
    ids = [f"{fact.paper}/{fact.id}" for fact in peft_dp.facts()] + [cell.id for cell in peft_dp.cells()]
    assert ids == [line["id"] for line in found]
    assert {"id", "marker", "backbone", "method", "epsilon", "expected", "known difference"} == set(found[0])
    assert sum(line["marker"] == "facts" for line in found) >= 60


def test_list(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`list` prints a line a cell with its marker and what is expected."""
    code = main(["list"])
    printed = capsys.readouterr().out.splitlines()

    assert code == 0
    assert ["made/up/right/sentiment", "smoke", "bert", "bitfit", "trainable=338"] == printed[2].split()
    assert len(printed) == 4


def test_show_fact(capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints a fact with its arithmetic and the test that checks it."""
    code = main(["show", "slash/table2/warp-20/parameters"])
    printed = capsys.readouterr().out

    assert code == 0
    assert "20 x 1,024 + 3,075 = 23,555" in " ".join(printed.split())
    assert 'pytest "bench/test_slash.py::test_facts[table2-warp-20-parameters]" -m facts' in printed


@pytest.mark.parametrize("cell", ["embedded/smoke/bitfit-dp/sentiment", "bitfit_plus/figure3/bitfit/rte"])
def test_show(cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints expectation, source, commands and the whole definition of a cell."""
    code = main(["show", cell])
    printed = capsys.readouterr().out
    paper, table, row, task = cell.split("/")

    assert code == 0
    assert f"peft-dp run {cell}" in printed
    assert f'pytest "bench/test_{paper}.py::test_{table}[{row}-{task}]" -m ' in printed
    assert expected.find(cell).table.source in " ".join(printed.split())
    assert expected.find(cell).spec.method == json.loads(printed[printed.index("{") :])["method"]


def test_show_what_was_recorded(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints printed numbers with their reason, recorded scores, and what was assumed."""
    scores = {"right": {"sentiment": {"0": 50.0, "1": 62.5}}}
    (tables / "made" / "up.recorded.json").write_text(json.dumps({"blessings": [{"provenance": {}, "scores": scores}]}))
    main(["show", "made/up/right/sentiment"])
    printed = capsys.readouterr().out

    assert "trainable 338 +- 0 (counted by hand)" in printed
    assert "50.0, 62.5" in printed
    assert "epochs" in printed.split("{")[0]


@pytest.mark.parametrize("verb", ["show", "run", "audit"])
def test_unknown_cell(verb: str, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown id is bad input: exit code 2, and the ids that come closest."""
    code = main([verb, "made/up/rihgt/sentiment"])
    said = capsys.readouterr()

    assert (2, "") == (code, said.out)
    assert said.err.startswith("peft-dp: no cell 'made/up/rihgt/sentiment'; close: made/up/right/sentiment")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(("row", "code", "status"), [("right", 0, "agrees"), ("wrong", 1, "differs")])
def test_run(
    tables: Path, here: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, code: int, status: str
) -> None:
    """`run` trains a cell under the seed, prints its values and verdict, keeps its record; 1 says that it differs."""
    actual = main(["run", f"made/up/{row}/sentiment", "--seed", "3", *here])
    printed = capsys.readouterr().out
    (record,) = (tmp_path / "records").iterdir()

    assert code == actual
    assert f"made/up/{row}/sentiment: {status}" in printed
    assert '"trainable": 338' in printed
    assert printed.endswith(f"record: {record}\n")
    assert json.loads(record.read_text())["spec"]["seed"] == 3


def test_run_without_backbone(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thing that this machine lacks is exit code 3, and its name."""
    code = main(
        ["run", "made/up/right/sentiment", "--backbones", str(tmp_path), "--records", str(tmp_path), "--device", "cpu"]
    )

    assert code == 3
    assert f"peft-dp: {tmp_path / 'bert-base-cased'} is missing" in capsys.readouterr().err


def test_run_without_records_folder(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that cannot be written to is said before anything trains."""
    (tmp_path / "file").write_text("")
    code = main(["run", "made/up/right/sentiment", "--records", str(tmp_path / "file")])

    assert code == 2
    assert "cannot be written to" in capsys.readouterr().err


PRIVATE = {"method": "full", "privacy": {"epsilon": 8.0, "delta": 0.01}}


def add_private(tables: Path) -> list[str]:
    """Adds a private row to the made-up table and gives the verb that audits it."""
    row = {"id": "private", "title": "A private row", "spec": PRIVATE, "cells": {"sentiment": {}}}
    (tables / "made" / "up.json").write_text(json.dumps(TABLE | {"rows": [*TABLE["rows"], row]}))
    return ["audit", "made/up/private/sentiment"]


def test_audit(
    tables: Path, here: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`audit` prints the bounds beside the claim and that the claim stands, with 0; with 1 that it does not."""
    verb = [*add_private(tables), *here[:2], "--device", "cpu", "--seed", "3", "--canaries", "1000"]
    code = main(verb)
    printed = capsys.readouterr().out
    monkeypatch.setattr(gradients, "factors", lambda norms, *_: torch.ones_like(norms))
    leaking = main(verb)

    assert (0, 1) == (code, leaking)
    assert "made/up/private/sentiment, seed 3: 1,000 canaries" in printed
    assert "epsilon at delta 1e-05" in printed
    assert "claimed by the prv accountant" in printed
    assert "The f-DP bound is not above the claim." in printed
    assert "The f-DP bound is above the claim: the engine is broken." in capsys.readouterr().out


def test_audit_not_private(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell without privacy has no claim: exit code 2, its name and the remedy, before anything is loaded."""
    code = main(["audit", "made/up/right/sentiment", "--backbones", "nowhere"])
    said = capsys.readouterr()

    assert (2, "") == (code, said.out)
    assert said.err.startswith("peft-dp: made/up/right/sentiment trains without privacy, so it claims no epsilon")
    assert "`peft-dp list`" in said.err
    assert said.err.count("\n") == 1


def test_audit_too_few_canaries(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Too few canaries are bad input, with the least that is taken."""
    code = main([*add_private(tables), *here[:2], "--canaries", "5"])

    assert code == 2
    assert "canaries 5 are too few for 39 tensors that train: take at least 100" in capsys.readouterr().err


def test_bless(
    tables: Path,
    here: list[str],
    tree: Callable[[bool | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`bless` writes the score of every seed of every cell, and what made it; the table then reads it."""
    tree(False)
    code = main(["bless", "made/up", *here])
    (written,) = json.loads((tables / "made" / "up.recorded.json").read_text())["blessings"]
    (right, wrong) = peft_dp.cells("made/up")

    assert code == 0
    assert {"right", "wrong"} == set(written["scores"])
    assert ["0", "1", "2", "3", "4"] == list(written["scores"]["right"]["sentiment"])
    assert written["provenance"]["revision"] == "0" * 40
    assert {"date", "code", "versions", "cpu", "threads"} <= set(written["provenance"])
    # One run under two names.
    assert right.recorded["right"] == wrong.recorded["wrong"]


def test_bless_one_row(tables: Path, here: list[str], tree: Callable[[bool | None], None]) -> None:
    """One row blessed anew keeps what was recorded for the others, with what made that."""
    tree(False)
    old = {"right": {"sentiment": {"0": 1.0, "1": 2.0}}, "wrong": {"sentiment": {"0": 3.0, "1": 4.0}}}
    path = tables / "made" / "up.recorded.json"
    path.write_text(json.dumps({"blessings": [{"provenance": {"date": "before"}, "scores": old}]}))
    code = main(["bless", "made/up/right", *here])
    first, second = json.loads(path.read_text())["blessings"]

    assert code == 0
    assert first == {"provenance": {"date": "before"}, "scores": {"wrong": old["wrong"]}}
    assert list(second["scores"]) == ["right"]
    assert len(second["scores"]["right"]["sentiment"]) == 5


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


@pytest.mark.parametrize(
    "arguments",
    [[], ["train"], ["run"], ["run", "a/b/c/d", "--device", "tpu"], ["audit", "a/b/c/d", "--canaries", "many"]],
    ids=str,
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command that is none ends with exit code 2 and the usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: peft-dp" in capsys.readouterr().err
