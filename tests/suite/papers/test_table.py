"""The tables as data: every file in `expected/` holds together, and a bad one is refused by name."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest

from peft_dp import Places, methods, registry, tasks
from peft_dp.measuring import scores
from peft_dp.spec import Privacy, from_json, to_json
from peft_dp.suite import papers
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.recorded import read_recorded
from peft_dp.suite.papers.schema import schemas
from peft_dp.suite.papers.table import Expect
from peft_dp.suite.verdicts.bands import pooled
from peft_dp.suite.verdicts.cells import printed_spreads
from peft_dp.training.job import find_sources
from peft_dp.validate import Missing

Put = Callable[..., Path]

CELLS, CITED = papers.cells(), papers.cells(cited=True)
NAMES = {cell.id: cell.table.address for cell in CELLS}
TABLES = {table: [cell for cell in CELLS if NAMES[cell.id] == table] for table in NAMES.values()}
"""Table -> its cells that can run. One test a table: a test a cell takes longer than what it tests."""
MEASURED = {*scores.KNOWN, *scores.TRAINED}
COST = {"epoch_seconds", "peak_bytes"}
"""Quantities that other machines give otherwise."""
SETTINGS = {"backbone", "method", "epochs", "batch", "max_length", "dropout", "head"}
OPTIMISER = {"name", "rate", "schedule", "weight_decay"}
"""What a paper's run is trained with, private or not."""
GOOD: dict[str, Any] = {
    "paper": "paper",
    "table": "table",
    "title": "A table",
    "source": "nowhere",
    "budget": "smoke",
    "defaults": {
        "backbone": "bert",
        "optimiser": {"rate": 0.1, "schedule": "constant", "warmup": 0.25},
        "epochs": 2,
        "batch": 8,
        "method": "head",
    },
    "tasks": {"sentiment": {"optimiser": {"rate": 0.2}}, "inference": {}},
    "rows": [
        {
            "id": "plain",
            "title": "Plain",
            "spec": {"method": "bitfit", "optimiser": {"warmup": 0.5}},
            "expect": {"trainable": {"value": 5.0}},
            "cells": {"sentiment": {"score": {"value": 70.0, "within": 2.0}}, "inference": {}},
        },
        {
            "id": "private",
            "title": "Private",
            "spec": {"privacy": {"epsilon": 8.0, "delta": 0.001}, "epochs": 3},
            "expect": {"trainable": {"value": 5.0}},
            "cells": {"sentiment": {"trainable": {"value": 6.0}}},
        },
    ],
}


def good() -> dict[str, Any]:
    """A copy of a valid table."""
    copy: dict[str, Any] = json.loads(json.dumps(GOOD))
    return copy


@cache
def claimed() -> set[str]:
    """Ids of the cells that claims are about."""
    return {cell.id for c in papers.claims() for side in (c.left, c.right) for cell in c.cells(side)}


def is_sound(name: str, expect: Expect) -> bool:
    """Whether a printed number can be one: a score is a percentage, any other is no less than 0.

    Where it comes from is said in `why`, but of a score that is asserted as the table prints it.
    """
    sound = expect.within >= 0 and expect.runs >= 1 and expect.best_of >= 1 and (expect.std is None or expect.std > 0)
    if name in ("score", "above_majority"):
        printed = name == "score" and expect.asserted and not expect.within
        return sound and -100 <= expect.value <= 100 and bool(printed or expect.why)
    return sound and expect.value >= 0 and bool(expect.why)


@pytest.fixture
def put(tables: Path) -> Put:
    """Writes `paper/table.json`, the only table."""

    def write(data: object, name: str = "paper/table.json") -> Path:
        path = tables / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


@pytest.mark.parametrize("table", TABLES)
class TestEveryTable:
    """What holds for the cells of each of the project's own tables."""

    def test_runs(self, table: str) -> None:
        """The settings of each cell make a spec of known parts, and its method takes the configuration."""
        for cell in TABLES[table]:
            spec = cell.spec
            registry.load("backbones", spec.backbone)
            tasks.find(spec.task)
            methods.make(spec.method, spec.config)

            assert spec == from_json(to_json(spec), where=cell.id)

    def test_is_gathered(self, table: str, tmp_path: Path) -> None:
        """A run of each cell that needs real data gets as far as to what this machine lacks."""
        for cell in TABLES[table]:
            # The data of a smoke cell are made here, and so are those of random weights.
            if cell.table.budget != "smoke" and cell.spec.weights == "pretrained":
                with pytest.raises(Missing):
                    find_sources(cell.spec, Places(data=tmp_path, backbones=tmp_path))

    def test_can_fail(self, table: str) -> None:
        """Each cell has an asserted number, a claim, or recorded scores, as all embedded cells have that can run."""
        scores = read_recorded(table).whole("scores")
        for cell in TABLES[table]:
            recorded = len(scores.get(cell.own.row.id, {}).get(cell.task, {})) >= 5 or cell.row.cannot
            asserted = any(expect.asserted for expect in cell.expect.values())

            assert recorded or (cell.table.paper != "embedded" and (asserted or cell.id in claimed())), cell.id

    def test_recorded_cells(self, table: str) -> None:
        """What was recorded is of cells of the table."""
        known = {(cell.row.id, cell.task) for cell in TABLES[table]}

        assert {(row, task) for row, found in read_recorded(table).whole("scores").items() for task in found} <= known

    def test_expects_what_is_measured(self, table: str) -> None:
        """Printed quantities are ones that a run gives, each with its reason and within the range it can have."""
        for cell in TABLES[table]:
            for name, expect in cell.expect.items():
                assert name in MEASURED | (set() if expect.asserted else COST), cell.id
                assert is_sound(name, expect), cell.id

    def test_says_where_from(self, table: str) -> None:
        """A table says where its numbers are from, one that is named after a place in a paper names it; and why."""
        about = TABLES[table][0].table
        numbered = re.fullmatch(r"(table|figure)(\d+)", about.table)
        place = rf"(Table|Figs?\.) {numbered[2]}\b" if numbered else r"\w"

        assert re.search(f"{about.table}.recorded.json" if about.paper == "embedded" else place, about.source)
        assert about.note

    def test_settings_are_written(self, table: str) -> None:
        """What a paper's run is trained with stands in its file; no default of `Spec` decides it."""
        for cell in TABLES[table]:
            layers: tuple[dict[str, Any], ...] = (
                cell.table.defaults,
                cell.table.tasks[cell.task],
                cell.row.spec,
                cell.row.tasks.get(cell.task, {}),
            )
            empty: dict[str, Any] = {}
            written = reduce(reader.merged, layers, empty)
            readout = {"readout"} if cell.spec.head == "linear" else set()
            if cell.table.paper != "embedded":
                assert SETTINGS | readout <= written.keys(), cell.id
                # Seconds and bytes do not depend on the optimiser's numbers.
                assert OPTIMISER <= written["optimiser"].keys() or cell.expect.keys() & COST, cell.id
                assert not cell.spec.privacy or {f.name for f in fields(Privacy)} == written["privacy"].keys(), cell.id

    def test_recorded_scores_say_where_from(self, table: str) -> None:
        """Every blessing says on what machine and from what commit, without changes, it was made, and when."""
        for blessing in read_recorded(table).blessings:
            known = {name for name, value in blessing.provenance.items() if value}

            assert {"system", "cpu", "cores", "python", "versions", "revision", "date"} <= known
            assert blessing.provenance["dirty"] is False

    def test_scores_have_a_band(self, table: str) -> None:
        """Each printed score has a spread to be judged by: one that is printed, or what stands for it."""
        for cell in TABLES[table]:
            if "score" in cell.expect:
                assert pooled(printed_spreads(cell)).value > 0, cell.id

    def test_assumptions_are_set(self, table: str) -> None:
        """What a row calls assumed is a field that exists."""
        for cell in TABLES[table]:
            for path in cell.row.assumed:
                place: Any = to_json(cell.spec)
                for part in path.split("."):
                    assert part in place, (cell.id, path)
                    place = place[part]

    def test_privacy_means_something(self, table: str) -> None:
        """Delta is below one over the number of training examples, where the cell sets that number."""
        for cell in TABLES[table]:
            spec = cell.spec

            assert spec.privacy is None or spec.train is None or spec.privacy.delta < 1 / spec.train, cell.id


def test_cited_cells() -> None:
    """A cited cell says from where, sets nothing, was never recorded, and has numbers like any other."""
    for cell in CITED:
        assert not cell.row.spec, cell.id
        assert not cell.row.tasks, cell.id
        assert not cell.row.assumed, cell.id
        assert cell.expect, cell.id
        assert all(name in MEASURED | COST and is_sound(name, expect) for name, expect in cell.expect.items()), cell.id
    with pytest.raises(ValueError, match="no cell "):
        papers.find(CITED[0].id)


def test_facts_and_claims_say_where_from() -> None:
    """A fact's id starts with its place in the paper, a claim names its section; what contradicts them is numbers."""
    for fact in papers.facts():
        assert re.match(r"((table|figure|section)\d+|abstract)/", fact.id), fact.id
    for claim in papers.claims():
        assert claim.says, claim.id
        assert re.search(r"^abstract|^ours$|\d|abstract$", claim.section), claim.id
    for path in [*reader.FOLDER.glob("*/facts.json"), *reader.FOLDER.glob("*/claims.json")]:
        assert json.loads(path.read_text(encoding="utf-8"))["source"], path
    every: list[Any] = [*papers.facts(), *papers.claims(), *(cell.row for cell in [*CELLS, *CITED])]
    for known in every:
        assert not known.differs or re.search(r"\d", known.differs), known.id


def test_ids_are_unique() -> None:
    """No two cells have one id, cited or not, and an id finds its cell."""
    twice = [name for name, count in Counter(cell.id for cell in [*CELLS, *CITED]).items() if count > 1]

    assert not twice
    assert [table[-1].id for table in TABLES.values()] == [papers.find(cells[-1].id).id for cells in TABLES.values()]


def test_every_file_is_read() -> None:
    """Every JSON file is a table, what was recorded for one, a paper's facts, claims or protocol, or a schema."""
    known = {f"{table}{kind}" for table in TABLES for kind in (".json", ".recorded.json")}
    known |= {f"{fact.paper}/{kind}.json" for fact in papers.facts() for kind in ("facts", "protocol")}
    known |= {f"{claim.paper}/claims.json" for claim in papers.claims()} | schemas().keys()
    files = {str(path.relative_to(reader.FOLDER)) for path in reader.FOLDER.rglob("*.json")}

    assert files <= known
    assert {name for name in known if not name.endswith(".recorded.json")} <= files


def test_layers(put: Put) -> None:
    """A row's settings lie upon its task's, and these upon the table's, objects field by field."""
    put(good())
    plain, other, private = papers.cells("paper/table")
    optimiser = plain.spec.optimiser

    assert [(0.2, "constant", 0.5), (0.1, "constant", 0.5), (0.2, "constant", 0.25)] == [
        (cell.spec.optimiser.rate, cell.spec.optimiser.schedule, cell.spec.optimiser.warmup)
        for cell in (plain, other, private)
    ]
    assert optimiser.name == "adamw"
    assert ["bitfit", "bitfit", "head"] == [cell.spec.method for cell in (plain, other, private)]
    assert [None, Privacy(epsilon=8.0, delta=0.001)] == [plain.spec.privacy, private.spec.privacy]
    assert (2, 3) == (plain.spec.epochs, private.spec.epochs)


def test_layers_leave_the_table(put: Put) -> None:
    """Laying one row's settings changes no other's, nor the table's."""
    put(good())
    first = papers.cells("paper/table")
    for cell in first:
        assert cell.spec

    assert GOOD["defaults"] == first[0].table.defaults


def test_layer_that_is_no_object_replaces(put: Put) -> None:
    """Null over an object takes it away, and an object over null puts it there."""
    table = good()
    table["defaults"]["privacy"] = {"epsilon": 1.0, "delta": 0.01}
    table["tasks"]["inference"]["privacy"] = None
    put(table)
    plain, other, private = papers.cells("paper/table")

    assert Privacy(epsilon=1.0, delta=0.01) == plain.spec.privacy
    assert other.spec.privacy is None
    assert Privacy(epsilon=8.0, delta=0.001) == private.spec.privacy


def test_cell_over_row(put: Put) -> None:
    """A number of a cell replaces its row's number of that quantity and leaves the others."""
    put(good())
    plain, other, private = papers.cells("paper/table")

    assert [{"trainable": 5.0, "score": 70.0}, {"trainable": 5.0}, {"trainable": 6.0}] == [
        {name: expect.value for name, expect in cell.expect.items()} for cell in (plain, other, private)
    ]


def test_names(put: Put) -> None:
    """A cell's id is its place; its text is its id within the table; seeds count from 0."""
    put(good() | {"seeds": 2})
    cell = papers.cells()[0]

    assert ("paper/table/plain/sentiment", "plain-sentiment") == (cell.id, str(cell))
    assert [[0, 1], [0, 1, 2]] == [[spec.seed for spec in cell.specs(seeds)] for seeds in (None, 3)]


def test_recorded(put: Put) -> None:
    """Scores recorded beside a table are lists over seeds; without the file there are none."""
    put(good())
    (nothing,) = {str(cell.recorded) for cell in papers.cells()}
    scores = {"plain": {"sentiment": {"0": 50.0, "1": 52.5}}}
    put({"blessings": [{"provenance": {}, "scores": scores}]}, "paper/table.recorded.json")

    assert nothing == "{}"
    assert {"plain": {"sentiment": [50.0, 52.5]}} == papers.cells()[0].recorded


def _duplicate_key(table: dict[str, Any]) -> str:
    return json.dumps(table).replace('"title": "Plain"', '"title": "Plain", "title": "Other"')


def _nan(table: dict[str, Any]) -> str:
    return json.dumps(table).replace("70.0", "NaN")


def _unknown_key(table: dict[str, Any]) -> str:
    table["rows"][0]["cels"] = {}
    return json.dumps(table)


def _missing_key(table: dict[str, Any]) -> str:
    del table["budget"]
    return json.dumps(table)


def _wrong_type(table: dict[str, Any]) -> str:
    table["rows"][1]["expect"]["trainable"]["value"] = "5"
    return json.dumps(table)


def _other_paper(table: dict[str, Any]) -> str:
    return json.dumps(table | {"paper": "another"})


def _unlisted_task(table: dict[str, Any]) -> str:
    del table["tasks"]["inference"]
    return json.dumps(table)


def _no_seeds(table: dict[str, Any]) -> str:
    return json.dumps(table | {"seeds": 0})


def _no_runs(table: dict[str, Any]) -> str:
    table["rows"][1]["expect"]["trainable"]["runs"] = 0
    return json.dumps(table)


def _too_large(table: dict[str, Any]) -> str:
    table["rows"][1]["expect"]["trainable"]["value"] = 10**400
    return json.dumps(table)


def _row_twice(table: dict[str, Any]) -> str:
    table["rows"][1]["id"] = "plain"
    return json.dumps(table)


def _truncated(table: dict[str, Any]) -> str:
    return json.dumps(table)[:-40]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_nan, "NaN is not a number that JSON allows"),
        (_duplicate_key, "has 'title' twice"),
        (_unknown_key, "field 'rows.0.cels': unexpected keyword argument"),
        (_missing_key, "field 'budget': field required"),
        (_wrong_type, "field 'rows.1.expect.trainable.value': Input should be a valid number (it holds '5')"),
        (_other_paper, "paper and table must be 'paper' and 'table', as in its path"),
        (_unlisted_task, "row 'plain' has a cell for 'inference', which `tasks` does not list"),
        (_no_seeds, "field 'seeds': Input should be greater than or equal to 1 (it holds 0)"),
        (_no_runs, "field 'rows.1.expect.trainable.runs': Input should be greater than or equal to 1 (it holds 0)"),
        (_too_large, "field 'rows.1.expect.trainable.value': Input should be a finite number"),
        (_row_twice, "has 'plain' twice"),
        (_truncated, "Unterminated string"),
        (lambda _: "", "Expecting value"),
        (lambda _: "[]", "field 'the whole'"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_file(put: Put, spoil: Callable[[dict[str, Any]], str], words: str) -> None:
    """A bad table is a ValueError of one line that names the file and the fault."""
    path = put(spoil(good()))
    with pytest.raises(ValueError) as caught:
        papers.cells()
    message = str(caught.value)

    assert message.startswith(f"{path}")
    assert "\n" not in message
    assert words in message


@pytest.mark.parametrize("printed", ["", "K", "%", "101 K", "101k", "1,000", ".09%", "0.09%%", "-1", "\u0661", "1\n"])
def test_bad_fact(put: Put, printed: str) -> None:
    """A printed figure that is no number with one of the units is refused with the file, the fact and the value."""
    fact = {"id": "t/r/parameters", "printed": printed, "quantity": "parameters", "given": {}}
    path = put({"source": "a test", "facts": [fact]}, "paper/facts.json")
    with pytest.raises(ValueError) as caught:
        papers.facts()

    says = f"printed must be a number, then nothing or a unit (K, M, %), not {printed!r}"
    assert str(caught.value).startswith(f"{path}: field 'facts.0': {says}")


def test_bad_recorded_file(put: Put) -> None:
    """So is a bad file of recorded scores."""
    put(good())
    bad = {"provenance": {}, "scores": {"plain": {"sentiment": [1.0]}}}
    path = put({"blessings": [bad]}, "paper/table.recorded.json")
    (cell, *_) = papers.cells()
    with pytest.raises(ValueError) as caught:
        _ = cell.recorded

    assert str(caught.value).startswith(f"{path}: field 'blessings.0.scores.plain.sentiment': ")


def test_bad_spec(put: Put) -> None:
    """Settings that make no spec are refused with the cell's id and the field."""
    table = good()
    table["rows"][0]["spec"]["optimiser"]["rate"] = 0.0
    put(table)
    with pytest.raises(ValueError) as caught:
        _ = papers.cells()[0].spec

    assert str(caught.value).startswith("paper/table/plain/sentiment: field 'optimiser': rate must be")


def test_unknown_table(put: Put) -> None:
    """An unknown table is answered with the list of those there are."""
    put(good())
    with pytest.raises(ValueError) as caught:
        papers.cells("paper/other")

    assert "no table 'paper/other'; known: paper/table" == str(caught.value)


def test_unknown_cell(put: Put) -> None:
    """An unknown cell is answered with the ids that come closest, closest first."""
    put(good())
    with pytest.raises(ValueError) as caught:
        papers.find("paper/table/plain/sentimnt")

    assert str(caught.value).startswith("no cell 'paper/table/plain/sentimnt'; close: paper/table/plain/sentiment, ")
    assert str(caught.value).endswith("; `peft-dp list` shows all")


def test_start_of_cells(put: Put) -> None:
    """What is no cell but the start of some is answered with the command that lists those."""
    put(good())
    with pytest.raises(ValueError, match="`peft-dp list paper/table` shows all"):
        papers.find("paper/table")
