"""`peft-dp bless`: record what this machine gives as the expectation of a table or a row."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from peft_dp.suite.cli.verb import Verb, add_places, add_records, places

MINIMUM_SEEDS = 5
"""Fewer runs tell too little about the spread over seeds."""


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `bless`."""
    says = "a table or one row of it, e.g. embedded/smoke or embedded/smoke/bitfit"
    parser.add_argument("table", metavar="TABLE", help=says)
    says = f"runs per cell (default: {MINIMUM_SEEDS}, the fewest)"
    parser.add_argument("--seeds", type=int, default=MINIMUM_SEEDS, metavar="N", help=says)
    add_places(parser)
    add_records(parser)


def run(options: Namespace) -> int:
    """Train the cells under several seeds, and write their scores and losses into the table's recorded file.

    Raises:
        ValueError: No such table or row, too few seeds, or a package with changes that no commit holds.
    """
    from peft_dp.measuring.environment import environment
    from peft_dp.records import Records
    from peft_dp.suite.bless import bless, cells_of

    cells = cells_of(options.table)
    if options.seeds < MINIMUM_SEEDS:
        raise ValueError(f"--seeds {options.seeds} is too few to know a spread: give at least {MINIMUM_SEEDS}")
    dirty = environment()["dirty"]
    if dirty or (dirty is None and not cells[0].table.is_own):  # one's own tables may be used from a wheel
        changes = "peft_dp/ has changes that are not committed"
        raise ValueError(f"{changes}: commit them, so that the record can name what made it")
    file = bless(cells, options.seeds, places(options), Records(options.records), print)
    print(f"written: {file}")
    return 0


BLESS = Verb(
    name="bless",
    help="record what this machine gives, under five seeds or more, as the expectation of a table or a row",
    examples=(
        "peft-dp bless embedded/smoke/bitfit  # one row",
        "peft-dp bless embedded/smoke --seeds 10",
    ),
    add_options=add_options,
    run=run,
)
