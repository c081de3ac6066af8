"""Cells as jobs, on this machine or on a Slurm cluster, that fill one folder of records: `peft-dp submit`.

A job runs a group of cells. It only reads the records that are there and trains the rest, so whatever ended it
(its time limit, a job with more priority, a dead node), it is started again as it was and goes on. `submitit` sends
the jobs, and has Slurm start again those that it stops.
"""

from __future__ import annotations

import heapq
import math
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from peft_dp import machine
from peft_dp.machine import Places
from peft_dp.records import Record, Records, Unwritable, read
from peft_dp.spec import Spec
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.table import MARKERS
from peft_dp.suite.plan import estimate
from peft_dp.validate import Missing

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

SLACK = 3
"""A job's time limit in its predicted time. What needs more is stopped there and goes on in the job's next turn."""

LEAST = 30
"""The shortest time limit, in minutes: a job has to start first."""

TURNS = 10
"""Of a job at most: one whose time is out that often gets nowhere."""

GPU = "A100"
"""By which a job's time on a GPU is predicted; which one it gets is not known when it is sent."""

CORES = "${SLURM_CPUS_PER_TASK:+export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK}"
"""Hands on how many cores a job has; since Slurm 22.05 `srun` does not take that from `sbatch` (its release notes)."""

SIGNAL_SECONDS = 120
"""From Slurm's signal to the end of a job: the signal waits for the operation at hand; then the job is requeued."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Cells to run, and what their runs share.

    Attributes:
        cells: The cells.
        seeds: Runs of each; None for as many as its table asks for.
        places: Where a job finds what it needs.
        records: The folder.
    """

    cells: Sequence[Cell]
    seeds: int | None
    places: Places
    records: Path

    @property
    def command(self) -> str:
        """What asserts that the records agree, and trains nothing."""
        marks = " or ".join(sorted({MARKERS[cell.table.budget] for cell in self.cells}))
        seeds = ["--peft-seeds", str(self.seeds)] if self.seeds else []
        return shlex.join(
            ["pytest", "bench", "-m", marks, "--peft-records", str(self.records), "--peft-collect", *seeds]
        )

    def missing(self) -> list[Cell]:
        """The cells without all their records; where this machine lacks what is needed to tell, a cell is one of them.

        Raises:
            ValueError: A cell names what does not exist, a file is damaged, or the folder cannot be written to.
        """
        from peft_dp.runs import all_recorded

        records = Records(self.records)

        def there(cell: Cell) -> bool:
            try:
                return all_recorded(cell.specs(self.seeds), self.places, records)
            except Missing:
                return False

        return [cell for cell in self.cells if not there(cell)]

    def runs(self, cells: Sequence[Cell]) -> dict[str, list[Spec]]:
        """The runs of some of the cells, by their ids."""
        return {cell.id: cell.specs(self.seeds) for cell in cells}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cells that one process runs, one after another.

    Attributes:
        runs: Id of a cell -> its runs.
        places: Where that process finds what they need.
        records: The folder.
    """

    runs: Mapping[str, Sequence[Spec]]
    places: Places
    records: Path

    def __call__(self) -> None:
        """Runs what has no record yet, and says of each cell how it ended; goes on with the next where one fails.

        Raises:
            SystemExit: Cells failed; names them.
            Unwritable: The folder takes no record, so the next cell's would not be kept either.
        """
        from peft_dp.runs import runs

        records = Records(self.records)
        failed = []
        for name, specs in self.runs.items():
            start = time.monotonic()
            try:
                runs(specs, self.places, records)
            except Unwritable:
                raise
            except Exception as error:
                if not isinstance(error, (ValueError, Missing, FloatingPointError)):  # which say all in a sentence
                    traceback.print_exc()
                failed.append(name)
                print(f"{name}: failed: {error}", flush=True)
            else:
                print(f"{name}: done in {time.monotonic() - start:.0f} s", flush=True)
        if failed:
            sys.exit(f"peft-dp: {len(failed)} of {len(self.runs)} cells failed: {', '.join(failed)}")


class Job(Group):
    """The same as a job of Slurm, which starts it again as it was; it goes on from records and checkpoints."""

    def __call__(self) -> None:
        """As `Group`, but on SIGTERM it keeps its state and waits to be killed.

        For a job that ends by itself when it is preempted has failed, to Slurm, and is not started again.
        """
        from peft_dp.training.checkpoint import Stopped

        try:
            super().__call__()
        except Stopped:
            while True:
                signal.pause()

    def checkpoint(self) -> DelayedSubmission:
        """What is requeued at the signal before the job's end; `submitit` asks for it by this name."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def local(work: Work, cells: Sequence[Cell], number: int | None) -> list[Cell]:
    """Runs cells on this machine, in so many processes or in one a GPU or core, and waits for them.

    Ctrl-C ends them, and each keeps the state of its run.

    Returns:
        The cells that have no record yet: that failed, or whose process was killed.
    """
    sizes = [estimate.work(cell) * len(cell.specs(work.seeds)) for cell in cells]
    groups = packed(sizes, number or machine.default_workers())
    context = multiprocessing.get_context("spawn")  # of torch nothing is to be there yet
    processes = []
    for index, group in enumerate(groups):
        runs = work.runs([cells[at] for at in group])
        arguments = (
            Group(runs=runs, places=work.places, records=work.records),
            machine.worker_environment(index, len(groups)),
        )
        processes.append(context.Process(target=_process, args=arguments, daemon=True))
    print(f"{len(cells)} cells in {len(processes)} processes", flush=True)
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        raise
    return replace(work, cells=cells).missing()


def _process(group: Group, environment: Mapping[str, str]) -> None:
    """Runs a group with variables that torch reads when it is imported; its parent alone ends it, with SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    group()


def slurm(
    work: Work,
    cells: Sequence[Cell],
    *,
    minutes: float,
    parallel: int | None,
    partition: str | None,
    gpus: int | None,
    options: Sequence[str],
) -> None:
    """Sends cells to Slurm as a job array, and prints where it is.

    Args:
        work: What they are of.
        cells: The cells.
        minutes: About how long one job takes.
        parallel: How many jobs may run at once; None for as many as there is room for.
        partition: Slurm's partition; None for the cluster's default.
        gpus: Of each job; None for one where the paper budget or CUDA is asked for, else for none.
        options: What else `sbatch` is given, as KEY=VALUE, or KEY for an option without a value.

    Raises:
        ValueError: Slurm refuses the jobs.
    """
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError

    if gpus is None:
        gpus = int(work.places.device == "cuda" or any(cell.table.budget == "paper" for cell in cells))
    found = estimate.estimates(cells, device=GPU if gpus else estimate.CPU, records=list(_made(work)), seeds=work.seeds)
    pieces = parts(found, 60 * minutes)
    seconds = [time for *_, time in pieces]
    groups = packed(seconds, math.ceil(sum(seconds) / (60 * minutes)))
    longest = max(sum(seconds[at] for at in group) for group in groups)
    named = {key: value or True for key, _, value in (option.partition("=") for option in options)}
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    executor = AutoExecutor(work.records / "jobs" / stamp, cluster="slurm", slurm_max_num_timeout=TURNS)
    executor.update_parameters(
        name="peft-dp",
        timeout_min=max(LEAST, math.ceil(SLACK * longest / 60)),
        gpus_per_node=gpus or None,
        slurm_partition=partition,
        slurm_array_parallelism=parallel,
        slurm_signal_delay_s=SIGNAL_SECONDS,
        slurm_setup=[CORES],
        slurm_additional_parameters={"requeue": True, **named},  # also where a node dies
    )
    try:
        jobs = executor.submit_array(
            [
                Job(runs=_together([pieces[at] for at in group]), places=work.places, records=work.records)
                for group in groups
            ]
        )
    except FailedJobError as error:
        raise ValueError(f"sbatch refused the jobs ({' '.join(str(error).split())}): change what it is given") from None
    print(f"{len(cells)} cells in {len(jobs)} jobs, {jobs[0].job_id} to {jobs[-1].job_id}; logs: {executor.folder}")


def _made(work: Work) -> Iterator[Record]:
    """Records that are there, of which predictions learn how fast a machine is."""
    for path in work.records.glob("*.json"):
        with suppress(ValueError):
            yield read(path)


def check_slurm() -> None:
    """Looks whether this machine can send jobs to Slurm.

    Raises:
        Missing: It cannot; says what it lacks.
    """
    if not shutil.which("sbatch"):
        raise Missing("--engine slurm needs Slurm's sbatch: run it on a machine of the cluster, or take --engine local")
    if find_spec("submitit") is None:
        raise Missing("--engine slurm needs submitit: python -m pip install -c constraints.txt -e '.[parallel]'")


Part = tuple[str, list[Spec], float]
"""A cell's id, some of its runs, and the seconds that they take."""


def parts(found: Sequence[estimate.Estimate], most: float) -> list[Part]:
    """What cannot be divided: a cell, or each of its runs where all of them take more than so many seconds."""
    pieces: list[Part] = []
    for each in found:
        specs = each.cell.specs(each.seeds)
        some = [specs] if each.seconds <= most else [[spec] for spec in specs]
        pieces += [(each.cell.id, piece, each.seconds * len(piece) / len(specs)) for piece in some]
    return pieces


def _together(pieces: Sequence[Part]) -> dict[str, list[Spec]]:
    runs: dict[str, list[Spec]] = {}
    for name, specs, _ in pieces:
        runs.setdefault(name, []).extend(specs)
    return runs


def packed(seconds: Sequence[float], number: int) -> list[list[int]]:
    """Indices in at most so many groups of about equal sums: the largest first, each to the least group so far."""
    order = sorted(range(len(seconds)), key=lambda at: -seconds[at])
    groups: list[list[int]] = [[] for _ in order[:number]]
    sums = [(0.0, group) for group in range(len(groups))]
    for at in order:
        least, group = sums[0]
        groups[group].append(at)
        heapq.heapreplace(sums, (least + seconds[at], group))
    return groups
