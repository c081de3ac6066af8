"""One records folder and several processes, and what a user reads where something goes wrong with a run or a file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor, nn

import peft_dp
from peft_dp import Places, Spec
from peft_dp.records import Records, read
from peft_dp.runs import runs
from peft_dp.spec import Optimiser, to_json
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main
from peft_dp.training.job import Job, Sources, build, cross_entropy

from ...processes import ROOT, Done, pytest_session, run_module
from .test_bench import CELLS

Make = Callable[..., Spec]

SEEDS = 6

COMPETE = '''
"""Has processes compete for the same runs, in each of three settings; logs what begins and ends to train."""

import json, logging, os, signal, sys
from pathlib import Path

from peft_dp import Places, runs
from peft_dp.implementations import _base
from peft_dp.records import Records
from peft_dp.spec import from_json
from peft_dp.training.run import Run

backbones, base = map(Path, sys.argv[1:3])
given = json.load(sys.stdin)
specs = [from_json(fields, where="spec") for fields in given["specs"]]
fit_together = _base.fit_together


class Waits(logging.Handler):
    def emit(self, record):
        os.write(waiting[1], b".")


def logged(jobs, *rest):
    os.write(log, f"begins {jobs[0].spec.seed}\\n".encode())
    trained = fit_together(jobs, *rest)
    os.write(log, f"ends {jobs[0].spec.seed}\\n".encode())
    return trained


def killed(*arguments):
    """Stands for the first training step of the process that dies, once another waits for it."""
    os.write(begun[1], b".")
    os.read(waiting[0], 1)
    os.kill(os.getpid(), signal.SIGKILL)


def work(number, folder, dies):
    if dies and number == 0:
        Run.step = killed
    elif dies:
        os.read(begun[0], 1)
        os.write(begun[1], b".")
    logging.getLogger("peft_dp").addHandler(Waits())
    records = Records(folder)
    for at in range(len(specs)):
        # Overlapping groups, asked for in both orders: locks taken as they come would wait for each other.
        group = [specs[(at + step) % len(specs)] for step in range(3)][:: (-1) ** number]
        found = runs.runs(group, Places(backbones=backbones, device="cpu"), records)
        assert [record.spec for record in found] == group


_base.fit_together = logged
codes = {}
for name, (processes, dies) in given["settings"].items():
    log = os.open(base / f"{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    begun, waiting = os.pipe(), os.pipe()
    children = []
    for number in range(processes):
        if (child := os.fork()) == 0:
            try:
                work(number, base / name, dies)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes[name] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(json.dumps(codes))
'''

SETTINGS = {"two": (2, False), "four": (4, False), "killed": (4, True)}
"""Name -> number of processes, and whether the first is killed in its first training step."""


@dataclass(frozen=True)
class Competition:
    """What competing processes left.

    Attributes:
        codes: Exit codes, one a process.
        begun: Seeds whose training began, in order; one may be there more than once.
        ended: Seeds whose training ended.
        folder: Of the records.
    """

    codes: list[int]
    begun: list[int]
    ended: list[int]
    folder: Path


def child(script: str, *arguments: object, given: str = "", timeout: float = 500) -> str:
    """Runs a script in a process of its own and gives what it prints; one that hangs is an error."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def competitions(places: Places, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Competition]:
    """Two or four processes that each ask for the same six runs."""
    base = tmp_path_factory.mktemp("folder")
    run = {"budget": "smoke", "backbone": "bert", "task": "sentiment", "method": "bitfit", "train": 16, "dev": 8}
    run |= {"optimiser": {"rate": 0.01}, "epochs": 1, "batch": 8, "max_length": 24}
    given = {"specs": [run | {"seed": seed} for seed in range(SEEDS)], "settings": SETTINGS}
    codes = json.loads(child(COMPETE, places.backbones, base, given=json.dumps(given)))
    found = {}
    for name in SETTINGS:
        lines = [line.split() for line in (base / f"{name}.log").read_text().splitlines()]
        begun, ended = ([int(seed) for word, seed in lines if word == which] for which in ("begins", "ends"))
        found[name] = Competition(codes[name], begun, ended, base / name)
    return found


@pytest.fixture(params=SETTINGS)
def competition(request: pytest.FixtureRequest, competitions: dict[str, Competition]) -> Competition:
    """Each of them."""
    return competitions[request.param]


def test_each_run_trains_once(competition: Competition) -> None:
    """Each run is trained to its end once, whoever asks for it; only what a killed process had begun begins again."""
    killed = [code for code in competition.codes if code]

    assert sorted(competition.ended) == list(range(SEEDS))
    assert len(competition.begun) == SEEDS + len(killed)
    assert set(competition.begun) == set(range(SEEDS))


def test_all_finish(competitions: dict[str, Competition]) -> None:
    """No process hangs or fails but the one that was killed, for which another was waiting."""
    codes = {"two": [0, 0], "four": [0, 0, 0, 0], "killed": [-9, 0, 0, 0]}

    assert codes == {name: competition.codes for name, competition in competitions.items()}


def test_all_records_are_whole(competition: Competition) -> None:
    """The folder holds a whole record of each run and nothing else: no lock, no half a file."""
    found = [read(path) for path in competition.folder.iterdir()]

    assert sorted(record.spec.seed for record in found) == list(range(SEEDS))


SOAK = '''
"""Trains many runs one after another; prints resident bytes and open files after each."""

import ctypes, json, os, sys
from pathlib import Path

import peft_dp
from peft_dp import Places
from peft_dp.records import Records
from peft_dp.spec import from_json

trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda kept: None)
backbones, records, found = sys.argv[1], Records(Path(sys.argv[2])), []
places = Places(backbones=Path(backbones) if backbones else None, device="cpu")
for fields in json.load(sys.stdin):
    peft_dp.run(from_json(fields, where="spec"), places, records)
    trim(0)  # else what glibc keeps for later counts
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found.append([pages * os.sysconf("SC_PAGESIZE"), len(os.listdir("/proc/self/fd"))])
print(json.dumps(found))
'''


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("cells", ["tiny", "smoke"])
def test_soak(spec: Make, places: Places, tmp_path: Path, cells: str) -> None:
    """Two hundred runs in one process, private and not, leave neither memory nor open files behind."""
    kinds: list[dict[str, object]] = [
        {"method": "bitfit"},
        {"method": "full"},
        {"method": "lora", "config": {"rank": 2, "alpha": 4}},
        {"method": "bitfit", "privacy": {"epsilon": 8.0, "delta": 1e-3, "accountant": "rdp"}},
    ]
    base = to_json(spec(epochs=1, train=16))
    asked = [base | kinds[seed % 4] | {"seed": seed} for seed in range(200)]
    if cells == "smoke":
        heads = [papers.find(f"embedded/smoke/{row}/sentiment").spec for row in ("head", "head-dp")]
        asked = [to_json(heads[seed % 2].seeded(seed)) for seed in range(200)]
    backbones = places.backbones if cells == "tiny" else ""
    found = json.loads(child(SOAK, backbones, tmp_path, given=json.dumps(asked), timeout=3000))
    # What is loaded and cached at first is no leak.
    sizes, handles = zip(*found[50:], strict=True)
    slope = (median(sizes[100:]) - median(sizes[:50])) / 100
    print(f"\n{slope / 1e3:+.1f} kB a run at {sizes[0] / 1e6:.0f} MB; open files {set(handles)}")

    assert len(list(tmp_path.iterdir())) == 200
    assert slope < 50_000
    assert len(set(handles)) == 1


FAULTS = f"""{CELLS}

DIVERGES = Row(
    id="diverges",
    title="",
    spec={{"method": "bitfit", "optimiser": {{"name": "sgd", "rate": 1e30, "schedule": "constant"}}}},
    cells={{"sentiment": {{"score": SCORE}}}},
)


def test_damaged(check, pytestconfig):
    folder = pytestconfig.option.peft_records
    for path in folder.glob("*.json"):
        path.write_text(path.read_text()[:-50])
    check(Cell(table=TABLE, row=TABLE.rows[0], task="sentiment"))


def test_diverged(check):
    check(Cell(table=TABLE, row=DIVERGES, task="sentiment"))
"""

FULL = f"""{CELLS}
import resource

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # bytes; a record has more
"""


def session(folder: Path, tests: str, places: Places, *arguments: object) -> Done:
    """Run pytest over these tests in a process of its own."""
    (folder / "test_made_up.py").write_text(tests)
    words = [
        "-p",
        "peft_dp.suite.plugin",
        "--peft-records",
        folder / "records",
        "--peft-backbones",
        places.backbones,
        *arguments,
    ]
    return pytest_session("test_made_up.py", "--peft-backbones", places.backbones, *words, cwd=folder)


def test_faults_in_a_session(places: Places, tmp_path: Path) -> None:
    """A session says of a damaged record that it was set aside, though the test passes, and of a diverged run why."""
    done = session(tmp_path, FAULTS, places, "-k", "right or damaged or diverged", "--peft-seeds", 1)
    (damaged,) = (tmp_path / "records").glob("*.damaged")
    path = damaged.with_suffix("")

    assert (done.code, "1 failed, 2 passed") == (1, re.findall(r"\d failed, \d passed", done.text)[0])
    assert f"peft-dp: {path} is not a record: field 'the whole': Invalid JSON" in done.text
    assert f"set aside as {damaged.name}, and trained again" in done.text
    assert path.read_bytes().startswith(damaged.read_bytes()[:100])
    assert "bitfit on sentiment, seed 0: the training loss of epoch 1 is not finite: try a smaller" in done.text
    assert "Traceback" not in done.text
    assert len(list((tmp_path / "records").iterdir())) == 2


def test_full_disk_in_a_session(places: Places, tmp_path: Path) -> None:
    """Where a record cannot be written the session ends at once, with one sentence and code 2, and leaves no part."""
    done = session(tmp_path, FULL, places, "--peft-seeds", 1)
    said = re.findall(r"record .* cannot be written to \(File too large\): make room or allow it, or ch", done.text)

    assert (done.code, 1) == (2, len(said))
    assert "Traceback" not in done.text
    assert not list((tmp_path / "records").iterdir())


REPEATED = f"""{CELLS}

@pytest.mark.parametrize("time", [1, 2, 3])
@pytest.mark.parametrize("cell", [Cell(table=TABLE, row=TABLE.rows[0], task="sentiment")], ids=str)
def test_again(cell, time, check):
    check(cell)
"""


def test_repeated(places: Places, tmp_path: Path) -> None:
    """A cell that several tests run counts once."""
    done = session(tmp_path, REPEATED, places, "-k", "again", "--peft-seeds", 1)

    assert "3 passed" in done.text
    assert "1 cells: ours/expected" in done.text


def test_summary_that_cannot_be_written(places: Places, tmp_path: Path) -> None:
    """A summary of GitHub's that cannot be written is said, and leaves a green session green."""
    (tmp_path / "test_made_up.py").write_text(CELLS)
    words = ["-p", "peft_dp.suite.plugin", "--peft-records", tmp_path / "records", "--peft-backbones", places.backbones]
    words += ["test_made_up.py", "-k", "right", "--peft-seeds", 1]
    done = pytest_session(*words, cwd=tmp_path, GITHUB_STEP_SUMMARY=str(tmp_path / "gone" / "summary.md"))

    assert done.code == 0
    assert f"GITHUB_STEP_SUMMARY {tmp_path / 'gone' / 'summary.md'} was not written: No such file" in done.text


def test_folder_that_is_not_utf8(places: Places, tmp_path: Path) -> None:
    """A folder whose name is no UTF-8 works like any other, but for several workers, which refuse it at once."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/rec\xff"))
    folder.mkdir()
    (tmp_path / "test_made_up.py").write_text(CELLS)
    words = ["-p", "peft_dp.suite.plugin", "--peft-records", folder, "--peft-backbones", places.backbones]
    words += ["test_made_up.py", "-k", "right", "--peft-seeds", 1]
    one, several = (pytest_session(*words, *more, cwd=tmp_path) for more in ((), ("-n", 2)))
    html = tmp_path / "report.html"

    assert one.code == 0, one.text
    assert several.code == 4
    assert "-n takes no folder of an unprintable name, such as " in several.text
    assert 0 == run_module("peft_dp", "report", folder, "--html", html, cwd=tmp_path, environment=os.environ).code
    assert "rec\\udcff" in html.read_text()


@pytest.mark.parametrize(("error", "code"), [(FloatingPointError, 1), (ValueError, 2)])
def test_exit_codes(
    error: type[Exception],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the command line a run that learnt nothing is 1, a folder that takes no record 2, each in one sentence."""

    def fails(*arguments: object) -> None:
        raise error("what is wrong")

    monkeypatch.setattr("peft_dp.runs.run", fails)

    assert main(["run", "embedded/smoke/bitfit/sentiment", "--records", str(tmp_path)]) == code
    assert capsys.readouterr().err == "peft-dp: what is wrong\n"


@pytest.mark.parametrize("fault", ["gradients", "rates"])
def test_nothing_moved(spec: Make, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """A run whose every gradient or every rate is zero is no result: it says so and leaves no record."""
    rate = Optimiser(rate=0.01, weight_decay=0.0, schedule="linear", warmup=0.5 if fault == "rates" else 0.0)
    run = spec(optimiser=rate, train=8, batch=8, epochs=1)

    def flat(wanted: Spec, sources: Sources) -> Job:
        job = build(wanted, sources)
        return replace(job, loss=lambda logits, labels: 0 * cross_entropy(logits, labels))

    if fault == "gradients":
        monkeypatch.setattr("peft_dp.runs.build", flat)
    with pytest.raises(FloatingPointError, match="bitfit on sentiment, seed 0: trained, but nothing learnt: no param"):
        peft_dp.run(run, places, Records(tmp_path))

    assert not list(tmp_path.iterdir())


def test_together_out_of_memory(spec: Make, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that do not fit into memory together train one by one, to the results that they have alone."""
    monkeypatch.setattr("peft_dp.training.fleet.SHARE", 0.9)
    specs = [spec(dropout=False, seed=seed) for seed in range(3)]
    alone = [peft_dp.run(one, places) for one in specs]
    raised = []

    def small(module: nn.Module, inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled() and len(output) > 8:
            raised.append(len(output))
            raise torch.OutOfMemoryError

    def short(wanted: Spec, sources: Sources) -> Job:
        job = build(wanted, sources)
        job.backbone.model.get_submodule("head").register_forward_hook(small)
        return job

    monkeypatch.setattr("peft_dp.runs.build", short)
    found = runs(specs, places, Records(tmp_path))

    assert raised == [24]
    assert [record.result() for record in found] == [record.result() for record in alone]
    assert [record.environment["seeds_together"] for record in found] == [1, 1, 1]
