"""Every reader under damaged and hostile input: it takes what is right, or says in a sentence which file is wrong."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import TypeAdapter
from torch import nn

from peft_dp import Record, tasks
from peft_dp.backbones.bert import FAMILY
from peft_dp.models.backbone import Backbone
from peft_dp.records import Records, read
from peft_dp.spec import Optimiser, Privacy, Spec
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.claim import Claims
from peft_dp.suite.papers.fact import Facts
from peft_dp.suite.papers.recorded import Recorded
from peft_dp.suite.papers.table import Table
from peft_dp.tasks import conll, glue
from peft_dp.training.checkpoint import Checkpoint, State, _bytes
from peft_dp.training.trail import Epoch
from peft_dp.validate import Missing

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

FEW, MANY = 40, 2_000
"""Inputs of each reader, by default and with `-m slow`."""
COUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]

TABLE: dict[str, Any] = {
    "paper": "made",
    "table": "up",
    "title": "Made up",
    "source": "a test",
    "budget": "smoke",
    "seeds": 2,
    "defaults": {"backbone": "bert", "method": "bitfit", "optimiser": {"rate": 0.01}, "epochs": 1, "batch": 8},
    "tasks": {"sentiment": {"dev": 8}, "inference": {"dev": 8}},
    "rows": [
        {
            "id": "plain",
            "title": "Plain",
            "spec": {"optimiser": {"warmup": 0.5}, "config": {}},
            "expect": {"trainable": {"value": 338}},
            "cells": {
                "sentiment": {"score": {"value": 70.5, "std": 2.0, "runs": 5, "why": "as printed"}},
                "inference": {"score": {"value": 60.0}},
            },
            "tasks": {"sentiment": {"epochs": 2}},
        },
        {
            "id": "private",
            "title": "Private",
            "spec": {"privacy": {"epsilon": 8.0, "delta": 0.001}},
            "cells": {"sentiment": {"score": {"value": 65.0, "best_of": 2}}},
        },
    ],
}
CLAIMS: dict[str, Any] = {
    "source": "a test",
    "claims": [
        {
            "id": "c1",
            "says": "Plain is better.",
            "section": "2",
            "table": "up",
            "left": "plain",
            "right": "private",
            "tasks": ["sentiment"],
            "over": "each",
            "quantity": "score",
            "relation": ">",
            "times": 1.0,
            "plus": 2.0,
        }
    ],
}
FACTS: dict[str, Any] = {
    "source": "a test",
    "defaults": {"parameters": {"backbone": "bert"}},
    "facts": [{"id": "t/r/parameters", "printed": "101K", "quantity": "parameters", "given": {"method": "bitfit"}}],
}
RECORDED: dict[str, Any] = {
    "blessings": [
        {
            "provenance": {"date": "2026-01-01"},
            "scores": {"plain": {"sentiment": {"5": 70.0, "6": 72.5}}},
            "losses": {"plain": {"sentiment": {"5": 0.5, "6": 0.25}}},
        }
    ]
}
SPEC = Spec(
    budget="smoke",
    backbone="bert",
    task="sentiment",
    dev=8,
    method="bitfit",
    optimiser=Optimiser(rate=0.01),
    privacy=Privacy(epsilon=8.0, delta=1e-3),
    epochs=1,
    batch=8,
)
RECORD = Record(
    key="0" * 64,
    spec=SPEC,
    values={"score": 50.0, "trainable": 338.0},
    ledger={"epsilon": 7.99, "noise_multiplier": 1.0, "steps": 3},
    trail=[Epoch(loss=0.1, clipped=None, examples=24, tokens=300, steps=3, seconds=1e-3)],
    moved={"bias": [0.5, 0.25]},
    cost={"epoch_seconds": 0.5, "peak_bytes": 1e6},
    sources={"code": "c"},
    environment={"date": "2026-01-01"},
)
STATE = State({"weight": torch.arange(6.0).reshape(2, 3), "mask": torch.tensor([True, False])}, {"steps": 3})

PIECES = (
    *(b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\n\n", b"\t", b" ", b'"', b",", b"{", b"]"),
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"1_0",
        b"9" * 400,
        b"9" * 5000,
        b"true",
        b"null",
        b"../../up",
        b"\x1b[31m",
    ),
    *("\u2028".encode(), "\u0661".encode(), b"\\ud800", b"\\u0000", b"[" * 20_000, b'{"a":' * 5_000, b"x" * 20_000),
)
"""What is put into files: control bytes, halves of characters, numbers out of range, depth and length."""
VALUES = (
    *("null", "true", "0", "-1", "0.5", "1e999", "NaN", "Infinity", "9" * 400, "9" * 5000, "-9223372036854775809"),
    *('""', '"x"', '"66.6"', '"../../up"', '"\\u0000"', '"\\ud800"', '"\\u2028"', '"a\\nb"', '"' + "x" * 20_000 + '"'),
    *("[]", "{}", "[null]", '{"a": 1}', '{"a": 1, "a": 1}', "[" * 500 + "]" * 500, "[" * 20_000 + "]" * 20_000),
)
"""JSON that is put in the place of a value."""


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """The bytes after up to three edits; now and then bytes that have nothing to do with them."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
    content = good
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        end = draw(st.integers(at, min(len(content), at + 40)))
        piece = draw(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=4))
        content = draw(
            st.sampled_from(
                (
                    content[:at],
                    content[:at] + piece + content[at:],
                    content[:at] + piece + content[end:],
                    content[:at] + content[end:],
                    content[:end] + content[at:],
                )
            )
        )
    return content


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in JSON data: what holds it, and its name or index there."""
    for name in list(data) if isinstance(data, dict) else range(len(data)):
        yield data, name
        if isinstance(data[name], dict | list):
            yield from places(data[name])


@st.composite
def turned(draw: st.DrawFn, good: bytes) -> bytes:
    """JSON with another value, another name, or one more, in up to two places; else damaged bytes."""
    if draw(st.booleans()):
        return draw(damaged(good))
    data = json.loads(good)
    values = {}
    for number in range(draw(st.integers(1, 2))):
        holder, name = draw(st.sampled_from(list(places(data))))
        mark = f"mark {number}"
        values[mark] = draw(st.sampled_from(VALUES))
        if isinstance(holder, dict) and draw(st.integers(0, 3)) == 0:
            holder[draw(st.sampled_from(("x", "", "a\nb", "\u2028", "method", "config")))] = mark
        else:
            holder[name] = mark
    text = json.dumps(data)
    for mark, value in values.items():
        text = text.replace(f'"{mark}"', value)
    return text.encode()


def says(held: Any, given: Any) -> bool:
    """Whether data hold all that was given, each value of its own kind."""
    if isinstance(given, dict):
        return isinstance(held, dict) and all(name in held and says(held[name], given[name]) for name in given)
    if isinstance(given, list):
        return isinstance(held, list) and len(held) == len(given) and all(map(says, held, given))
    if isinstance(held, float) and not isinstance(given, str | bool | None):
        given = float(given)  # an integer may have more digits than a float
    return bool(held == given) and isinstance(held, bool | str | None) == isinstance(given, bool | str | None)


@dataclass(frozen=True)
class Reader:
    """A reader and a file that it takes.

    Attributes:
        file: The file's place in a folder.
        good: What it holds.
        read: Reads it.
        right: Whether what was read is what such bytes say.
        inputs: What it is given.
    """

    file: str
    good: bytes
    read: Callable[[Path], Any]
    right: Callable[[bytes, Any], bool]
    inputs: Callable[[bytes], st.SearchStrategy[bytes]] = damaged


def of_json(kind: type, good: dict[str, Any]) -> Reader:
    """The reader of a file in `expected/`."""

    def right(content: bytes, value: Any) -> bool:
        given = json.loads(content)
        given.pop("$schema", None)
        return says(TypeAdapter(kind).dump_python(value, mode="json", warnings=False), given)

    return Reader(
        "expected/made/up.json",
        json.dumps(good).encode(),
        lambda path: reader.read(path, kind),
        right,
        turned,
    )


def of_task(name: str, file: str, good: bytes, right: Callable[[bytes, Any], bool]) -> Reader:
    """The reader of one split of a task."""
    return Reader(file, good, lambda path: tasks.load(name, path.parents[1]).train, right)


def right_tsv(content: bytes, examples: list[tasks.Example]) -> bool:
    """Whether two examples stand in the file as they are, and their labels are words of it."""
    rows = [
        line.split("\t") for line in content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    ]
    found = [(row[1], row[2]) for row in rows[1:] if len(row) >= 4]
    return [(e.first, e.second) for e in examples] == found and {e.label for e in examples} <= {0, 1}


def right_parquet(content: bytes, examples: list[tasks.Example]) -> bool:
    """Whether two examples are as another reader of the same bytes has them."""
    table = parquet.read_table(pyarrow.BufferReader(content))
    return [asdict(e) for e in examples] == [
        {"first": row["sentence1"], "second": row["sentence2"], "label": row["label"]} for row in table.to_pylist()
    ]


def right_conll(content: bytes, examples: list[tasks.Example]) -> bool:
    """Whether the words of two sentences are the first column of the file, each with a tag."""
    text = content.decode(errors="replace")  # a line between sentences may hold anything
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    words = [line.split(" ")[0] for line in lines if not line.startswith("-DOCSTART-")]
    labels = [e.label if isinstance(e.label, tuple) else () for e in examples]
    return words == " ".join(e.first for e in examples).split(" ") and all(
        len(label) == len(e.first.split(" ")) and set(label) <= set(range(len(conll.TAGS)))
        for e, label in zip(examples, labels, strict=True)
    )


def parquet_file(**columns: Any) -> bytes:
    """A parquet file of those columns."""
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


RTE = b"index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tWet.\tentailment\n1\tIt snows.\tIt is hot.\tnot_entailment\n"
CONLL = b"-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\nPeter NNP I-NP B-PER\n"
PARQUET = parquet_file(sentence1=["It rains.", "It snows."], sentence2=["Wet.", "Hot."], label=[0, 1], idx=[0, 1])

READERS = {
    "table": of_json(Table, TABLE),
    "claims": of_json(Claims, CLAIMS),
    "facts": of_json(Facts, FACTS),
    "recorded": of_json(Recorded, RECORDED),
    "record": Reader(
        "records/r.json",
        TypeAdapter(Record).dump_json(RECORD),
        read,
        lambda content, value: says(TypeAdapter(Record).dump_python(value, mode="json"), json.loads(content)),
        turned,
    ),
    "tsv": of_task("rte", "RTE/train.tsv", RTE, right_tsv),
    "parquet": of_task("rte", "rte/train-00000-of-00001.parquet", PARQUET, right_parquet),
    "conll": of_task("conll2003", "conll2003/train.txt", CONLL, right_conll),
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with whole dev files, of tasks that have two rows."""
    for source, name in ((glue, "rte"), (conll, "conll2003")):
        monkeypatch.setitem(source.TASKS, name, replace(source.TASKS[name], train=2, dev=2))
    for name, content in (
        ("RTE/dev.tsv", RTE),
        ("rte/validation-00000-of-00001.parquet", PARQUET),
        ("conll2003/valid.txt", CONLL),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def fuzz(examples: int, strategy: st.SearchStrategy[Any], holds: Callable[[Any], None]) -> None:
    """Calls `holds` with so many inputs, each with five seconds; few are the same each time, many others each time."""
    run = settings(
        max_examples=examples,
        deadline=timedelta(seconds=5),
        derandomize=examples == FEW,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    run(given(strategy)(lambda each: holds(each)))()


def is_sentence(message: str, path: Path) -> bool:
    """Whether an error is one line of no great length that names the file, and nothing in it steers a terminal."""
    rest = message.replace(str(path), "")
    return str(path) in message and message.isprintable() and len(rest) < 600


def _written(reader: Reader, path: Path) -> Any:
    path.write_bytes(reader.good)
    return reader.read(path)


@pytest.mark.parametrize("examples", COUNTS)
@pytest.mark.parametrize("name", READERS)
def test_readers(name: str, examples: int, small: Path) -> None:
    """A reader takes a file for what it says, or refuses it in a sentence that names it."""
    reader = READERS[name]
    path = small / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)

    def holds(content: bytes) -> None:
        path.write_bytes(content)
        try:
            value = reader.read(path)
        except (ValueError, Missing) as error:
            value, said = None, str(error)
        else:
            said = ""
        assert is_sentence(said, path) if said else reader.right(content, value), said[:2000] or value

    assert reader.right(reader.good, _written(reader, path))
    fuzz(examples, reader.inputs(reader.good), holds)


@pytest.mark.parametrize(
    "column",
    [[b"a", b"b"], [["a"], ["b"]], [{"a": 1}, {"a": 2}], [1, 2], [None, "b"], [True, False]],
    ids=lambda column: type(column[0]).__name__,
)
def test_parquet_of_other_types(column: list[Any], small: Path) -> None:
    """A column that holds no sentences is refused, and not written out as if it did."""
    path = small / READERS["parquet"].file
    path.write_bytes(parquet_file(sentence1=column, sentence2=["Wet.", "Hot."], label=[0, 1]))
    with pytest.raises(ValueError) as caught:
        tasks.load("rte", small)

    assert is_sentence(str(caught.value), path)


@pytest.mark.parametrize("examples", COUNTS)
def test_checkpoints(examples: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint is the one that was kept, or is set aside with a line that names it."""
    path, good = tmp_path / "run.safetensors", _bytes(STATE)

    def holds(content: bytes) -> None:
        caplog.clear()
        path.write_bytes(content)
        found = Checkpoint(path).load()
        if found is None:
            (message,) = caplog.messages
            assert is_sentence(message.replace(f"{path}.damaged", ""), path)
            assert not path.exists()
        else:
            assert found.values == STATE.values
            assert found.tensors.keys() == STATE.tensors.keys()
            assert all(torch.equal(value, STATE.tensors[name]) for name, value in found.tensors.items())

    holds(good)
    with caplog.at_level(logging.WARNING):
        fuzz(examples, damaged(good), holds)


@pytest.mark.parametrize("examples", COUNTS)
def test_saved_weights(examples: int, tmp_path: Path) -> None:
    """Weights that are restored have the names and shapes of those that train, or are refused by name."""
    layer = nn.Module()
    head = nn.Linear(2, 2)
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": nn.ModuleList([layer])}), "head": head})
    family = replace(FAMILY)
    backbone = Backbone(model, model, family, [head])
    path = tmp_path / "saved.safetensors"
    backbone.save(path)
    good = path.read_bytes()

    def holds(content: bytes) -> None:
        path.write_bytes(content)
        try:
            backbone.restore(path)
            said = ""
        except ValueError as error:
            said = str(error)
        assert not said or is_sentence(said, path), said

    holds(good)
    fuzz(examples, damaged(good), holds)


@pytest.fixture
def folder(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tables of one paper and a folder of records of them."""
    made = tables / "made"
    made.mkdir()
    for name, data in (("up", TABLE), ("claims", CLAIMS), ("facts", FACTS), ("up.recorded", RECORDED)):
        (made / f"{name}.json").write_text(json.dumps(data))
    monkeypatch.chdir(tmp_path)
    for cell in papers.cells():
        Records(tmp_path / "records").save(replace(RECORD, spec=cell.spec, key=cell.spec.digest))
    return tmp_path


def command(*arguments: str) -> tuple[int, str]:
    """The exit code of a command, and what it says on standard error; nothing where argparse ends it."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
        try:
            return main(arguments), errors.getvalue()
        except SystemExit as stop:
            return int(stop.code or 0), ""


ARGUMENTS = st.text(st.characters(exclude_characters="/"), max_size=20) | st.sampled_from(
    (
        *("records", "expected", "no-such", ".", "", "-", "--", "--json", "-v", "--markdown", "--latex", "--csv"),
        *("made/", "made/up/plain/sentiment", "made/claims/c1", "made/t/r/parameters", "made/up/cited", "\udc80"),
        *("a\0b", "x" * 300, "x" * 5000, "\u2028", "a\nb", "--help", "--jso", "records/r.json", "no-such/out.csv"),
    )
)


@pytest.mark.parametrize("examples", COUNTS)
def test_command_line(examples: int, folder: Path) -> None:
    """Whatever words follow a verb that reads, the exit code is one of the documented, and an error is one line."""

    def holds(arguments: list[str]) -> None:
        code, said = command(*arguments)
        assert code in (0, 1, 2, 3)
        assert code < 2 or not said or (said.startswith("peft-dp: ") and said[:-1].isprintable()), said[:2000]

    verbs = st.sampled_from(["list", "show", "report", "compare"])
    # Of a second "--" argparse makes a list, whatever the argument's type.
    words = st.lists(ARGUMENTS, max_size=4).filter(lambda words: words.count("--") < 2)
    fuzz(examples, st.builds(lambda verb, words: [verb, *words], verbs, words), holds)


@pytest.mark.parametrize("examples", COUNTS)
@pytest.mark.parametrize("name", ["up", "claims", "facts", "up.recorded"])
def test_commands_on_damaged_tables(name: str, examples: int, folder: Path) -> None:
    """A table that is wrong in any way makes a command that reads it say so in one line that names the file."""
    path = folder / "expected" / "made" / f"{name}.json"
    good = path.read_bytes()

    def holds(content: bytes) -> None:
        path.write_bytes(content)
        for arguments in (("list",), ("show", "made/up/plain/sentiment"), ("report", "records")):
            code, said = command(*arguments)
            assert code in (0, 1, 2, 3)
            assert not said or is_sentence(said.removesuffix("\n"), Path("peft-dp: ")), said[:2000]

    holds(good)
    fuzz(examples, turned(good), holds)


@pytest.mark.parametrize("examples", COUNTS)
def test_report_of_damaged_records(examples: int, folder: Path) -> None:
    """One record that is wrong in any way is named, and the verdicts of the others are there."""
    path = folder / "records" / "other.json"
    good = TypeAdapter(Record).dump_json(replace(RECORD, spec=papers.cells()[0].spec))

    def holds(content: bytes) -> None:
        path.write_bytes(content)
        code, said = command("report", "records")
        assert code in (0, 1)
        # It may be wrong, and differ from the one beside it.
        assert all(is_sentence(line, path.relative_to(folder)) for line in said.splitlines()), said[:2000]

    holds(good)
    fuzz(examples, turned(good), holds)
