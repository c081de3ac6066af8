"""`peft-dp report`: the verdicts of a folder of records, on the screen and as files."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from peft_dp.suite.cli.verb import Verb, print_error, write_file

SCREEN = Path("-")
"""The name of a file that stands for standard output."""


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.add_argument("records", type=Path, metavar="RECORDS", help="folder of records")
    forms = {"html": "a page", "markdown": "a summary of a CI job", "latex": "tables of a paper", "csv": "a data frame"}
    for form, use in forms.items():
        says = f"also write {use}; - prints it instead of the verdicts"
        parser.add_argument(f"--{form}", type=Path, metavar="FILE", help=says)
    says = "another folder of records: each run is also held to the one of its spec and seed there"
    parser.add_argument("--against", type=Path, metavar="DIR", help=says)
    says = "one line per cell with its numbers, in place of grids"
    parser.add_argument("-v", "--verbose", action="store_true", help=says)


def run(options: Namespace) -> int:
    """Print the verdicts, and write them in the forms asked for; 1 where a cell differs.

    Raises:
        ValueError: The folder holds no record, or a file cannot be written.
    """
    from peft_dp.suite.report import export
    from peft_dp.suite.report.page import page
    from peft_dp.suite.report.table import headline, render_others, render_table
    from peft_dp.suite.verdicts.folder import by_spec, read_baseline, read_folder

    found = read_folder(options.records, read_baseline(options.against) if options.against else None)
    forms = (
        (options.html, partial(page, found)),
        (options.markdown, partial(export.to_markdown, found.verdicts)),
        (options.latex, partial(export.to_latex, found.verdicts)),
        (options.csv, partial(export.to_csv, found.verdicts, found.others)),
    )
    for file, form in forms:
        if file == SCREEN:
            print(form(), end="")
        elif file:
            write_file(file, form())
    if all(file != SCREEN for file, _ in forms):
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        width = shutil.get_terminal_size((120, 24)).columns
        parts = [
            headline(found.verdicts),
            render_table(found.verdicts, width=width, verbose=options.verbose, colour=colour),
        ]
        parts.append(render_others([*by_spec(found.others).values()]))
        print("\n\n".join(part for part in parts if part))
    for fault in (*found.damaged, *found.differing):
        print_error(fault)
    return int(any(verdict.status == "differs" for verdict in found.verdicts))


REPORT = Verb(
    name="report",
    help="show the verdicts of a folder of records, without running anything",
    examples=(
        "peft-dp report records/",
        "peft-dp report records/ --html report.html --csv report.csv",
        "peft-dp report records/tonight --against records/last-night",
    ),
    add_options=add_options,
    run=run,
)
