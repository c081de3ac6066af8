"""Cells in several processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace

from peft_dp import machine
from peft_dp.suite.jobs.groups import grouped
from peft_dp.suite.jobs.work import Group, Work
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.plan import workload


def run(work: Work, cells: Sequence[Cell], number: int | None) -> list[Cell]:
    """Run cells on this machine and wait for them; Ctrl-C ends the processes, and each keeps the state of its run.

    Args:
        work: What the cells' runs share.
        cells: Some of its cells.
        number: How many processes; None for one per GPU, or one per core without GPUs.

    Returns:
        The cells that have no record afterwards: they failed, or their process was killed.
    """
    sizes = [workload.flops(cell.spec) * len(cell.specs(work.seeds)) for cell in cells]
    groups = grouped(sizes, number or machine.default_workers())
    context = multiprocessing.get_context("spawn")  # a worker reads its environment before it loads torch
    processes = []
    for index, group in enumerate(groups):
        runs = work.runs([cells[at] for at in group])
        arguments = (
            Group(runs=runs, places=work.places, records=work.records),
            machine.worker_environment(index, len(groups)),
        )
        processes.append(context.Process(target=_run, args=arguments, daemon=True))
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


def _run(group: Group, environment: Mapping[str, str]) -> None:
    """Run a group under variables that torch reads when it is imported; only SIGTERM from the parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    group()
