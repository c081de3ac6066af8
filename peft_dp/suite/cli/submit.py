"""`peft-dp submit`: train cells as jobs, on this machine or on a Slurm cluster."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from peft_dp.suite import papers
from peft_dp.suite.cli.verb import (
    Verb,
    add_places,
    add_records,
    add_seeds,
    check_positive,
    places,
    print_error,
)
from peft_dp.suite.papers.cell import Cell


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `submit`."""
    parser.add_argument("prefix", nargs="+", metavar="PREFIX", help="cells whose ids start so, e.g. embedded/smoke")
    says = "where jobs run: on this machine, or on a Slurm cluster (default: local)"
    parser.add_argument("--engine", choices=("local", "slurm"), default="local", help=says)
    add_seeds(parser)
    says = "jobs at once (default: here one per GPU, or per core without any)"
    parser.add_argument("--workers", type=int, metavar="N", help=says)
    says = "about how many minutes one Slurm job is to take (default: 60)"
    parser.add_argument("--minutes", type=float, default=60, metavar="M", help=says)
    parser.add_argument("--partition", metavar="NAME", help="Slurm's partition (default: the cluster's)")
    says = "GPUs per Slurm job (default: 1 for the paper budget, else 0)"
    parser.add_argument("--gpus", type=int, metavar="N", help=says)
    says = "another option of sbatch, e.g. account=lab; may be repeated"
    parser.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE", help=says)
    add_places(parser)
    add_records(parser)


def run(options: Namespace) -> int:
    """Send the cells that lack a record as jobs; 1 where one on this machine failed.

    Raises:
        ValueError: A prefix of no cell's id.
        Missing: This machine lacks what sends jobs.
    """
    from peft_dp.suite.jobs import local, slurm
    from peft_dp.suite.jobs.work import Work

    check_positive(options, "seeds", "workers", "minutes")
    if options.engine == "local" and (options.partition or options.gpus or options.slurm):
        raise ValueError("--partition, --gpus and --slurm go to sbatch: give --engine slurm with them")
    work = Work(
        cells=papers.select(options.prefix), seeds=options.seeds, places=places(options), records=options.records
    )
    if options.engine == "slurm":
        slurm.check()
    missing = work.missing()
    failed: Sequence[Cell] = ()
    if not missing:
        print(f"nothing to send: {len(work.cells)} cells have all their records")
    elif options.engine == "local":
        failed = local.run(work, missing, options.workers)
    else:
        slurm.send(
            work,
            missing,
            minutes=options.minutes,
            parallel=options.workers,
            partition=options.partition,
            gpus=options.gpus,
            options=options.slurm,
        )
    for cell in failed:
        print_error(f"{cell.id} has no record")
    print(f"verdicts, once all is done: {work.command}")
    return int(bool(failed))


SUBMIT = Verb(
    name="submit",
    help="train the cells that have no record yet as jobs, several at once here or on a Slurm cluster",
    examples=(
        "peft-dp submit embedded/smoke --records DIR  # on this machine",
        "peft-dp submit slash/table2 bitfit_plus/ --engine slurm --partition gpu --records DIR",
        "peft-dp submit slash/table2 --engine slurm --slurm account=lab --slurm cpus-per-task=4",
    ),
    add_options=add_options,
    run=run,
)
