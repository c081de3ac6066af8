"""`peft-dp run`: train one cell under one seed."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from peft_dp.suite import papers
from peft_dp.suite.cli.verb import Verb, add_id, add_json, add_places, add_records, add_seed, places, progress


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `run`."""
    add_id(parser, "the cell, e.g. embedded/smoke/bitfit/sentiment")
    add_json(parser)
    add_seed(parser)
    says = "another {} than the row's, e.g. {}; then nothing is expected"
    parser.add_argument("--backbone", metavar="NAME", help=says.format("backbone", "minilm"))
    parser.add_argument("--task", metavar="NAME", help=says.format("task", "sst2"))
    add_places(parser)
    add_records(parser)


def run(options: Namespace) -> int:
    """Print the record of a cell, trained unless there is one, and whether it agrees; 1 where it differs."""
    from peft_dp.records import Records
    from peft_dp.runs import run
    from peft_dp.suite.verdicts.cells import judge_cell

    cell = papers.find(options.id)
    cell.check_settings()
    records = Records(options.records)
    own = {"backbone": cell.spec.backbone, "task": cell.spec.task}
    others = {name: value for name in own if (value := getattr(options, name)) not in (None, own[name])}
    start = datetime.now(UTC).isoformat(timespec="seconds")
    record = run(replace(cell.spec.seeded(options.seed), **others), places(options), records, progress())
    verdict = judge_cell(cell, [record], places=places(options)) if not others else None
    file = records.path(record.spec, record.key)
    gave: dict[str, Any] = {"values": record.values, "cost": record.cost, "ledger": record.ledger}
    if options.json:
        found = verdict.findings if verdict else ()
        findings = [{"quantity": each.quantity, "status": each.status, "says": str(each)} for each in found]
        judged = {"verdict": verdict and verdict.status, "findings": findings}
        print(json.dumps({"id": cell.id, "instead": others, **gave, **judged, "record": str(file)}, indent=1))
    else:
        changed = ", ".join(f"{name} {value} for {own[name]}" for name, value in others.items())
        made = str(record.environment["date"])
        print(json.dumps(gave, indent=1))
        print(verdict or f"{cell.id} with {changed}: not the row's own, so nothing is expected of it")
        print(f"record: {file}" + f" (of {made}: remove it to train again)" * (made < start))
    return int(verdict is not None and verdict.status == "differs")


RUN = Verb(
    name="run",
    help="train one cell, keep its record, and print it with the verdict",
    examples=(
        "peft-dp run embedded/smoke/bitfit/sentiment --seed 7",
        "peft-dp run embedded/smoke/bitfit/sentiment --task sst2 --data DIR  # on another task",
        "peft-dp run embedded/smoke/bitfit/sentiment --backbone distilbert --json",
    ),
    add_options=add_options,
    run=run,
)
