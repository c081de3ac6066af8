"""A folder of one's own tables, with a method, a task and data of one's own, and every verb and option on it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from peft_dp import code, registry
from peft_dp.machine import Places
from peft_dp.records import Records, read
from peft_dp.runs import run
from peft_dp.suite import papers
from peft_dp.suite.bless import bless, cells_of
from peft_dp.suite.cli.main import main

from ..processes import Done, pytest_session

DOCS = Path(__file__).parents[2] / "docs"
METHOD = '''
from peft_dp.methods import Method


class Config(Method):
    """The top layer's bias."""

    def install(self, backbone, rng):
        backbone.sites("output_norm")[-1].get_parameter("bias").requires_grad_(True)


EXAMPLE = Config()
'''
TABLE = {
    "paper": "films",
    "table": "main",
    "title": "Our films",
    "source": "our own runs",
    "budget": "smoke",
    "defaults": {
        "backbone": "bert",
        "dropout": False,
        "train": 24,
        "dev": 12,
        "epochs": 2,
        "batch": 8,
        "max_length": 24,
        "optimiser": {"rate": 0.01},
    },
    "tasks": {"reviews": {"task": "csv:train.csv,dev.csv"}},
    "rows": [
        {"id": "top", "title": "Top", "spec": {"method": "top"}, "cells": {"reviews": {}}},
        {
            "id": "private",
            "title": "Private",
            "spec": {"method": "top", "privacy": {"epsilon": 8.0, "delta": 0.01}},
            "cells": {"reviews": {}},
        },
    ],
}


def rows(folder: Path, *names: str) -> None:
    """Write reviews as separated values."""
    for name in names:
        lines = [
            f"we saw a {'good' if at % 2 else 'bad'} film and it was {at},{'good' if at % 2 else 'bad'}\n"
            for at in range(24)
        ]
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(lines))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """The folder."""
    folder = tmp_path / "ours"
    for name in ("films", "methods"):
        (folder / name).mkdir(parents=True)
    (folder / "films" / "main.json").write_text(json.dumps(TABLE))
    (folder / "methods" / "top.py").write_text(METHOD)
    rows(folder, "train", "dev")
    return folder


def test_verbs(
    ours: Path, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every verb knows the folder, from wherever it is typed, and leaves the process as it was."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    tables, there = ("--tables", str(ours)), ("--backbones", str(places.backbones), "--device", "cpu")

    def typed(*words: str) -> str:
        assert main(words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert re.findall(r"^(films/\S+)", typed("list", *tables), re.MULTILINE) == [
        "films/main/top/reviews",
        "films/main/private/reviews",
    ]
    shown = typed("show", "films/main/top/reviews", *tables)
    # A long path is folded.
    assert f"run films/main/top/reviews --tables {ours}".replace(" ", "") in "".join(shown.split())
    for row in ("top", "private"):
        typed("run", f"films/main/{row}/reviews", *tables, *there)
    typed("plan", "films", *tables)
    assert "films/main" in typed("report", "records", *tables)
    typed("report", "records", *tables, "--html", "page.html")
    assert "Our films" in Path("page.html").read_text(encoding="utf-8")
    typed("compare", "records", "records", *tables)
    assert not registry.own_folder()
    assert "films" not in {cell.table.paper for cell in papers.cells()}
    assert main(["run", "films/main/top/reviews"]) == 2
    assert main(["list", "--tables", str(ours / "gone")]) == 2


def session(ours: Path, cwd: Path, *words: object) -> Done:
    """Run the bench on the folder."""
    bench = Path(__file__).parents[2] / "bench"
    return pytest_session(bench, "-k", "films", "--peft-tables", ours, "-p", "no:cacheprovider", *words, cwd=cwd)


@pytest.mark.parametrize("workers", [(), ("-n", 2)], ids=["alone", "two workers"])
def test_bench(workers: tuple[object, ...], ours: Path, places: Places, tmp_path: Path) -> None:
    """Pytest runs the folder's cells, in workers too."""
    options = ("--peft-backbones", places.backbones, "--peft-records", tmp_path / "records", *workers)
    done = session(ours, tmp_path, *options)

    assert done.code == 0, done.text
    assert re.search(r"^films/main +Our films$", done.text, re.MULTILINE)
    assert "2 passed" in done.text
    private = next(read(path) for path in (tmp_path / "records").glob("*.json") if "-dp-" in path.name)
    assert private.secret


@pytest.mark.slow
def test_blessed(ours: Path, places: Places, tmp_path: Path) -> None:
    """What is recorded lies beside the table; a run of a recorded seed repeats it, a private one is held to seeds."""
    told: list[str] = []
    with registry.with_own(ours):
        file = bless(cells_of("films/main"), 5, places, Records(tmp_path / "records"), told.append)
        drift = papers.find("films/main/top/reviews").drift
    again = session(ours, tmp_path, "--peft-backbones", places.backbones, "--peft-records", tmp_path / "again")

    assert file == ours / "films" / "main.recorded.json"
    assert drift
    assert "loss not told of a private run" in "".join(told)
    assert "1 of 2 cells repeat what was recorded" in again.text
    assert again.code == 0


def test_code(ours: Path, places: Places) -> None:
    """One's own method is in the hash of a run's code, and another file of the folder is not."""
    with registry.with_own(ours):
        spec = papers.find("films/main/top/reviews").spec
        paths = code.files("runs", "methods.top")
        assert ours / "methods" / "top.py" in paths
        assert run(spec, places).values["trainable"] == 16 + 17 * 2


def test_taken_names(ours: Path) -> None:
    """A method or a paper of a name that is taken is refused, not taken for the other."""
    (ours / "methods" / "lora.py").write_text(METHOD)
    with registry.with_own(ours), pytest.raises(ValueError, match=r"lora\.py has the name of an entry in"):
        registry.names("methods")
    (ours / "films").rename(ours / "slash")
    with registry.with_own(ours), pytest.raises(ValueError, match="has the name of a paper in"):
        papers.cells()


def test_tutorial(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/own.md work in a folder with those files, here on a tiny backbone."""
    monkeypatch.chdir(tmp_path)
    rows(tmp_path, "train", "dev", "new")
    text = (DOCS / "own.md").read_text(encoding="utf-8")
    commands = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0].splitlines()
    there = ("--backbones", str(places.backbones), "--device", "cpu")
    for command in commands:
        words = shlex.split(command)[1:]
        small = {"300": "24", "100": "12"}
        words = [small.get(word, word) for word in words]
        tiny = ("--backbone", "bert", "--batch", "8", "--set", "config.size=8") if words[0] == "run" else ()
        assert main([*words, *tiny, *there]) == 0, capsys.readouterr().err
    last = capsys.readouterr().out.splitlines()[-24:]

    assert set(last) <= {"good", "bad"}


PAIRS = [{"question": f"was it {at}", "answer": "it was", "label": at % 3} for at in range(12)]
TAGS = [{"tokens": ["we", "saw", "it"], "tags": ["O", "O", "B-FILM" if at % 2 else "O"]} for at in range(12)]
SCORES = [{"text": f"a film {at}", "score": at / 8} for at in range(12)]


@pytest.mark.parametrize(
    ("row", "kind", "examples", "more"),
    [
        ("bitfit/inference", "json", PAIRS, ()),
        ("bitfit/entities", "parquet", TAGS, ()),
        ("bitfit/sentiment", "tsv", SCORES, ("--set", "readout=mean")),
    ],
    ids=["pairs", "tags", "scores"],
)
def test_kinds(
    row: str,
    kind: str,
    examples: list[dict[str, object]],
    more: tuple[str, ...],
    places: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pairs as JSON lines, tags as parquet and scores as tabbed values train, are kept, and predict a file of texts."""
    from datasets import Dataset

    monkeypatch.chdir(tmp_path)
    data, suffix = Dataset.from_list(examples), "jsonl" if kind == "json" else kind
    for name in ("train", "dev", "new"):
        if kind == "json":
            data.to_json(f"{name}.{suffix}")
        elif kind == "parquet":
            data.to_parquet(f"{name}.{suffix}")
        else:
            data.to_csv(f"{name}.{suffix}", sep="\t", index=False)
    there = ("--backbones", str(places.backbones), "--device", "cpu")
    sizes = ("--train", "12", "--dev", "12", "--epochs", "1", "--batch", "4", "--backbone", "bert")
    task = f"{kind}:train.{suffix},dev.{suffix}"
    assert main(["run", f"embedded/smoke/{row}", "--task", task, *sizes, *more, "--save", "m", *there]) == 0
    capsys.readouterr()
    assert main(["predict", "m", f"new.{suffix}", *there]) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if line]

    assert len(found) == 12
    allowed = {"json": {"0", "1", "2"}, "parquet": {"O", "B-FILM", "I-FILM"}}
    for line in found:
        if kind == "tsv":
            assert isinstance(json.loads(line), float)
        else:
            said = json.loads(line) if kind == "parquet" else [line]
            assert set(said) <= allowed[kind]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train", "30"], "task 'csv:train.csv,dev.csv' has 24: add --train 24"),
        (["--train", "24", "--dev", "24", "--set", "colour=red"], "field 'colour'"),
        (["--train", "24", "--dev", "24", "--set", "seed=3"], "by --seed"),
        (["--train", "24", "--dev", "24", "--set", 'budget="paper"'], "set train, dev and epochs"),
        (["--train", "24", "--dev", "24", "--set", "secret=true"], "secret"),
        (["--train", "24", "--dev", "24", "--set", "epochs"], "--set takes FIELD=VALUE"),
        (["--train", "24", "--dev", "24", "--set", "config.rank=two"], "rank"),
        (["--train", "24", "--dev", "24", "--save", ".", "--batch", "8"], "is not empty"),
    ],
)
def test_wrong_words(
    words: list[str],
    says: str,
    places: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a newcomer gets wrong is answered in one sentence before anything trains."""
    monkeypatch.chdir(tmp_path)
    rows(tmp_path, "train", "dev")
    task = ("--task", "csv:train.csv,dev.csv", "--backbone", "bert", "--backbones", str(places.backbones))
    code = main(["run", "embedded/smoke/lora/sentiment", *task, *words])
    told = capsys.readouterr().err

    assert code == 2
    assert says in told
    assert told.count("\n") == 1


def test_seed_of_a_kept_private_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A seed with --save and privacy is refused."""
    words = ["run", "embedded/smoke/lora-dp/sentiment", "--seed", "3", "--save", str(tmp_path / "m")]

    assert main(words) == 2
    assert "who knows the seed of a private run can take the noise away" in capsys.readouterr().err
