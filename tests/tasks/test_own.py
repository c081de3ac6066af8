"""One's own data: equal rows from every format, and what is refused with its line."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub import constants
from pyarrow import Table, parquet

from peft_dp import hub, tasks
from peft_dp.tasks import own
from peft_dp.validate import Missing

Row = dict[str, Any]
REVIEWS: list[Row] = [
    {"text": 'A "fine" film, we saw', "label": "good"},
    {"text": "NA", "label": "bad"},
    {"text": "two\nlines", "label": "mixed"},
    {"text": "null", "label": "bad"},
    {"text": "nan", "label": "good"},
    {"text": "2020-01-01", "label": "mixed"},
    {"text": "a 😀, é and ü", "label": "good"},
]
PAIRS: list[Row] = [
    {"premise": "It rained", "hypothesis": "It was wet", "label": 1},
    {"premise": "It rained", "hypothesis": "It was dry", "label": 0},
]
SCORES: list[Row] = [{"first": "a cat", "second": "a dog", "score": 2.5}, {"first": "a", "second": "b", "score": 3.0}]
TAGS: list[Row] = [
    {"tokens": ["Ann", "saw", "New", "York"], "ner_tags": ["B-PER", "O", "B-LOC", "I-LOC"]},
    {"tokens": ["It", "rained"], "ner_tags": ["O", "O"]},
]


def write(folder: Path, kind: str, **splits: Sequence[Row]) -> str:
    """Write rows in a format, and return the address of the files."""
    files = []
    for name, rows in splits.items():
        files.append(folder / f"{name}.{kind}")
        if kind == "parquet":
            parquet.write_table(Table.from_pylist([*rows]), files[-1])
        elif kind == "json":
            files[-1].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        else:
            with files[-1].open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, [*rows[0]], delimiter=own_separator(kind))
                table.writeheader()
                table.writerows([{name: plain(value) for name, value in row.items()} for row in rows])
    return f"{kind}:{','.join(map(str, files))}"


def own_separator(kind: str) -> str:
    """The separator of a format."""
    return "\t" if kind == "tsv" else ","


def plain(value: object) -> object:
    """A value as separated values have it: words with spaces between."""
    return " ".join(value) if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("rows", "kind", "labels", "pair"),
    [
        (REVIEWS, "classification", ("bad", "good", "mixed"), False),
        (PAIRS, "classification", ("0", "1"), True),
        (SCORES, "regression", (), True),
        (TAGS, "tokens", ("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), False),
    ],
    ids=["three classes", "pairs", "scores", "tags"],
)
def test_equal_rows(rows: list[Row], kind: str, labels: tuple[str, ...], pair: bool, tmp_path: Path) -> None:
    """The same rows are the same task with the same hash from every format, and every odd text is read as it is."""
    hashes = set()
    for form in own.FILES:
        address = write(tmp_path, form, train=rows, dev=rows[:2])
        task, data = tasks.find(address), tasks.load(address)
        hashes.add(data.sha256)

        assert (task.kind, task.labels, task.pair, task.train, task.dev) == (kind, labels, pair, len(rows), 2)
        assert not task.public
        assert [one.first for one in data.train] == [plain(next(iter(row.values()))) for row in rows]
    made = own.task("in-memory", Dataset.from_list(rows), Dataset.from_list(rows[:2]))
    hashes.add(tasks.load("in-memory").sha256)

    assert len(hashes) == 1
    assert (made.kind, made.labels) == (kind, labels)
    del own.TASKS["in-memory"]


def test_own_order_of_classes(tmp_path: Path) -> None:
    """Classes that a data set declares keep its order; others are sorted, numbers by size."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["worse", "better"])})
    declared = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    rows = [{"text": "a", "label": label} for label in (10, 9, 2)]

    assert own.task("declared", declared, declared).labels == ("worse", "better")
    assert tasks.find(write(tmp_path, "json", train=rows, dev=rows)).labels == ("2", "9", "10")
    del own.TASKS["declared"]


def test_changed_file(tmp_path: Path) -> None:
    """A changed file is read anew, though its time stamp and its size are the old ones."""
    address = write(tmp_path, "csv", train=REVIEWS, dev=REVIEWS)
    before = tasks.load(address).sha256
    path, stamp = tmp_path / "dev.csv", (tmp_path / "dev.csv").stat()
    path.write_bytes(path.read_bytes().replace(b"fine", b"dull"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    assert path.stat().st_size == stamp.st_size
    assert tasks.load(address).sha256 != before


GOOD = "text,label\na film,good\nanother,bad\n"


@pytest.mark.parametrize(
    ("kind", "train", "words"),
    [
        ("csv", b"text,label\na,good\nb\n", "train.csv, line 3 has 1 columns, not 2"),
        ("csv", b'text,label\n"a\nb",good\nx,y,bad\n', "train.csv, line 4 has 3 columns, not 2"),
        ("csv", b'text,label\na,good\n"b,bad\n', "train.csv, line 3 cannot be read"),
        ("csv", b"text,label\na,good\n,bad\n", "train.csv, line 3 has an empty text in 'text'"),
        ("csv", b"text,label\na,good\nb,\n", "train.csv, line 3 has '' in 'label'"),
        ("csv", b"text,label\na,good\nb\0,bad\n", "train.csv, line 3 holds a NUL character"),
        ("csv", b"text,label\na,good\n\xff,bad\n", "train.csv, line 3 is not UTF-8"),
        ("csv", b"text,text\na,good\n", "train.csv, line 1 must name each column, and each once"),
        ("csv", b"", "train.csv is empty"),
        ("csv", b"text,label\n", "train.csv has no row"),
        ("csv", b"text,label\na,good\nb,good\n", "has 1 different labels in 'label', where 2 to 150 make classes"),
        (
            "csv",
            b"text,label\na,fine\nb,bad\n",
            "dev.csv, line 2 has the label 'good'; the training rows",
        ),
        (
            "csv",
            b"a,b,c,label\n1,2,3,x\n4,5,6,y\n",
            "has the columns a, b, c, label; the label is label: name",
        ),
        ("json", b'{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2 lacks the field 'label'"),
        ("json", b'{"text": "a", "label": 1}\n{"text": 2, "label": 1}\n', "line 2 has 2 as 'text', of another type"),
        ("json", b'{"text": "a", "label": 1}\nnonsense\n', "line 2 is not JSON"),
        ("json", b'[{"text": "a", "label": 1}]', "line 1 is no object"),
        ("json", b'\xef\xbb\xbf{"text": "a", "label": 1}\n', "begins with a byte order mark"),
        ("parquet", b"PAR1 nothing", "train.parquet cannot be read as parquet"),
    ],
)
def test_odd_rows(kind: str, train: bytes, words: str, tmp_path: Path) -> None:
    """What is no row of a task is refused by one sentence that names file and line."""
    (tmp_path / f"train.{kind}").write_bytes(train)
    (tmp_path / "dev.csv").write_text(GOOD)
    scored = "dev.csv" if kind == "csv" else f"train.{kind}"
    address = f"{kind}:{tmp_path}/train.{kind},{tmp_path}/{scored}"

    with pytest.raises(ValueError) as error:
        tasks.find(address)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_byte_order_mark(tmp_path: Path) -> None:
    """Spreadsheets put a mark before the first column's name; it is no part of the name."""
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    task = tasks.find(f"csv:{tmp_path}/train.csv,{tmp_path}/dev.csv?first=text")

    assert task.labels == ("bad", "good")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("csv:train.csv", "must name two files"),
        ("xls:a,b", "unknown kind of data 'xls'; known: csv, hf, json, parquet, tsv"),
        ("csv:train.csv,dev.csv?colour=x", "unknown option of a task 'colour'"),
        ("csv:train.csv,dev.csv?label=stars", "has no column 'stars', only text, label"),
        ("csv:train.csv,dev.csv?metric=bleu", "unknown metric of a classification task 'bleu'"),
        (
            "csv:train.csv,dev.csv?kind=regression",
            "label 'good'; the training rows have: a finite number",
        ),
        ("hf:owner/name@main", "pins no commit"),
    ],
)
def test_addresses(address: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that is none says what it should be."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text(GOOD)

    with pytest.raises(ValueError) as error:
        tasks.find(address)
    assert words in str(error.value)


def test_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there is something this machine lacks, and the message says where it was looked for."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(Missing, match=f"gone.csv is not there .looked for in {tmp_path}"):
        tasks.find("csv:gone.csv,dev.csv")


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pinned commit in the cache is read without a network; another one that lies there is not taken for it."""
    pinned, other = "1" * 40, "2" * 40
    snapshot = tmp_path / "datasets--ours--reviews" / "snapshots" / other
    snapshot.mkdir(parents=True)
    write(snapshot, "csv", train=REVIEWS, validation=REVIEWS[:2])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "fault", lambda: "cannot be reached")

    with pytest.raises(Missing, match=f"ours/reviews at {pinned} is not in the local cache"):
        tasks.find(f"hf:ours/reviews@{pinned}")
    task, data = tasks.find(f"hf:ours/reviews@{other}"), tasks.load(f"hf:ours/reviews@{other}")

    assert (task.title, task.train, task.dev, task.labels) == ("reviews", 7, 2, ("bad", "good", "mixed"))
    assert data.train == tasks.load(write(tmp_path, "json", train=REVIEWS, dev=REVIEWS)).train


def test_taken_name() -> None:
    """A data set in memory cannot stand for a task that is there."""
    rows = Dataset.from_list(REVIEWS)

    with pytest.raises(ValueError, match="task 'sst2' is there already"):
        own.task("sst2", rows, rows)


@pytest.mark.parametrize("pair", [False, True])
def test_texts_to_predict(pair: bool, tmp_path: Path) -> None:
    """The texts of a file to predict are found by themselves, or named; which of several are meant is never guessed."""
    rows = [{"id": at, "title": f"title {at}", "body": f"body {at}", "label": "good"} for at in range(3)]
    write(tmp_path, "csv", new=rows)
    both = [(f"title {at}", f"body {at}") for at in range(3)]

    if pair:
        assert own.texts(f"{tmp_path}/new.csv", pair=True) == both
    else:
        with pytest.raises(ValueError, match=r"the model takes one text: name it by \?first=COLUMN"):
            own.texts(f"{tmp_path}/new.csv", pair=False)
        assert own.texts(f"{tmp_path}/new.csv?first=body", pair=False) == [body for _, body in both]
    with pytest.raises(ValueError, match="unknown kind of data 'doc'"):
        own.texts("new.doc", pair=pair)
