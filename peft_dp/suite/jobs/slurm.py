"""Cells as a job array of a Slurm cluster; `submitit` sends the jobs, and has Slurm start those again that it stops."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING

from peft_dp.records import Record, read
from peft_dp.suite.jobs.groups import grouped, joined, parts
from peft_dp.suite.jobs.work import Group, Work
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.plan.devices import CPU
from peft_dp.validate import Missing

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

SLACK = 3
"""A job's time limit over its predicted time. A job that needs more is stopped there and goes on in its next turn."""

LEAST = 30
"""The shortest time limit, in minutes: a job has to start first."""

TURNS = 10
"""Most turns of a job: one that runs out of time so often gets nowhere."""

GPU = "A100"
"""The GPU by which a job's time is predicted; which one it gets is not known when it is sent."""

CORES = "${SLURM_CPUS_PER_TASK:+export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK}"
"""Passes on a job's number of cores, which `srun` does not take from `sbatch` since Slurm 22.05 (its release notes)."""

SIGNAL_SECONDS = 120
"""Time from Slurm's signal to the end of a job: the signal waits for an operation, then the job is requeued."""


class SlurmJob(Group):
    """A group of cells as a job of Slurm, which starts it again as it was; it goes on from records and checkpoints."""

    def __call__(self) -> None:
        """Run the group; on SIGTERM keep the state of its run and wait to be killed.

        A job that ends by itself when it is preempted has failed in Slurm's eyes, and is not started again.
        """
        from peft_dp.training.checkpoint import Stopped

        try:
            super().__call__()
        except Stopped:
            while True:
                signal.pause()

    def checkpoint(self) -> DelayedSubmission:
        """Return the job to requeue at the signal before its end; `submitit` asks for it by this name."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check() -> None:
    """Check that this machine can send jobs to Slurm.

    Raises:
        Missing: It cannot; the message says what it lacks.
    """
    if not shutil.which("sbatch"):
        raise Missing("--engine slurm needs Slurm's sbatch: run it on a machine of the cluster, or take --engine local")
    if find_spec("submitit") is None:
        raise Missing("--engine slurm needs submitit: python -m pip install -c constraints.txt -e '.[parallel]'")


def send(
    work: Work,
    cells: Sequence[Cell],
    *,
    minutes: float,
    parallel: int | None,
    partition: str | None,
    gpus: int | None,
    options: Sequence[str],
) -> None:
    """Send cells to Slurm as a job array, and print where it is.

    Args:
        work: What the cells' runs share.
        cells: Some of its cells.
        minutes: About how long one job is to take.
        parallel: How many jobs may run at once; None for as many as there is room for.
        partition: Slurm's partition; None for the cluster's default.
        gpus: GPUs per job; None for one where the paper budget or CUDA is asked for, else for none.
        options: More options of `sbatch`, each KEY=VALUE, or KEY for an option without a value.

    Raises:
        ValueError: Slurm refuses the jobs.
    """
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError

    from peft_dp.suite.plan.estimate import estimates

    if gpus is None:
        gpus = int(work.places.device == "cuda" or any(cell.table.budget == "paper" for cell in cells))
    found = estimates(cells, device=GPU if gpus else CPU, records=list(_present(work)), seeds=work.seeds)
    pieces = parts(found, 60 * minutes)
    seconds = [time for *_, time in pieces]
    groups = grouped(seconds, math.ceil(sum(seconds) / (60 * minutes)))
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
        slurm_additional_parameters={"requeue": True, **named},  # requeued where a node dies, too
    )
    made = [
        SlurmJob(runs=joined([pieces[at] for at in group]), places=work.places, records=work.records)
        for group in groups
    ]
    try:
        jobs = executor.submit_array(made)
    except FailedJobError as error:
        raise ValueError(f"sbatch refused the jobs ({' '.join(str(error).split())}): change what it is given") from None
    print(f"{len(cells)} cells in {len(jobs)} jobs, {jobs[0].job_id} to {jobs[-1].job_id}; logs: {executor.folder}")


def _present(work: Work) -> Iterator[Record]:
    """Yield the records of the folder, from which predictions learn how fast a machine is."""
    for path in work.records.glob("*.json"):
        with suppress(ValueError):
            yield read(path)
