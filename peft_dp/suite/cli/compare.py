"""`peft-dp compare`: what moved between two folders of records."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from peft_dp.suite.cli.verb import Verb, add_json


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `compare`."""
    parser.add_argument("before", type=Path, metavar="A", help="folder of records")
    parser.add_argument("after", type=Path, metavar="B", help="another folder, with records of the same cells")
    add_json(parser)


def run(options: Namespace) -> int:
    """Print what moved; 1 where anything did.

    Raises:
        ValueError: A folder holds no record, or they share no run.
    """
    from peft_dp.suite.verdicts.drift import drift, render_drift
    from peft_dp.suite.verdicts.folder import read_folder

    found = drift(read_folder(options.before), read_folder(options.after))
    print(json.dumps(asdict(found), indent=1, default=str) if options.json else render_drift(found))
    return int(found.moved)


COMPARE = Verb(
    name="compare",
    help="show what moved between two folders of records, and what differs where it did",
    examples=(
        "peft-dp compare records/before records/after",
        "peft-dp compare records/before records/after --json",
    ),
    add_options=add_options,
    run=run,
)
