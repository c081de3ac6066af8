"""Cells as jobs of a real Slurm, whose daemons run here: what it stops or loses goes on, to the same records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peft_dp import Places
from peft_dp.suite.jobs import slurm

from . import cluster as daemons
from .cluster import Cluster, until
from .test_submit import ROWS, STEPS, Pace, kept, make_table, one_thread, pace, records, serial, submit

__all__ = ["make_table", "one_thread", "pace", "records", "submit"]  # fixtures

pytestmark = [
    pytest.mark.slow,  # each starts daemons, and waits for what they do on their own clocks
    pytest.mark.skipif(daemons.lacks(), reason=daemons.MISSING),
]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    with daemons.cluster(folder, 2) as made:
        monkeypatch.setenv("SLURM_CONF", made.environment["SLURM_CONF"])
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        yield made


@pytest.fixture
def send(submit: Callable[..., int], cluster: Cluster) -> Callable[..., None]:
    """Sends a job a cell."""

    def sent(*options: str) -> None:
        assert 0 == submit("--engine", "slurm", "--minutes", "0.001", *options)

    return sent


def finish(cluster: Cluster) -> None:
    """Waits until no job waits or runs."""
    until(lambda: len(cluster.jobs()), 0)


def test_array(
    send: Callable[..., None],
    cluster: Cluster,
    places: Places,
    records: Path,
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A job array gives the records of a serial run; its logs say what became of each cell."""
    send("--workers", "2", "--slurm", "comment=a test", "--slurm", "exclusive")
    said = capsys.readouterr().out
    finish(cluster)

    assert "3 cells in 3 jobs, 1_0 to 1_2; logs: " in said
    assert kept(records) == serial(places)
    logs = "".join(path.read_text() for path in (records / "jobs").rglob("*.out"))
    assert all(f"made/up/{row}/sentiment: done" in logs for row in ROWS)
    job = cluster.ask("scontrol", "show", "job", "1_0").replace("\n", " ")
    assert all(
        f"{option} " in job for option in ("Comment=a test", "ArrayTaskThrottle=2", "Requeue=1", "OverSubscribe=NO")
    )


def test_dead_node(
    send: Callable[..., None], cluster: Cluster, pace: Pace, places: Places, records: Path, one_thread: None
) -> None:
    """A node that dies in the midst of a step costs that step: its job goes on on another node."""
    pace.hold()
    send()
    pace.held()
    cluster.kill(cluster.node(pace.held()))
    finish(cluster)

    assert kept(records) == serial(places)
    assert pace.steps == STEPS * len(ROWS) + 1


def test_stopped(
    send: Callable[..., None], cluster: Cluster, pace: Pace, places: Places, records: Path, one_thread: None
) -> None:
    """A job that Slurm stops, as at its time limit, is requeued and goes on."""
    pace.hold()
    send()
    pace.held()
    cluster.ask("scancel", "--signal=USR2", *cluster.jobs("running"))
    finish(cluster)

    assert kept(records) == serial(places)
    assert STEPS * len(ROWS) < pace.steps


def test_time_out(
    send: Callable[..., None],
    cluster: Cluster,
    pace: Pace,
    places: Places,
    records: Path,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job whose time runs out is requeued by Slurm's own signal, and goes on."""
    monkeypatch.setattr(slurm, "LEAST", 3)  # minutes, of which the signal takes two
    pace.hold()
    send()
    pace.held()
    finish(cluster)

    assert kept(records) == serial(places)
    logs = "".join(path.read_text() for path in (records / "jobs").rglob("*.err"))
    assert "timed-out" in logs
    assert STEPS * len(ROWS) < pace.steps


def test_gpus(send: Callable[..., None], cluster: Cluster, pace: Pace, records: Path) -> None:
    """A job is given as many GPUs as it asks for, by the variable that torch reads."""
    send("--gpus", "2")
    finish(cluster)

    assert len(kept(records)) == len(ROWS)
    assert (pace.folder / "gpus").read_text() == "0,1"


def test_preempted(
    send: Callable[..., None], cluster: Cluster, pace: Pace, places: Places, records: Path, one_thread: None
) -> None:
    """A job that makes room for an urgent one ends its step, and goes on once there is room."""
    pace.hold()
    send()
    pace.held()
    cluster.ask("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap", "true")
    finish(cluster)

    assert kept(records) == serial(places)
    assert STEPS * len(ROWS) <= pace.steps <= STEPS * len(ROWS) + 2


def test_refused(
    submit: Callable[..., int], cluster: Cluster, records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What sbatch says of jobs that it does not take is told in a sentence."""
    assert 2 == submit("--engine", "slurm", "--partition", "none")

    assert (
        "peft-dp: sbatch refused the jobs (sbatch: error: invalid partition specified: none" in capsys.readouterr().err
    )
