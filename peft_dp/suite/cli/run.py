"""`peft-dp run`: train one cell under one seed, or the same with some fields of one's own."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peft_dp.spec import Spec, from_json, to_json
from peft_dp.suite import papers
from peft_dp.suite.cli.verb import Verb, add_id, add_json, add_places, add_records, places, progress

SHORT = {
    "backbone": ("NAME", str, "another backbone than the row's, e.g. minilm"),
    "task": ("TASK", str, "another task, e.g. sst2, or files of your own: csv:train.csv,dev.csv (docs/own.md)"),
    "train": ("N", int, "another number of training examples"),
    "dev": ("N", int, "another number of scored examples"),
    "epochs": ("N", int, "another number of epochs"),
    "batch": ("N", int, "another logical batch"),
}
"""Fields of a spec that have an option of their own -> what it takes and what it says."""
FIXED = {
    "budget": "the budget is the row's name for its size: set train, dev and epochs",
    "seed": "give the seed by --seed",
    "secret": "the noise is secret where the model is kept (--save) or the data are your own, and nowhere else",
}
"""Fields that `--set` does not take -> what to do instead."""


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `run`."""
    add_id(parser, "the cell, e.g. embedded/smoke/bitfit/sentiment")
    add_json(parser)
    says = "seed of the run (default: 0); of a private run on your own data noise and batches have none"
    parser.add_argument("--seed", type=int, metavar="N", help=says)
    for name, (takes, kind, says) in SHORT.items():
        parser.add_argument(f"--{name}", type=kind, metavar=takes, help=f"{says}; then nothing is expected")
    says = "any other field of the spec, e.g. optimiser.rate=0.01, config.rank=4 or privacy=null; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=says)
    parser.add_argument("--save", type=Path, metavar="DIR", help="keep the trained model in a new folder")
    add_places(parser)
    add_records(parser)


def run(options: Namespace) -> int:
    """Print the record of a cell, trained unless there is one, and whether it agrees; 1 where it differs."""
    from peft_dp.records import Records
    from peft_dp.runs import run
    from peft_dp.suite.verdicts.cells import judge_cell

    cell = papers.find(options.id)
    cell.check_settings()
    spec, instead = _spec(cell.spec, options)
    records = Records(options.records)
    start = datetime.now(UTC).isoformat(timespec="seconds")
    record = run(spec, places(options), records, progress(), options.save)
    verdict = judge_cell(cell, [record], places=places(options)) if not instead else None
    file = records.path(record.spec, record.key)
    gave: dict[str, Any] = {"values": record.values, "cost": record.cost, "ledger": record.ledger}
    if options.json:
        found = verdict.findings if verdict else ()
        findings = [{"quantity": each.quantity, "status": each.status, "says": str(each)} for each in found]
        judged = {"verdict": verdict and verdict.status, "findings": findings}
        others = {name: new for name, (new, _) in instead.items()}
        print(json.dumps({"id": cell.id, "instead": others, **gave, **judged, "record": str(file)}, indent=1))
    else:
        changed = ", ".join(f"{name} {_plain(new)} for {_plain(old)}" for name, (new, old) in instead.items())
        made = str(record.environment["date"])
        print(json.dumps(gave, indent=1))
        print(verdict or f"{cell.id} with {changed}: not the row's own, so nothing is expected of it")
        print(f"record: {file}" + f" (of {made}: remove it to train again)" * (made < start))
        if options.save:
            print(f"model: {options.save}; try: peft-dp predict {options.save} FILE")
    return int(verdict is not None and verdict.status == "differs")


def _spec(own: Spec, options: Namespace) -> tuple[Spec, dict[str, tuple[object, object]]]:
    """Return the spec that the options ask for, and each field that is not the row's: path -> (asked, the row's).

    Raises:
        ValueError: An option is of no field, or the row's number of examples is more than the task has.
    """
    given: dict[str, object] = {name: getattr(options, name) for name in SHORT if getattr(options, name) is not None}
    for text in options.set:
        path, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, such as optimiser.rate=0.01, not {text!r}")
        if path in FIXED:
            raise ValueError(f"--set {text}: {FIXED[path]}")
        given[path] = _value(value)
    if options.save and own.privacy and given.get("privacy", own.privacy) is not None:
        if options.seed is not None:
            raise ValueError(
                f"--seed {options.seed} with --save: who knows the seed of a private run can take the noise away from "
                "the weights that are kept: leave out one of the two"
            )
        given["secret"] = True
    data, instead = to_json(own), {}
    for path, value in given.items():
        *parents, name = path.split(".")
        inner = data
        for parent in parents:
            inner[parent] = held if isinstance(held := inner.get(parent), dict) else {}
            inner = inner[parent]
        if value != inner.get(name):
            instead[path] = (value, inner.get(name))
        inner[name] = value
    spec = from_json(data, "the row with what you changed").seeded(options.seed or 0)
    if spec.task != own.task:
        _check_sizes(spec)
    return spec, instead


def _check_sizes(spec: Spec) -> None:
    from peft_dp import tasks

    task = tasks.find(spec.task)
    for name, has in (("train", task.train), ("dev", task.dev)):
        wanted = getattr(spec, name)
        if wanted is not None and wanted > has:
            says = f"the row takes {wanted:,} {name} examples, task {spec.task!r} has {has:,}"
            raise ValueError(f"{says}: add --{name} {has}")


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


RUN = Verb(
    name="run",
    help="train one cell, keep its record, and print it with the verdict",
    examples=(
        "peft-dp run embedded/smoke/bitfit/sentiment --task sst2 --data DIR  # on another task",
        "peft-dp run embedded/small/lora/sst2 --task csv:train.csv,dev.csv --train 600 --dev 200 --save DIR",
        "peft-dp run embedded/smoke/bitfit/sentiment --backbone distilbert --set optimiser.rate=0.001 --json",
    ),
    add_options=add_options,
    run=run,
)
