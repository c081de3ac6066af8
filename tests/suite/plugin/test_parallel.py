"""One machine and several workers, several machines and one folder: the same records and verdicts as one process."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from peft_dp import Places
from peft_dp.records import read

from ...processes import Done, pytest_session, run_module
from ..cli.made_up import TABLE as MADE_UP
from .test_bench import Outcome, bench

SCORE = {"score": {"value": 50, "within": 100}}
PRIVATE = {"epsilon": 8.0, "delta": 0.001, "accountant": "rdp"}
TABLE: dict[str, Any] = MADE_UP | {
    "tasks": {"sentiment": {}, "paraphrase": {}},
    "rows": [
        {"id": "short", "title": "Short", "spec": {"train": 8}},
        {"id": "long", "title": "Long", "spec": {"epochs": 4}},
        {"id": "wrong", "title": "Wrong", "spec": {"privacy": PRIVATE}, "expect": {"trainable": {"value": 1}}},
    ],
}
"""Six cells of a tiny backbone: four pass, two differ."""
for each in TABLE["rows"]:
    each["cells"] = dict.fromkeys(TABLE["tasks"], SCORE)

CLAIM: dict[str, Any] = {
    "section": "1",
    "table": "up",
    "left": "long",
    "right": "short",
    "tasks": ["sentiment"],
    "over": "each",
}
CLAIM |= {"relation": ">", "times": 0.0}
CLAIMS = {
    "source": "a test",
    "claims": [
        CLAIM | {"id": "scored", "says": "Something is learnt.", "quantity": "score"},
        CLAIM | {"id": "time", "says": "It takes time.", "quantity": "epoch_seconds"},
    ],
}

TESTS = '''
"""The table's cells and claims, a statement at the end, and a test that kills its process."""

import os, signal
from pathlib import Path

import pytest

from peft_dp import cells, claims


@pytest.mark.parametrize("claim", claims("made"), ids=str)
def test_claims(claim, check_claim):
    check_claim(claim)


@pytest.mark.parametrize("cell", cells("made/up"), ids=str)
def test_cells(cell, check):
    check(cell)


def test_says(at_end):
    at_end("something to say")


def test_killed():
    Path("killed").write_text(os.environ["PYTEST_XDIST_WORKER"])
    os.kill(os.getpid(), signal.SIGKILL)
'''

PLUGIN = '''
"""Puts the made-up table in place of the project's, and says what each worker sees when it starts."""

import os
import sys
from pathlib import Path

from peft_dp.suite.papers import reader

reader.FOLDER = Path(__file__).parent / "expected"


def pytest_sessionstart():
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PEFT_DP_WORKERS")
        seen = " ".join(os.environ.get(name, "none") for name in names) + " too late" * ("torch" in sys.modules)
        Path(f"seen-{worker}").write_text(seen)
'''

KILLER = '''
"""Kills the first worker in the first training step of its second run."""

import os, signal

from peft_dp.training.run import Run

step, runs = Run.step, set()


def killed(*arguments, **named):
    runs.add(os.environ["PYTEST_CURRENT_TEST"])
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw0" and len(runs) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments, **named)


Run.step = killed
'''


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the table, its claims, their tests and the plugins."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "expected" / "made").mkdir(parents=True)
    (folder / "expected" / "made" / "up.json").write_text(json.dumps(TABLE))
    (folder / "expected" / "made" / "claims.json").write_text(json.dumps(CLAIMS))
    for name, text in (("test_made_up", TESTS), ("made_up", PLUGIN), ("killer", KILLER)):
        (folder / f"{name}.py").write_text(text)
    return folder


class Run:
    """Sessions over the made-up table.

    Args:
        tables: Its folder.
        places: Where the tiny backbone is.
    """

    def __init__(self, tables: Path, places: Places) -> None:
        self.tables, self.backbones = tables, places.backbones

    def __call__(self, out: Path, *arguments: object, killer: bool = False) -> Outcome:
        """Runs pytest on the cells and claims, with records and benchmarks in `out`."""
        out.mkdir(exist_ok=True)
        plugins = ("made_up", "peft_dp.suite.plugin", *("killer",) * killer)
        common = ("test_made_up.py", "-k", "not killed", "--peft-backbones", self.backbones)
        return bench(out, *common, *arguments, plugins=plugins, cwd=self.tables)


@pytest.fixture(scope="module")
def run(tables: Path, places: Places) -> Run:
    """Runs sessions over the made-up table."""
    return Run(tables, places)


@pytest.fixture(scope="module")
def alone(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A session of one process, and its folder, with how long each test took."""
    out = tmp_path_factory.mktemp("alone")
    return run(out, "--store-durations", "--durations-path", out / "durations"), out


@pytest.fixture(scope="module")
def together(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A session of two workers, and its folder."""
    out = tmp_path_factory.mktemp("together")
    return run(out, "-n", 2), out


def results(folder: Path) -> dict[str, Any]:
    """Key -> all of a record that must repeat bit for bit."""
    found = [read(path) for path in (folder / "records").rglob("*.json")]
    return {record.key: record.result() for record in found}


def ended(outcome: Outcome) -> Counter[str]:
    """How many tests ended how."""
    line = outcome.text.strip().splitlines()[-1]
    return Counter({word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped)", line)})


def verdicts(outcome: Outcome) -> str:
    """What a session prints of its cells, less the folder of backbones in the command that runs a cell again."""
    (found,) = re.findall(r"=+ peft-dp =+\n(.*?)\n\d+ s of training", outcome.text, re.DOTALL)
    return re.sub(r" --backbones \S+", "", found)


def test_same_as_alone(alone: tuple[Outcome, Path], together: tuple[Outcome, Path]) -> None:
    """Two workers leave the records of one process, in one folder, and the same tests pass, fail and say the same."""
    (one, here), (two, there) = alone, together

    assert len(results(here)) == 6
    assert results(here) == results(there)
    assert (one.code, ended(one)) == (two.code, ended(two)) == (1, Counter(passed=7, failed=2))
    assert verdicts(one) == verdicts(two)
    assert verdicts(two).count("something to say") == 1
    # The grid, of two failures the name and the command, and a line for each of six cells that are amber or red.
    assert verdicts(two).count("made/up") == 11
    assert "Traceback" not in two.text


def test_side_by_side(alone: tuple[Outcome, Path], together: tuple[Outcome, Path]) -> None:
    """A record says how many workers shared the machine."""
    for (_, folder), workers_there in ((alone, 1), (together, 2)):
        found = {read(path).environment["side_by_side"] for path in (folder / "records").iterdir()}

        assert found == {workers_there}


def shape(value: Any) -> Any:
    """The keys of nested objects, and how long lists are."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else None


def test_benchmark_file(alone: tuple[Outcome, Path], together: tuple[Outcome, Path]) -> None:
    """Workers' benchmarks are one file of the same shape, with the same values, which pytest-benchmark compares."""
    one, two = (
        sorted(outcome.benchmarks, key=lambda entry: str(entry["fullname"])) for outcome in (alone[0], together[0])
    )
    files = [folder / "benchmarks.json" for _, folder in (alone, together)]
    wholes = [json.loads(file.read_text()) for file in files]
    done = run_module("pytest_benchmark", "compare", *files, cwd=together[1], environment=os.environ)

    assert wholes[0].keys() == wholes[1].keys()
    assert wholes[0]["machine_info"].keys() == wholes[1]["machine_info"].keys()
    assert shape([entry | {"options": {}} for entry in one]) == shape(two)
    for first, second in zip(one, two, strict=True):
        for name in ("name", "fullname", "group", "param", "params"):
            assert first[name] == second[name]
        assert first["extra_info"].keys() == second["extra_info"].keys()
        assert first["extra_info"]["keys"] == second["extra_info"]["keys"]
        assert first["extra_info"]["verdict"] == second["extra_info"]["verdict"]
        assert 0 < second["stats"]["mean"] == second["stats"]["data"][0]
    assert done.text.count("test_cells[") == 12


@pytest.mark.slow
def test_killed_worker(run: Run, alone: tuple[Outcome, Path], tmp_path: Path) -> None:
    """A worker that is killed fails its test and no other; the session again has the records of one never killed."""
    cells = ("-n", 2, "-m", "smoke and not claims")
    first = run(tmp_path, *cells, killer=True)
    kept = results(tmp_path)
    again = run(tmp_path, *cells)

    assert len(re.findall(r"^worker 'gw0' crashed while running", first.text, re.MULTILINE)) == 1
    assert len(kept) == 5
    assert results(tmp_path) == results(alone[1])
    # The headline of the session without claims says nothing of them.
    assert verdicts(alone[0]).endswith(verdicts(again).partition("\n\n")[2])
    assert {path.suffix for path in (tmp_path / "records").iterdir()} == {".json"}


def collect(run: Run, records: Path, out: Path, *arguments: object) -> Outcome:
    """Asserts what lies in a folder, where there is no backbone to run anything."""
    return run(out, "--peft-collect", "--peft-records", records, "--peft-backbones", out, *arguments)


def test_longest_first(run: Run, alone: tuple[Outcome, Path], tmp_path: Path) -> None:
    """A worker has the longest cells first, one of the shortest tests in store, and claims, which need cells, last."""
    outcome = collect(run, alone[1] / "records", tmp_path, "-v", "-n", 1)
    seen = re.findall(r"(?:PASSED|FAILED) \S*::(\w+(?:\[\w+)?)", outcome.text.split("FAILURES")[0])

    assert [
        *["test_cells[long", "test_says", "test_cells[long"],
        *["test_cells[wrong"] * 2,
        *["test_cells[short"] * 2,
        *["test_claims[scored", "test_claims[time"],
    ] == seen


def change(path: Path, **parts: dict[str, object]) -> None:
    """Writes other values into a record's objects."""
    data = json.loads(path.read_text())
    for name, values in parts.items():
        data[name] |= values
    path.write_text(json.dumps(data))


def test_not_there(run: Run, alone: tuple[Outcome, Path], tmp_path: Path) -> None:
    """What records cannot decide is skipped with the reason, and fails where strict.

    That is a run without a record or with one of other code, and a claim about times of which some were taken beside
    other workers and some not; another claim about the same runs is judged.
    """
    records = Path(shutil.copytree(alone[1] / "records", tmp_path / "copy"))
    lost, other = records.glob("bitfit-dp-*")
    lost.unlink()
    change(other, sources={"code": "of long ago"})
    for path in records.glob("bitfit-sentiment-*"):
        change(path, environment={"side_by_side": 1 + (read(path).spec.epochs > 1)})
    outcome, strict = (collect(run, records, tmp_path, *words) for words in ((), ("--peft-strict",)))
    where = f"in {records}: run it there without --peft-collect"

    assert f"1 cell not run: no record of seed 0 {where}" in outcome.text
    assert f"1 cell not run: no record of seed 0 but of other code {where}" in outcome.text
    assert ended(outcome) == Counter(passed=6, skipped=3)
    assert ended(strict) == Counter(passed=6, failed=3)
    assert "claim made/claims/time: times taken with 1 and 2 workers side by side do not compare" in strict.text


def session(tables: Path, *arguments: object) -> Done:
    """Run pytest as `bench` does, with no options but these, where the caller may use GPUs 3 and 5 and one thread."""
    words = ["test_made_up.py", "-p", "made_up", "-p", "peft_dp.suite.plugin", *arguments]
    return pytest_session(*words, cwd=tables, CUDA_VISIBLE_DEVICES="3,5")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peft-collect",), "--peft-collect asserts records that are there: name their folder, --peft-records DIR"),
        (("--peft-collect", "--peft-records", "gone"), "gone is not a folder: give the one that a session named"),
        (("-n", 2, "--peft-records", "made_up.py/in"), "records folder made_up.py/in cannot be written to ("),
    ],
    ids=["no folder", "no such folder", "no place"],
)
def test_option_that_cannot_work(tables: Path, arguments: tuple[object, ...], words: str) -> None:
    """Options that cannot work end the session before its first test, in one sentence."""
    done = session(tables, *arguments)

    assert done.code == 4
    assert done.text.count(words) == 1
    assert "Traceback" not in done.text


@pytest.mark.slow
def test_shards(run: Run, alone: tuple[Outcome, Path], tmp_path: Path) -> None:
    """Four machines with a part of the cells each leave, copied into one folder, the session of one machine."""
    for group in range(1, 5):
        split = ("--splits", 4, "--group", group, "--splitting-algorithm", "least_duration")
        times = ("--durations-path", alone[1] / "durations")
        run(tmp_path / f"shard{group}", "-m", "smoke and not claims", *split, *times)
        shutil.copytree(tmp_path / f"shard{group}" / "records", tmp_path / "records", dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    merged = collect(run, tmp_path / "records", tmp_path / "merged")

    parts = [len(results(tmp_path / f"shard{group}")) for group in range(1, 5)]
    assert all(parts)
    assert sum(parts) == 6
    assert results(tmp_path) == results(alone[1])
    assert verdicts(merged) == verdicts(alone[0])
    assert (merged.code, ended(merged)) == (alone[0].code, ended(alone[0]))
    assert before == {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}


def test_what_a_worker_sees(tables: Path) -> None:
    """Workers take the caller's GPUs in turn and no more threads than it allows; a dead one's go to the next.

    It needs no GPU: a worker's environment says which it is.
    """
    session(tables, "-n", 2, "-k", "killed")
    seen = {path.name.removeprefix("seen-"): path.read_text() for path in tables.glob("seen-*")}
    killed = (tables / "killed").read_text()

    assert {"gw0": "3 1 2", "gw1": "5 1 2", "gw2": seen[killed]} == seen


@pytest.mark.slow
def test_smoke_cells(tmp_path: Path) -> None:
    """Two workers give real smoke cells the records and verdicts that one process gives them."""
    some = ("bench", "-k", "test_smoke and (head or warp-)")
    one, two = (bench(tmp_path / name, *some, *words) for name, words in (("one", ()), ("two", ("-n", 2))))

    assert len(results(tmp_path / "one")) == 7
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert verdicts(one) == verdicts(two)
    assert (one.code, ended(one)) == (two.code, ended(two))
