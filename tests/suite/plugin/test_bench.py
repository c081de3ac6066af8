"""The bench as a user meets it: options, skips, the table, benchmark files, known differences."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import peft_dp
from peft_dp import Places
from peft_dp.spec import Budget
from peft_dp.suite.papers.claim import Claim
from peft_dp.suite.papers.fact import Fact
from peft_dp.suite.papers.table import MARKERS

from ...processes import ROOT, Done, pytest_session

CELLS = '''
"""Cells on a tiny backbone: one that passes, one that cannot, and two whose row announces a difference."""

import pytest

from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.table import Expect, Row, Table

PRIVACY = {"epsilon": 8.0, "delta": 0.001, "accountant": "rdp"}
RIGHT, WRONG = Expect(value=338), Expect(value=1)
SCORE = Expect(value=50, within=100)


def row(name, trainable, differs="", **spec):
    cells = {"sentiment": {"trainable": trainable, "score": SCORE}}
    return Row(id=name, title=name, spec={"method": "bitfit"} | spec, cells=cells, differs=differs)


TABLE = Table(
    paper="embedded",
    table="made_up",
    title="Made up",
    source="a test",
    budget="smoke",
    defaults={
        "backbone": "bert",
        "train": 16,
        "dev": 8,
        "optimiser": {"rate": 0.01},
        "epochs": 1,
        "batch": 8,
        "max_length": 24,
    },
    tasks={"sentiment": {}},
    rows=[
        row("right", RIGHT, privacy=PRIVACY),
        row("wrong", WRONG, privacy=PRIVACY),
        row("known", WRONG, differs="the paper counts otherwise"),
        row("gone", RIGHT, differs="the paper counts otherwise"),
    ],
)


@pytest.mark.parametrize("cell", [Cell(table=TABLE, row=row, task="sentiment") for row in TABLE.rows], ids=str)
def test_cells(cell, check):
    check(cell)
'''


class Outcome:
    """What a session of pytest gave: exit code, output, and its benchmark file and GitHub summary if it wrote them."""

    def __init__(self, done: Done, written: Path) -> None:
        self.code, self.text = done.code, done.text
        self.benchmarks: list[dict[str, Any]] = (
            json.loads(written.read_text())["benchmarks"] if written.is_file() and written.stat().st_size else []
        )
        summary = written.with_name("summary.md")
        self.summary = summary.read_text() if summary.is_file() else ""


def bench(folder: Path, *arguments: object, plugins: tuple[str, ...] = (), cwd: Path = ROOT) -> Outcome:
    """Run pytest in a process of its own that sees no CUDA device, with records and benchmarks in `folder`."""
    written = folder / "benchmarks.json"
    records = [] if "--peft-records" in arguments else ["--peft-records", folder / "records"]
    words = [*(word for name in plugins for word in ("-p", name)), f"--benchmark-json={written}", *records, *arguments]
    return Outcome(pytest_session(*words, cwd=cwd, GITHUB_STEP_SUMMARY=str(folder / "summary.md")), written)


@pytest.fixture(scope="module")
def judged(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A session over the four cells, two seeds each, a line a cell at the end."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "test_made_up.py").write_text(CELLS)
    return bench(
        folder,
        "test_made_up.py",
        "-v",
        "--peft-seeds",
        2,
        "--peft-backbones",
        places.backbones,
        plugins=("peft_dp.suite.plugin",),
        cwd=folder,
    )


def lines(outcome: Outcome) -> dict[str, list[str]]:
    """Row's id -> cells of its line in the table at the end."""
    found = (re.split(r" {2,}", line.strip()) for line in outcome.text.splitlines())
    return {cells[0].split()[-1]: cells for cells in found if cells[0].startswith("embedded/made_up ")}


def test_table(judged: Outcome) -> None:
    """The table has a line a cell with its verdict, also where the test failed."""
    found = lines(judged)

    assert {"right": "amber", "wrong": "differs", "known": "known difference", "gone": "amber"} == {
        name: cells[6] for name, cells in found.items()
    }
    assert ["epsilon", "epsilon", "no", "no"] == [cells[2].split()[0] for cells in found.values()]


def test_summary(judged: Outcome) -> None:
    """On GitHub the job's summary has the table, and the command of what failed before it."""
    before, _, after = judged.summary.partition("### embedded/made\\_up: Made up")

    assert "again: peft-dp run embedded/made_up/wrong/sentiment" in before
    assert ["right", "wrong", "known", "gone"] == re.findall(r"^\| (\w+) .*/50.0", after, re.MULTILINE)


def test_exit_code(judged: Outcome) -> None:
    """A cell that differs fails the session, and says which number by how much."""
    assert judged.code == 1
    assert "OFF   trainable: expected 1, ours 338, gap +337, allowed 0" in judged.text
    assert "again: peft-dp run embedded/made_up/wrong/sentiment" in judged.text


def test_known_difference(judged: Outcome) -> None:
    """A row that announces a difference is expected to fail while it differs, and fails once it does not."""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|xfailed)", judged.text)}

    assert {"passed": 1, "failed": 2, "xfailed": 1} == counts
    assert re.search(r"FAILED .*\[gone-sentiment\] - .*XPASS\(strict\).*the paper counts otherwise", judged.text)


def test_benchmark_file(judged: Outcome) -> None:
    """The benchmark file has score, memory and ledger of every run of every cell, also of the one that failed."""
    found = {entry["extra_info"]["cell"].split("/")[2]: entry["extra_info"] for entry in judged.benchmarks}

    assert {"right": "amber", "wrong": "differs", "known": "known difference", "gone": "amber"} == {
        name: info["verdict"] for name, info in found.items()
    }
    for name, info in found.items():
        private = name in ("right", "wrong")

        assert [338, 338] == [values["trainable"] for values in info["values"]]
        assert all(0 <= values["score"] <= 100 for values in info["values"])
        assert all(cost["peak_bytes"] > 0 and cost["epoch_seconds"] > 0 for cost in info["cost"])
        assert [private] * 2 == [ledger is not None and 0 < ledger["epsilon"] <= 8 for ledger in info["ledger"]]


def test_equal_runs_share_a_record(judged: Outcome) -> None:
    """Two cells that ask for the same run differ in what they expect, not in what ran: their keys are the same."""
    keys = {entry["extra_info"]["cell"].split("/")[2]: entry["extra_info"]["keys"] for entry in judged.benchmarks}

    assert keys["right"] == keys["wrong"]
    assert len(set(keys["right"])) == 2


def test_without_cuda(tmp_path: Path) -> None:
    """Without a CUDA device the cells of the papers are skipped, the summary says why, and nothing fails."""
    outcome = bench(tmp_path, "bench", "-m", "gpu and spafit")

    assert outcome.code == 0
    assert re.search(r"\d+ cells? not run: the paper budget needs a GPU, but torch ", outcome.text)
    assert "passed" not in outcome.text
    assert "failed" not in outcome.text


def test_without_cuda_strict(tmp_path: Path) -> None:
    """Where a cell must run, its skip is a failure with the same words."""
    outcome = bench(tmp_path, "bench", "-m", "gpu and spafit", "--peft-strict")

    assert outcome.code == 1
    assert "the paper budget needs a GPU, but torch " in outcome.text
    assert "skipped" not in outcome.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peft-device", "cuda"), "--peft-device cuda, but torch "),
        (("--peft-data", "no-such-folder"), "--peft-data no-such-folder is not a folder"),
        (("--peft-backbones", "pyproject.toml"), "--peft-backbones pyproject.toml is not a folder"),
        (("--peft-seeds", "0"), "--peft-seeds must be at least 1, not 0"),
        (("--peft-records", "pyproject.toml/records"), "records folder pyproject.toml/records cannot be written to ("),
        (("--peft-budget", "huge"), "argument --peft-budget: invalid choice: 'huge'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "words",
)
def test_option_that_cannot_work(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """An option that cannot work ends the session before its first test, in one sentence."""
    outcome = bench(tmp_path, "bench", *arguments)
    said = [line for line in outcome.text.splitlines() if words in line]

    assert outcome.code == 4
    assert len(said) == 1
    assert "Traceback" not in outcome.text
    assert not outcome.benchmarks


@pytest.mark.parametrize(
    ("variables", "arguments", "words"),
    [
        ({"PEFT_DP_WORKERS": "abc"}, (), "PEFT_DP_WORKERS must be a whole number of at least 1, not 'abc': unset it"),
        ({}, ("-n", "2", "--dist", "each"), "--dist each would run every cell once per worker: leave it out"),
    ],
    ids=["workers", "each"],
)
def test_surroundings_that_cannot_work(
    variables: dict[str, Any], arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    """What cannot work in a session's surroundings ends it before its first test, in one sentence."""
    done = pytest_session("bench", "--peft-records", tmp_path, *arguments, **variables)

    assert done.code == 4
    assert words in done.text
    assert "Traceback" not in done.text


def test_without_assertions() -> None:
    """Python without assertions, under which no test could fail, is refused."""
    command = [sys.executable, "-O", "-m", "pytest", "bench", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 4
    assert "Python runs without assertions, so that no test could fail: unset PYTHONOPTIMIZE" in done.stderr


def test_nothing_selected(tmp_path: Path) -> None:
    """A session without a test to run ends as pytest ends it, also where a benchmark file was asked for."""
    outcome = bench(tmp_path, "bench", "-k", "no_such_test")

    assert outcome.code == 5
    assert "Traceback" not in outcome.text


def collected(folder: Path, *arguments: str) -> set[str]:
    """Names of the tests of the bench's tables that a session would run."""
    outcome = bench(folder, "bench", "--collect-only", "-q", *arguments)
    return {line for line in outcome.text.splitlines() if line.startswith("bench/") and line.endswith("]")}


def named(test: str, entries: Iterable[Fact | Claim]) -> set[str]:
    """Names of the tests of facts or of claims."""
    return {f"bench/test_{entry.paper}.py::{test}[{entry}]" for entry in entries}


def named_cells(budget: str) -> set[str]:
    """Names of the tests of a budget's cells."""
    return {
        f"bench/test_{cell.table.paper}.py::test_{cell.table.table}[{cell}]"
        for cell in peft_dp.cells()
        if cell.table.budget == budget
    }


def run_claims(budget: str) -> set[str]:
    """Names of the tests that hold claims against runs of a budget."""
    every = peft_dp.claims(printed=False)
    return named("test_claims", [claim for claim in every if claim.cells(claim.left)[0].table.budget == budget])


@pytest.mark.parametrize("budget", MARKERS)
def test_every_cell_is_a_test(tmp_path: Path, budget: Budget) -> None:
    """A budget's marker selects a test for each of its cells and of the claims about their runs, and no other."""
    assert named_cells(budget) | run_claims(budget) == collected(tmp_path, "-m", MARKERS[budget])


def test_every_claim_is_a_test(tmp_path: Path) -> None:
    """Each claim is tested on the paper's own numbers where it prints them, and on runs unless known to differ."""
    printed = named("test_printed_claims", peft_dp.claims(printed=True))

    assert printed | named("test_claims", peft_dp.claims(printed=False)) == collected(tmp_path, "-m", "claims")


def test_default_is_smoke(tmp_path: Path) -> None:
    """Without a choice nothing is selected that needs real data or a GPU, and all else is."""
    wanted = named_cells("smoke") | run_claims("smoke") | named("test_facts", peft_dp.facts())
    exact = {name for name in collected(tmp_path, "-m", "libraries") if "test_libraries.py" in name}

    assert exact
    assert wanted | named("test_printed_claims", peft_dp.claims(printed=True)) | exact == collected(tmp_path)


def test_without_arguments() -> None:
    """`pytest` alone means the bench: who installed that only has not all that the project's own tests need."""
    done = pytest_session("--collect-only", "-q")
    files = {line.partition("::")[0] for line in done.text.splitlines() if "::" in line}

    assert done.code == 0
    assert files
    assert all(file.startswith("bench/test_") for file in files)
