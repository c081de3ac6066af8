"""`peft-dp doctor`: what this machine can run, and what mends the rest."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from peft_dp.machine import Places
from peft_dp.suite.cli.verb import Verb, add_folders, add_json, add_records


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `doctor`."""
    add_json(parser)
    add_folders(parser)
    add_records(parser)


def run(options: Namespace) -> int:
    """Print what this machine can run; 1 where that is not the whole main job."""
    from peft_dp.suite.doctor.examine import examine, render_report

    report = examine(Places(data=options.data, backbones=options.backbones), options.records)
    print(json.dumps(asdict(report), indent=1) if options.json else render_report(report))
    return int(not report.well)


DOCTOR = Verb(
    name="doctor",
    help="show what this machine can run, and what mends the rest; nothing is fetched",
    examples=(
        "peft-dp doctor",
        "peft-dp doctor --data DIR --backbones DIR  # with folders of your own",
        "peft-dp doctor --json",
    ),
    add_options=add_options,
    run=run,
)
