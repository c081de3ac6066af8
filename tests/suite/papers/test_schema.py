"""The format for editors: checked-in schemas are those of the types, and refuse what the reader refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from peft_dp import methods, registry
from peft_dp.suite import papers
from peft_dp.suite.papers import reader, recorded
from peft_dp.suite.papers.schema import schemas

FOLDER = reader.FOLDER
FILES = sorted(FOLDER.glob("*/*.json"))
UNDESCRIBED = {"$schema", "budget", "optimiser", "name"}
"""Properties whose name says all."""


def validate(path: Path, schema: str) -> None:
    """Holds a file against a schema of the types.

    Raises:
        ValidationError: It does not fit.
    """
    Draft202012Validator(json.loads(schemas()[schema])).validate(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", schemas())
def test_is_renewed(name: str) -> None:
    """The file that editors read is a JSON Schema, and what the types give."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    Draft202012Validator.check_schema(json.loads(text))

    assert text == schemas()[name], "the types have changed: run `python -m peft_dp.suite.papers.schema`"


def test_says_what_things_mean() -> None:
    """Whatever an editor may complete, it can explain: the docstrings' attributes, and no docstring as a whole."""
    for name, text in schemas().items():
        made = json.loads(text)
        for part in (made, *made["$defs"].values()):
            bare = {field for field, held in part.get("properties", {}).items() if "description" not in held}

            assert bare <= UNDESCRIBED, name
            assert "Attributes" not in part.get("description", ""), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_fit(path: Path) -> None:
    """Every file names its schema, where an editor finds it, and fits it."""
    link = json.loads(path.read_text(encoding="utf-8")).get("$schema", "none")

    assert (path.parent / link).resolve() in {FOLDER / name for name in schemas()}
    validate(path, Path(link).name)


TABLE, CLAIMS, FACTS, RECORDED = "comparison.json", "claims.json", "facts.json", "comparison.recorded.json"
SCHEMA = {TABLE: "table", CLAIMS: "claims", FACTS: "facts", RECORDED: "recorded"}


@pytest.fixture
def paper(tables: Path) -> Path:
    """A folder with one valid file of each kind, in place of the project's own."""
    folder = shutil.copytree(FOLDER / "dp_bitfit", tables / "dp_bitfit")
    shutil.copy(FOLDER / "embedded" / "smoke.recorded.json", folder / RECORDED)
    return folder


def read() -> None:
    """Reads every file of that folder as the bench does."""
    for cell in papers.cells():
        assert cell.spec
    assert papers.claims()
    assert papers.facts()
    assert recorded.read_recorded("dp_bitfit/comparison").blessings


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        (TABLE, ("$schema",), "../claims.schema.json"),
        (TABLE, ("heading",), "unknown"),
        (TABLE, ("source",), None),
        (TABLE, ("budget",), "large"),
        (TABLE, ("seeds",), "5"),
        (TABLE, ("rows", 1, "heading"), "unknown"),
        (TABLE, ("rows", 1, "$schema"), "../table.schema.json"),
        (TABLE, ("rows", 1, "assumed"), "backbone"),
        (TABLE, ("rows", 1, "expect", "trainable", "value"), "1538"),
        (TABLE, ("rows", 1, "expect", "trainable", "asserted"), 1),
        (TABLE, ("rows", 1, "cells", "sst2", "trainable"), {"values": 1.0}),
        (TABLE, ("defaults", "optimizer"), {"rate": 0.1}),
        (TABLE, ("defaults", "optimiser", "rates"), 0.1),
        (TABLE, ("defaults", "optimiser", "name"), "adam"),
        (TABLE, ("defaults", "dropout"), 0.1),
        (TABLE, ("tasks", "sst2", "epoch"), 3),
        (TABLE, ("tasks", "sst2", "epochs"), 2.5),
        (TABLE, ("rows", 1, "spec", "methods"), "full"),
        (TABLE, ("rows", 1, "spec", "config"), ["rank", 1]),
        (TABLE, ("rows", 1, "spec", "privacy"), {"eps": 8.0}),
        (TABLE, ("rows", 1, "spec", "privacy"), "none"),
        (TABLE, ("rows", 1, "tasks"), {"sst2": {"readout": "pooler"}}),
        (CLAIMS, ("claims", 0, "quantities"), "score"),
        (CLAIMS, ("claims", 0, "relation"), "="),
        (CLAIMS, ("claims", 0, "tasks"), "sst2"),
        (CLAIMS, ("$schema",), "../table.schema.json"),
        (FACTS, ("facts", 0, "prints"), "0.1%"),
        (FACTS, ("facts", 0, "printed"), 0.1),
        (FACTS, ("facts", 0, "quantity"), "epsilon"),
        (FACTS, ("defaults", "percent"), 0.1),
        (RECORDED, ("blessings", 0, "score"), {}),
        (RECORDED, ("blessings", 0, "scores"), {"full": {"sst2": [90.0]}}),
        (RECORDED, ("blessings", 0, "provenance"), "this machine"),
    ],
    ids=str,
)
def test_refuses_what_the_reader_refuses(paper: Path, name: str, place: tuple[str | int, ...], value: object) -> None:
    """A field that is misspelt, or a value of another type, is refused by the schema and by the reader."""
    path, schema = paper / name, f"{SCHEMA[name]}.schema.json"
    validate(path, schema)
    read()
    data: Any = json.loads(path.read_text(encoding="utf-8"))
    inner = data
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    path.write_text(json.dumps(data))

    with pytest.raises(ValidationError):
        validate(path, schema)
    with pytest.raises(ValueError, match=f"{path}: "):
        read()


@pytest.mark.parametrize(
    ("name", "list_of", "missing"), [(TABLE, "rows", "cells"), (CLAIMS, "claims", "says"), (FACTS, "facts", "given")]
)
def test_refuses_what_is_missing(paper: Path, name: str, list_of: str, missing: str) -> None:
    """So is a field left out that has no default."""
    path, schema = paper / name, f"{SCHEMA[name]}.schema.json"
    data: Any = json.loads(path.read_text(encoding="utf-8"))
    del data[list_of][0][missing]
    path.write_text(json.dumps(data))

    with pytest.raises(ValidationError, match=f"'{missing}' is a required property"):
        validate(path, schema)
    with pytest.raises(ValueError, match=f"{path}: field '{list_of}.0.{missing}': field required"):
        read()


def test_takes_what_the_reader_takes(paper: Path) -> None:
    """A layer may set any field or none, null over an object among them, and a file need not name its schema."""
    path = paper / TABLE
    data: Any = json.loads(path.read_text(encoding="utf-8"))
    del data["$schema"]
    data["rows"][-1]["tasks"]["sst2"] = {"privacy": None, "config": {"bottleneck": 8}, "train": 100}
    path.write_text(json.dumps(data))
    validate(path, "table.schema.json")
    read()


def test_written_files_name_their_schema(paper: Path) -> None:
    """What a blessing writes fits the schema that it names in its first line."""
    path = recorded.add_blessing(
        "dp_bitfit/comparison", recorded.Blessing(provenance={}, scores={"full": {"sst2": {"0": 1.0}}})
    )

    assert path.read_text(encoding="utf-8").splitlines()[1] == ' "$schema": "../recorded.schema.json",'
    validate(path, "recorded.schema.json")


SETTINGS = [
    (method, field.alias or name)
    for method in registry.names("methods")
    for name, field in methods.load(method).Config.model_fields.items()
]


def settings_of(paper: Path, method: str, config: object) -> Path:
    """Have the second row of the paper's table name a method and its settings; give the file."""
    path = paper / TABLE
    data = json.loads(path.read_text(encoding="utf-8"))
    data["rows"][1]["spec"] |= {"method": method, "config": config}
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("method", "setting"), [*SETTINGS, *((name, "no_setting") for name in registry.names("methods"))]
)
def test_settings_of_methods(paper: Path, method: str, setting: str) -> None:
    """A setting of another type or a misspelt one is refused by the schema, and by file, row and field before a run."""
    example = methods.load(method).EXAMPLE.model_dump(mode="json")
    path = settings_of(paper, method, example)
    validate(path, "table.schema.json")
    row = json.loads(path.read_text(encoding="utf-8"))["rows"][1]["id"]
    cell = next(cell for cell in papers.cells() if cell.row.id == row)
    cell.check_settings()
    settings_of(paper, method, example | {setting: {"of": "another type"}})
    cell = next(cell for cell in papers.cells() if cell.row.id == row)

    with pytest.raises(ValidationError):
        validate(path, "table.schema.json")
    with pytest.raises(ValueError, match=f"^expected/dp_bitfit/comparison.json, row '{row}': .*{setting}"):
        cell.check_settings()


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("bitfit", {"pooler": "false"}),
        ("lora", {"rank": 2.5}),
        ("diff_pruning", {"structured": "false"}),
        ("spafit", {"frozen": 0.5}),
    ],
)
def test_settings_that_passed(paper: Path, method: str, config: dict[str, object]) -> None:
    """So are these, which were once taken."""
    example = methods.load(method).EXAMPLE.model_dump(mode="json")
    path = settings_of(paper, method, example | config)
    row = json.loads(path.read_text(encoding="utf-8"))["rows"][1]["id"]

    with pytest.raises(ValidationError):
        validate(path, "table.schema.json")
    with pytest.raises(ValueError, match=f"field '{next(iter(config))}': Input should be a valid "):
        next(cell for cell in papers.cells() if cell.row.id == row).check_settings()


def test_settings_of_tasks(paper: Path) -> None:
    """What a row sets for one task is held to the row's method too."""
    path = settings_of(paper, "lora", {"rank": 2})
    data = json.loads(path.read_text(encoding="utf-8"))
    data["rows"][1]["tasks"] = {"sst2": {"config": {"alpha": 4}}}
    path.write_text(json.dumps(data))
    validate(path, "table.schema.json")
    data["rows"][1]["tasks"] = {"sst2": {"config": {"alpa": 4}}}
    path.write_text(json.dumps(data))

    with pytest.raises(ValidationError):
        validate(path, "table.schema.json")
