"""Verdicts in markdown, LaTeX and CSV, with names that would break them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from peft_dp import Record, Spec
from peft_dp.records import Records
from peft_dp.spec import Privacy, to_json
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.table import Expect, Row, Table
from peft_dp.suite.report.export import to_csv, to_latex, to_markdown
from peft_dp.suite.report.table import HEADERS
from peft_dp.suite.verdicts.cells import Verdict
from peft_dp.suite.verdicts.finding import Finding
from peft_dp.training.trail import Epoch

Make = Callable[..., Spec]
Judge = Callable[..., Verdict]


def record(spec: Spec, epsilon: float | None = None, system: str = "Linux") -> Record:
    """A record with a score of -5 and that epsilon."""
    return Record(
        key="0" * 64,
        spec=spec,
        values={"score": -5.0},
        ledger={"epsilon": epsilon, "noise_multiplier": 1.0} if epsilon else None,
        trail=[],
        cost={"epoch_seconds": 1.5, "peak_bytes": 2e6},
        sources={"data": "d"},
        environment={"system": system, "versions": {"torch": "2"}},
    )


@pytest.fixture
def judge(spec: Make) -> Judge:
    """Makes the verdict of a cell of one row, whose names are as given."""

    def make(
        row: str = "a", title: str = "A title", ours: float = -5.0, records: list[Record] | None = None
    ) -> Verdict:
        line = Row(id=row, title=row, cells={"rte": {"score": Expect(value=-5.0)}})
        table = Table(
            paper="p", table="t", title=title, source="", budget="smoke", defaults={}, tasks={"rte": {}}, rows=[line]
        )
        finding = Finding(quantity="score", expected=-5.0, ours=ours, allowed=1.0, unusual=1.0)
        cell = Cell(table=table, row=line, task="rte")
        return Verdict(cell=cell, records=[record(spec())] if records is None else records, findings=[finding])

    return make


def test_markdown(judge: Judge) -> None:
    """A summary has the counts first, then failures with their command, then a grid, and why cells did not run."""
    skipped = Verdict(cell=judge("c").cell, reason="no GPU")
    found = to_markdown([judge(), judge(ours=9.0), skipped])
    order = [
        r"\| = +\| +1 \| reproduced",
        r"\| X +\| +1 \| differs",
        "again: peft-dp run p/t/a/rte",
        "### p/t: A title",
        r"\| a +\| 9.0/-5.0 X",
        "- 1 cell not run: no GPU",
    ]
    places = [match.start() for pattern in order if (match := re.search(pattern, found))]

    assert len(places) == len(order)
    assert sorted(places) == places


@pytest.mark.parametrize("name", ["a|b", "a\nb", "a\\|b", "<img src=x>", "</pre>", "`a`", "[a](b)"])
def test_markdown_of_hostile_names(judge: Judge, name: str) -> None:
    """No name adds a column, a line, a link or HTML of its own; a failure's text stays within its block."""
    found = to_markdown([judge(name, title=name, ours=9.0)])
    (row,) = [line for line in found.splitlines() if line.endswith("|") and "-5.0 X" in line]

    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3
    assert not re.search(r"(?<!\\)<(?!/?pre>)", found)
    assert [1, 1] == [found.count(tag) for tag in ("<pre>", "</pre>")]
    assert not re.search(r"(?<!\\)[`\[]", found.split("</pre>")[1])


def test_latex(judge: Judge) -> None:
    """A table has booktabs' rules, a caption with the legend, and a line a row."""
    found = to_latex([judge()])

    assert [1, 1, 1] == [found.count(f"\\{rule}rule") for rule in ("top", "mid", "bottom")]
    assert r"\caption{p/t: A title; ours/expected: = reproduced}" in found
    assert re.search(r"^ *a +& -5.0/-5.0 = +\\\\$", found, re.MULTILINE)


@pytest.mark.parametrize("name", [*"&%$#_{}~^\\", "a\nb", "\\input{x}"])
def test_latex_of_hostile_names(judge: Judge, name: str) -> None:
    """LaTeX's own signs are printed, not obeyed, and a name stays on its line."""
    plain, found = to_latex([judge("a", title="a")]), to_latex([judge(name, title=name)])
    signs = r"(?<!\\)[&%$#_^~]"

    assert len(plain.splitlines()) == len(found.splitlines())
    assert re.findall(signs, plain) == re.findall(signs, found)
    assert r"\input" not in found


def read(text: str) -> list[dict[str, str]]:
    """The lines of a CSV file."""
    return list(csv.DictReader(io.StringIO(text)))


def test_csv(spec: Make, judge: Judge) -> None:
    """A line has the cell, its verdict and numbers, and every field of spec, values, cost, ledger and environment."""
    private = spec(seed=1, privacy=Privacy(epsilon=8.0, delta=1e-3))
    lines = read(to_csv([judge(records=[record(spec()), record(private, 7.9)])]))

    assert ["0", "1"] == [line["spec.seed"] for line in lines]
    assert {
        "cell": "p/t/a/rte",
        "verdict": "reproduced",
        "score.expected": "-5.0",
        "values.score": "-5.0",
        "cost.epoch_seconds": "1.5",
        "ledger.epsilon": "7.9",
        "spec.privacy.epsilon": "8.0",
        "spec.optimiser.rate": "0.01",
        "environment.versions.torch": "2",
    }.items() <= lines[1].items()
    assert "" == lines[0]["ledger.epsilon"]
    assert {f"spec.{name}" for name, value in to_json(spec()).items() if isinstance(value, str | int)} <= set(lines[0])


def test_csv_of_other_records(spec: Make, judge: Judge) -> None:
    """A record of what is no cell has a line without a verdict."""
    lines = read(to_csv([judge()], [record(spec(seed=7))]))

    assert [("0", "reproduced"), ("7", "")] == [(line["spec.seed"], line["verdict"]) for line in lines]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "\t=1", "a,b", 'a"b', "a\nb"])
def test_csv_of_hostile_texts(spec: Make, judge: Judge, text: str) -> None:
    """A text is never a formula nor a further column or line; a negative number stays one."""
    (line,) = read(to_csv([judge(records=[record(spec(), system=text)])]))

    assert line["environment.system"] in (text, f"'{text}")
    assert line["environment.system"][0] not in "=+-@\t"
    assert float(line["values.score"]) == -5


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[float], str]:
    """Makes a folder with the record of one cell, that score off what is recorded."""

    def make(off: float) -> str:
        cell = papers.find("embedded/smoke/head/sentiment")
        score = fmean(cell.recorded["head"]["sentiment"]) + off
        values = {name: expect.value for name, expect in cell.expect.items()} | {"score": score}
        epoch = Epoch(loss=0.0, clipped=None, examples=1, tokens=1, steps=1, seconds=1.0)
        Records(tmp_path / "records").save(replace(record(cell.spec), values=values, trail=[epoch]))
        return str(tmp_path / "records")

    return make


def test_report_of_a_failure(folder: Callable[[float], str], capsys: pytest.CaptureFixture[str]) -> None:
    """A folder in which a cell differs is shown with the command that runs it again, and the exit code is 1."""
    assert 1 == main(["report", folder(-50.0)])
    assert "again: peft-dp run embedded/smoke/head/sentiment" in capsys.readouterr().out


def test_report_in_files(folder: Callable[[float], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each form goes to its file, beside what the screen shows; or to the screen, which then shows nothing else."""
    records = folder(0.0)
    forms = {name: tmp_path / name for name in ("markdown", "latex", "csv")}
    main(["report", records, *(word for name, path in forms.items() for word in (f"--{name}", str(path)))])
    shown = capsys.readouterr().out

    assert "embedded/smoke  MiniLM on generated English" in shown
    for name, path in forms.items():
        main(["report", records, f"--{name}", "-"])

        assert path.read_text() == capsys.readouterr().out != shown


def test_report_verbose(folder: Callable[[float], str], capsys: pytest.CaptureFixture[str]) -> None:
    """A line with all numbers takes the place of grids where they are asked for."""
    main(["report", folder(0.0), "-v"])
    headline, _, first, *_ = capsys.readouterr().out.splitlines()

    assert headline == "1 of 1 cells failed"  # by its loss
    assert all(header in first for header in HEADERS)


def test_report_without_a_place(
    folder: Callable[[float], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be written is named, with the reason."""
    path = tmp_path / "none" / "file.csv"

    assert 2 == main(["report", folder(0.0), "--csv", str(path)])
    assert f"peft-dp: {path} cannot be written (No such file or directory)" in capsys.readouterr().err
