"""Cells as jobs on this machine: the records of a serial run, whatever ends a job, and nothing sent twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_dp import Places, Record, machine
from peft_dp.records import Records, read
from peft_dp.runs import runs
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main
from peft_dp.suite.jobs import slurm
from peft_dp.suite.jobs.groups import grouped, parts
from peft_dp.suite.plan.estimate import Estimate

from .cluster import until

ROOT = Path(__file__).parents[3]

PRIVACY = {"epsilon": 8.0, "delta": 1e-3}
Rows = Mapping[str, Mapping[str, Any]]
ROWS: Rows = {
    "plain": {"method": "bitfit"},
    "private": {"method": "bitfit", "privacy": PRIVACY},
    "lora": {"method": "lora", "config": {"rank": 2, "alpha": 2}},
}
STEPS = 9
"""Of each of them."""

SITE = """
import os, signal, sys

if any("spawn_main" in word or "submitit.core" in word for word in sys.orig_argv):
    from peft_dp.training import checkpoint
    from peft_dp.training.run import Run

    checkpoint.Checkpoint.__init__.__defaults__ = (0.0,)  # a checkpoint after each step
    step, count = Run.step, 0


    def paced(*arguments):
        global count
        count += 1
        with open("STEPS", "a") as file:
            file.write(".")
        with open("GPUS", "w") as file:
            file.write(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        if count == 4:
            try:
                os.rename("HOLD", "TAKEN")
            except FileNotFoundError:
                pass
            else:
                with open("HELD.part", "w") as file:
                    file.write(str(os.getpid()))
                os.rename("HELD.part", "HELD")
                signal.pause()
        return step(*arguments)


    Run.step = paced
"""
"""What Python imports first in a job: it counts steps, and has the first job that comes there wait in its fourth."""


@dataclass(frozen=True)
class Pace:
    """What jobs do, and when: see `SITE`."""

    folder: Path

    def hold(self) -> None:
        """Has a job wait in its fourth step."""
        (self.folder / "hold").touch()

    def held(self) -> int:
        """Waits until one does; gives its process."""
        until((self.folder / "held").exists, True)
        return int((self.folder / "held").read_text())

    @property
    def steps(self) -> int:
        """How many were begun, by all jobs."""
        return len((self.folder / "steps").read_text())


@pytest.fixture
def pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pace:
    """Holds and counts what jobs do."""
    folder = tmp_path / "pace"
    folder.mkdir()
    site = SITE
    for name in ("STEPS", "HOLD", "TAKEN", "HELD", "GPUS"):
        site = site.replace(name, str(folder / name.lower()))
    (folder / "sitecustomize.py").write_text(site)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    return Pace(folder)


@pytest.fixture
def make_table(tables: Path) -> Callable[[Rows], None]:
    """Makes a table of rows on the tiny backbone, in place of the project's own."""
    (tables / "made").mkdir()

    def make(rows: Rows) -> None:
        run = {"backbone": "bert", "train": 24, "dev": 12, "epochs": 3, "batch": 8, "max_length": 24}
        cells = {"sentiment": {"trainable": {"value": 0, "asserted": False}}}
        made = {
            "paper": "made",
            "table": "up",
            "title": "Made up",
            "source": "a test",
            "budget": "smoke",
            "defaults": run | {"optimiser": {"rate": 0.01}},
            "tasks": {"sentiment": {}},
            "rows": [{"id": name, "title": name, "spec": spec, "cells": cells} for name, spec in rows.items()],
        }
        (tables / "made" / "up.json").write_text(json.dumps(made))

    make(ROWS)
    return make


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The folder of records."""
    return tmp_path / "records"


@pytest.fixture
def submit(make_table: object, places: Places, records: Path) -> Callable[..., int]:
    """`peft-dp submit made/`, with more options."""
    options = ["--backbones", str(places.backbones), "--records", str(records), "--device", "cpu"]
    return lambda *more, prefix="made/": main(["submit", prefix, *options, *more])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Has this process compute as a job does that has one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def results(found: Iterable[Record]) -> dict[str, Any]:
    """Key -> all of a record that must repeat."""
    return {record.key: record.result() for record in found}


def serial(places: Places) -> dict[str, Any]:
    """Likewise of all cells, run one after another."""
    return results(runs([cell.spec], places)[0] for cell in papers.cells())


def kept(folder: Path) -> dict[str, Any]:
    """Likewise of a folder; that anything in it is no record is an error."""
    return results(read(path) for path in folder.rglob("*.json"))


@pytest.mark.slow
def test_local(
    submit: Callable[..., int],
    places: Places,
    records: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    """Two jobs side by side give the records of a serial run, on their share of the cores; each cell is told of."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 0 == submit("--workers", "2", "--seeds", "2")
    said = capfd.readouterr().out

    assert "3 cells in 2 processes" in said
    assert all(f"made/up/{row}/sentiment: done" in said for row in ROWS)
    assert f"pytest bench -m smoke --peft-records {records} --peft-collect --peft-seeds 2" in said
    assert kept(records) == results(record for cell in papers.cells() for record in runs(cell.specs(2), places))
    found = [read(path) for path in records.iterdir()]
    assert {int(machine.worker_environment(0, 2)["OMP_NUM_THREADS"])} == {
        record.environment["threads"] for record in found
    }


def test_failed_cell(
    submit: Callable[..., int],
    make_table: Callable[[Rows], None],
    places: Places,
    records: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What has its records is not sent; a cell that fails is named with the reason, and the next one runs."""
    make_table({"diverges": {"method": "bitfit", "optimiser": {"rate": 1e30}}, **ROWS})
    _, *good = papers.cells()
    for cell in good[1:]:
        runs([cell.spec], places, Records(records))
    assert 1 == submit("--workers", "1")

    said = capfd.readouterr()
    assert "2 cells in 1 processes" in said.out
    assert "made/up/diverges/sentiment: failed: bitfit" in said.out
    assert "try a smaller optimiser.rate" in said.out
    assert "made/up/plain/sentiment: done" in said.out
    assert "1 of 2 cells failed: made/up/diverges/sentiment" in said.err
    assert len(kept(records)) == len(ROWS)


def test_nothing_to_send(
    submit: Callable[..., int], places: Places, records: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where every record is there, nothing is sent."""
    for cell in papers.cells():
        runs([cell.spec], places, Records(records))
    assert 0 == submit()

    assert "nothing to send: 3 cells have all their records" in capfd.readouterr().out


@pytest.mark.slow
def test_killed(submit: Callable[..., int], places: Places, pace: Pace, records: Path, one_thread: None) -> None:
    """A job killed in a step loses that step: sent again, what is missing goes on, to the same records."""
    pace.hold()
    killer = threading.Thread(target=lambda: os.kill(pace.held(), signal.SIGKILL))
    killer.start()
    assert 1 == submit("--workers", "2")
    killer.join()
    assert len(kept(records)) in (1, 2)
    assert 0 == submit("--workers", "2")

    assert kept(records) == serial(places)
    assert pace.steps == STEPS * len(ROWS) + 1


def test_interrupted(submit: Callable[..., int], pace: Pace, records: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends the jobs after their step, and the verb with 130; their state is kept."""
    pace.hold()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it

    def interrupt() -> None:
        pace.held()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert 130 == submit("--workers", "1")

    assert not Path(f"/proc/{pace.held()}").exists()
    assert pace.steps == 4
    assert [path.suffix for path in records.iterdir()] == [".safetensors"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [1, 2, 7, 50])
def test_grouped(number: int) -> None:
    """Every cell is in one group, and no group takes over 4/3 of what the best grouping must (Graham 1969)."""
    draw = random.Random(number)
    seconds = [draw.expovariate(0.01) for _ in range(40)]
    groups = grouped(seconds, number)

    assert sorted(at for group in groups for at in group) == list(range(40))
    assert len(groups) == min(number, 40)
    longest = sorted(seconds, reverse=True)
    least = max(longest[0], sum(seconds) / number, sum(longest[number - 1 : number + 1]) if number < 40 else 0.0)
    assert max(sum(seconds[at] for at in group) for group in groups) <= 4 / 3 * least


def test_parts() -> None:
    """A cell that takes longer than a job is sent run by run, others whole; no run is lost, and none sent twice."""
    short, long = (
        Estimate(cell=cell, seeds=3, steps=1, tokens=1.0, flops=1.0, trainable=1, peak_bytes=1.0, seconds=seconds)
        for cell, seconds in zip(papers.cells("embedded/smoke"), (60.0, 61.0), strict=False)
    )
    found = parts([short, long], 60.0)

    assert [(short.cell.id, short.cell.specs(3), 60.0)] == found[:1]
    assert [(long.cell.id, [spec], 61.0 / 3) for spec in long.cell.specs(3)] == found[1:]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--seeds", "0"], 2, "--seeds must be a finite number above 0, not 0"),
        (["--workers", "-1"], 2, "--workers must be a finite number above 0, not -1"),
        (["--gpus", "2"], 2, "--partition, --gpus and --slurm go to sbatch: give --engine slurm with them"),
        (["--engine", "slurm"], 3, "--engine slurm needs Slurm's sbatch: run it on a machine of the cluster"),
    ],
)
def test_bad_input(
    options: Sequence[str],
    code: int,
    says: str,
    submit: Callable[..., int],
    records: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What cannot work is refused in a sentence, and nothing is sent or made."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert code == submit(*options)

    assert capsys.readouterr().err.startswith(f"peft-dp: {says}")
    assert not records.exists()


def test_unknown_prefix(submit: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """So is a prefix that no id has."""
    assert submit(prefix="none/") == 2

    assert capsys.readouterr().err == "peft-dp: no cell's id starts with 'none/'; `peft-dp list` shows all\n"


def test_without_submitit(
    submit: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the package the sentence says how to install it."""
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "find_spec", lambda name: None)
    assert submit("--engine", "slurm") == 3

    assert "python -m pip install -c constraints.txt -e '.[parallel]'" in capsys.readouterr().err
