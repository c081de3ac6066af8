"""The command line: `peft-dp VERB`, or `python -m peft_dp VERB`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import shtab
from tabulate import tabulate
from tqdm import tqdm

from peft_dp.files import write
from peft_dp.suite import papers
from peft_dp.suite.cli import listing as showing
from peft_dp.suite.papers import recorded, table
from peft_dp.validate import Missing, positive

MINIMUM_SEEDS = 5
FIRST_SEED = 5
"""The first that `bless` records: tests train 0, 1, ..., so that they are compared with other runs than their own."""

SCREEN = Path("-")
"""The name of a file that stands for standard output."""

EXIT_CODES = """exit codes:
    0  done
    1  a cell differs, moved, failed, leaks or learnt nothing; of `doctor`: the main job cannot run here
    2  bad input
    3  this machine lacks something: data, weights, a GPU
  130  interrupted

shell completion: eval "$(peft-dp --print-completion bash)"
"""
_LISTED = "$(peft-dp list | awk 'NR > 2 { print $1 }')"
COMPLETION = {
    "bash": f'_peft_dp_ids() {{ compgen -W "{_LISTED}" -- "$1"; }}',
    "zsh": f"_peft_dp_ids() {{ compadd -- {_LISTED} }}",
}
"""Shell -> the function that completes ids."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        The exit code, as `EXIT_CODES` says.
    """
    try:
        options = _parser().parse_args(arguments)
        return int(options.verb(options))
    except FloatingPointError as error:
        return _failed(error, 1)
    except ValueError as error:
        return _failed(error, 2)
    except Missing as error:
        return _failed(error, 3)
    except KeyboardInterrupt:
        print("peft-dp: interrupted; records that were written stay, a run in progress left none", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as behind `| head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _failed(error: Exception | str, code: int) -> int:
    """Says what is wrong, on one line and with nothing in it that steers a terminal."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(error))
    print(f"peft-dp: {line}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peft-dp",
        description="Rows of PEFT and DP papers as runs that can be checked. `peft-dp VERB --help` has examples.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shtab.add_argument_to(parser, preamble=COMPLETION, help="print the lines that make a shell complete verbs and ids")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    add = partial(_verb, verbs)

    verb = add(
        "doctor",
        "what this machine can run, and what mends the rest; nothing is fetched",
        "peft-dp doctor",
        "peft-dp doctor --data DIR --backbones DIR  # with folders of your own",
        "peft-dp doctor --json",
    )
    _json(verb)
    _folders(verb)
    _records(verb)
    verb.set_defaults(verb=doctor)

    verb = add(
        "list",
        "all facts, cells, cited cells and claims: id, needs, what is expected",
        "peft-dp list",
        "peft-dp list slash/table2  # one table",
        "peft-dp list --json embedded/",
    )
    verb.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="only ids that start so, e.g. slash/")
    _json(verb, "list")
    verb.set_defaults(verb=show_all)

    verb = add(
        "show",
        "one fact, cell, cited cell or claim: definition and expectation",
        "peft-dp show embedded/smoke/bitfit/sentiment",
        "peft-dp show slash/claims/c1  # what a paper states of its rows",
        "peft-dp show slash/table2/slash-d1024/rte --json",
    )
    _id(verb, "e.g. embedded/smoke/bitfit/sentiment or slash/claims/c1")
    _json(verb)
    verb.set_defaults(verb=show)

    verb = add(
        "run",
        "train one cell, print its record, and keep it",
        "peft-dp run embedded/smoke/bitfit/sentiment --seed 7",
        "peft-dp run embedded/smoke/bitfit/sentiment --task sst2 --data DIR  # on another task",
        "peft-dp run embedded/smoke/bitfit/sentiment --backbone distilbert --json",
    )
    _id(verb, "e.g. embedded/smoke/bitfit/sentiment")
    _json(verb)
    _seed(verb)
    verb.add_argument(
        "--backbone", metavar="NAME", help="another than the row's, e.g. minilm; then nothing is expected"
    )
    verb.add_argument("--task", metavar="NAME", help="likewise")
    _places(verb)
    _records(verb)
    verb.set_defaults(verb=run)

    verb = add(
        "plan",
        "what cells will cost before anything runs: steps, tokens, FLOPs, memory, time",
        "peft-dp plan slash/ --device H200",
        "peft-dp plan embedded/smoke --records DIR -v  # with the times of records made on this machine",
        "peft-dp plan slash/table2 --device A100 --within 8h  # what fits in a night",
    )
    verb.add_argument("prefix", nargs="*", metavar="PREFIX", help="cells whose ids start so; default: all")
    verb.add_argument("--device", metavar="NAME", default="cpu", help="A100, H100, H200, RTX8000 or cpu; default: cpu")
    verb.add_argument("--records", type=Path, metavar="DIR", help="times of the device, from runs made on it")
    verb.add_argument("--within", metavar="TIME", help="pick the most cells that fit in it, e.g. 8h, 30m or 90s")
    verb.add_argument("--claim", metavar="ID", help="only the cells that decide it, e.g. slash/claims/c1")
    _seeds(verb)
    verb.add_argument("--workers", type=int, metavar="N", help="say how long so many devices take at once")
    verb.add_argument("--durations", type=Path, metavar="FILE", help="write seconds by test there, for pytest-split")
    _json(verb)
    verb.add_argument("-v", "--verbose", action="store_true", help="a line a cell")
    verb.set_defaults(verb=plan)

    verb = add(
        "submit",
        "train what has no record yet as jobs, several at once here or on a Slurm cluster",
        "peft-dp submit embedded/smoke --records DIR  # on this machine",
        "peft-dp submit slash/table2 bitfit_plus/ --engine slurm --partition gpu --records DIR",
        "peft-dp submit slash/table2 --engine slurm --slurm account=lab --slurm cpus-per-task=4",
    )
    verb.add_argument("prefix", nargs="+", metavar="PREFIX", help="cells whose ids start so, e.g. embedded/smoke")
    verb.add_argument("--engine", choices=("local", "slurm"), default="local", help="default: local")
    _seeds(verb)
    verb.add_argument("--workers", type=int, metavar="N", help="jobs at once; default: here one a GPU or core")
    verb.add_argument("--minutes", type=float, default=60, metavar="M", help="of a Slurm job, about; default: 60")
    verb.add_argument("--partition", metavar="NAME", help="Slurm's partition; default: the cluster's")
    verb.add_argument("--gpus", type=int, metavar="N", help="of a Slurm job; default: 1 for the paper budget, else 0")
    verb.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="what else sbatch is given; may be repeated"
    )
    _places(verb)
    _records(verb)
    verb.set_defaults(verb=submit)

    verb = add(
        "audit",
        "a lower bound on epsilon of one private cell, found by attacking it",
        "peft-dp audit embedded/smoke/bitfit-dp/sentiment",
        "peft-dp audit embedded/smoke/bitfit-dp/sentiment --canaries 1000 --json  # coarser and quicker",
    )
    _id(verb, "e.g. embedded/smoke/bitfit-dp/sentiment")
    _json(verb)
    _seed(verb)
    verb.add_argument("--canaries", type=int, metavar="M", default=10_000, help="at most; default: 10000")
    _places(verb)
    verb.set_defaults(verb=audit)

    verb = add(
        "bless",
        "record what this machine gives as the expectation of a table or a row",
        "peft-dp bless embedded/smoke/bitfit  # one row",
        "peft-dp bless embedded/smoke --seeds 10",
    )
    verb.add_argument("table", help="a table or one row of it, e.g. embedded/smoke or embedded/smoke/bitfit")
    verb.add_argument("--seeds", type=int, default=MINIMUM_SEEDS, metavar="N", help=f"default: {MINIMUM_SEEDS}")
    _places(verb)
    _records(verb)
    verb.set_defaults(verb=bless)

    verb = add(
        "report",
        "the verdicts of a folder of records, without running anything",
        "peft-dp report records/",
        "peft-dp report records/ --html report.html --csv report.csv",
        "peft-dp report records/ --markdown -  # on the screen",
    )
    verb.add_argument("records", type=Path, metavar="RECORDS", help="the folder that a session named")
    for form in ("html", "markdown", "latex", "csv"):
        verb.add_argument(f"--{form}", type=Path, metavar="FILE", help="write them so too; - for the screen, alone")
    verb.add_argument("-v", "--verbose", action="store_true", help="a line a cell with its numbers, in place of grids")
    verb.set_defaults(verb=report)

    verb = add(
        "compare",
        "what moved between two folders of records, and what differs where it did",
        "peft-dp compare records/before records/after",
        "peft-dp compare records/before records/after --json",
    )
    verb.add_argument("before", type=Path, metavar="A", help="a folder of records")
    verb.add_argument("after", type=Path, metavar="B", help="another, of the same cells")
    _json(verb)
    verb.set_defaults(verb=compare)
    return parser


def _verb(verbs: Any, name: str, says: str, *examples: str) -> argparse.ArgumentParser:
    """Adds a verb whose help ends in examples."""
    made: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=says,
        description=f"{says[0].upper()}{says[1:]}.",
        epilog="\n  ".join(["examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made


def _id(verb: argparse.ArgumentParser, says: str) -> None:
    action: Any = verb.add_argument("id", help=says)
    action.complete = dict.fromkeys(COMPLETION, "_peft_dp_ids")  # where shtab looks for it


def _json(verb: argparse.ArgumentParser, kind: str = "object") -> None:
    verb.add_argument("--json", action="store_true", help=f"one JSON {kind}")


def _seed(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def _seeds(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--seeds", type=int, metavar="N", help="runs of each cell; default: as its table says")


def _folders(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", "--peft-data", type=Path, metavar="DIR", help="real data, e.g. GLUE's official folders")
    verb.add_argument(
        "--backbones", "--peft-backbones", type=Path, metavar="DIR", help="pretrained models, one folder each"
    )


def _places(verb: argparse.ArgumentParser) -> None:
    _folders(verb)
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if there is any")


def _records(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--records", type=Path, metavar="DIR", default=Path("records"), help="default: records/")


def doctor(options: argparse.Namespace) -> int:
    """Prints what this machine can run; 1 where that is not the whole main job."""
    from peft_dp.machine import Places
    from peft_dp.suite.cli.examine import examine, render_report

    report = examine(Places(data=options.data, backbones=options.backbones), options.records)
    print(json.dumps(asdict(report), indent=1) if options.json else render_report(report))
    return int(not report.well)


def show_all(options: argparse.Namespace) -> int:
    """Prints a line for each fact, cell, cited cell and claim, or for those whose id starts so."""
    showing.show_all(options.prefix, as_json=options.json)
    return 0


def show(options: argparse.Namespace) -> int:
    """Prints one fact, cell, cited cell or claim on one screen."""
    showing.show(options.id, as_json=options.json)
    return 0


def run(options: argparse.Namespace) -> int:
    """Trains one cell under one seed and says whether it agrees; with a backbone or task not its own, what it gives."""
    from peft_dp.machine import Places
    from peft_dp.records import Records
    from peft_dp.runs import run
    from peft_dp.suite.verdicts.cells import compare

    cell = papers.find(options.id)
    records = Records(options.records)
    places = Places(data=options.data, backbones=options.backbones, device=options.device)
    own = {"backbone": cell.spec.backbone, "task": cell.spec.task}
    others = {name: value for name in own if (value := getattr(options, name)) not in (None, own[name])}
    start = datetime.now(UTC).isoformat(timespec="seconds")
    record = run(replace(cell.spec.seeded(options.seed), **others), places, records, _bar())
    gave = {"values": record.values, "cost": record.cost, "ledger": record.ledger}
    verdict = compare(cell, [record]) if not others else None
    code = int(verdict is not None and verdict.status == "differs")
    path = records.path(record.spec, record.key)
    if options.json:
        found = verdict.findings if verdict else ()
        findings = [{"quantity": each.quantity, "status": each.status, "says": str(each)} for each in found]
        judged = {"verdict": verdict and verdict.status, "findings": findings}
        print(json.dumps({"id": cell.id, "instead": others, **gave, **judged, "record": str(path)}, indent=1))
        return code
    print(json.dumps(gave, indent=1))
    changed = ", ".join(f"{name} {value} for {own[name]}" for name, value in others.items())
    print(verdict or f"{cell.id} with {changed}: not the row's own, so nothing is expected of it")
    made = str(record.environment["date"])
    print(f"record: {path}" + f" (of {made}: remove it to train again)" * (made < start))
    return code


def plan(options: argparse.Namespace) -> int:
    """Prints what cells will cost on a device.

    Raises:
        ValueError: An unknown prefix, claim or device, or a time or a number of seeds that is none.
    """
    from peft_dp.suite.plan import summary
    from peft_dp.suite.plan.estimate import calibrated, estimate
    from peft_dp.suite.verdicts.gather import gather

    _positive(options, "seeds", "workers")
    if options.claim and options.prefix:
        raise ValueError("--claim names its cells itself: leave out PREFIX")
    time = summary.seconds(options.within) if options.within else None
    cells = summary.deciding(options.claim) if options.claim else papers.select(options.prefix or [""])
    verdicts = gather(options.records).verdicts if options.records else ()
    clocks = calibrated(options.device, [record for verdict in verdicts for record in verdict.records])
    bar = tqdm(cells, desc="counting", delay=2, leave=False, disable=_bar() is None)
    found = [estimate(cell, clocks, options.seeds) for cell in bar]
    fits, others = summary.within(found, time) if time else (found, [])
    if options.durations:
        _write(options.durations, json.dumps(summary.durations(fits), indent=1) + "\n")
    if options.json:
        print(json.dumps(summary.data(fits, options.device, clocks), indent=1))
        return 0
    print(summary.text(found, options.device, clocks, verbose=options.verbose or bool(options.claim)))
    if options.workers and fits:
        print(summary.spread(fits, options.workers))
    if time:
        print(f"\n{summary.selection(fits, others, options.within, options.seeds)}")
    return 0


def _positive(options: argparse.Namespace, *names: str) -> None:
    """Looks at numbers that may be left out.

    Raises:
        ValueError: One is given and not above 0.
    """
    for name in names:
        if getattr(options, name) is not None:
            positive(**{f"--{name}": getattr(options, name)})


def submit(options: argparse.Namespace) -> int:
    """Sends cells without records as jobs; 1 where one on this machine failed.

    Raises:
        ValueError: A prefix of no cell's id.
        Missing: This machine lacks what sends jobs.
    """
    from peft_dp.machine import Places
    from peft_dp.suite.jobs import submitting

    _positive(options, "seeds", "workers", "minutes")
    if options.engine == "local" and (options.partition or options.gpus or options.slurm):
        raise ValueError("--partition, --gpus and --slurm go to sbatch: give --engine slurm with them")
    work = submitting.Work(
        cells=papers.select(options.prefix),
        seeds=options.seeds,
        places=Places(data=options.data, backbones=options.backbones, device=options.device),
        records=options.records,
    )
    if options.engine == "slurm":
        submitting.check_slurm()
    missing = work.missing()
    failed: Sequence[table.Cell] = ()
    if not missing:
        print(f"nothing to send: {len(work.cells)} cells have all their records")
    elif options.engine == "local":
        failed = submitting.local(work, missing, options.workers)
    else:
        submitting.slurm(
            work,
            missing,
            minutes=options.minutes,
            parallel=options.workers,
            partition=options.partition,
            gpus=options.gpus,
            options=options.slurm,
        )
    for cell in failed:
        _failed(f"{cell.id} has no record", 1)
    print(f"verdicts, once all is done: {work.command}")
    return int(bool(failed))


def audit(options: argparse.Namespace) -> int:
    """Attacks one private cell and says whether its claim of epsilon stands.

    Raises:
        ValueError: The cell is not private.
    """
    from peft_dp.machine import Places
    from peft_dp.suite.audit.attack import audit
    from peft_dp.training.job import build, find_sources

    cell = papers.find(options.id)
    if cell.spec.privacy is None:
        start = f"{cell.id} trains without privacy, so it claims no epsilon to audit"
        raise ValueError(f"{start}: take a cell for which `peft-dp list` shows one")
    spec = cell.spec.seeded(options.seed)
    places = Places(data=options.data, backbones=options.backbones, device=options.device)
    found = audit(build(spec, find_sources(spec, places)), options.canaries)
    if options.json:
        told = {"id": cell.id, "seed": options.seed, "alarms": found.alarms}
        print(json.dumps(told | asdict(found), indent=1))
        return int(found.alarms)
    lines = [
        (f"claimed by the {found.accountant} accountant", found.claimed),
        ("lower bound, f-DP, one run", found.bound),
        ("the same, expected of a right engine", found.power),
        ("lower bound, any mechanism, one run", found.one_run),
        (f"estimate by a Gaussian's mu, {found.mu:.3f}", found.gaussian),
        ("lower limit of it (1 run in 20 is above the truth)", found.gaussian_limit),
    ]
    print(f"{cell.id}, seed {options.seed}: {found.canaries:,} canaries, bounds at 95 % confidence\n")
    print(tabulate(lines, headers=["", f"epsilon at delta {found.delta:g}"], floatfmt=".2f"))
    verdict = "is above the claim: the engine is broken" if found.alarms else "is not above the claim"
    print(
        f"\nThe f-DP bound {verdict}. It is a coarse alarm: with 10,000 canaries half the noise\n"
        "or no clip sets it off, noise a tenth too small hardly ever, a wrong sampler never. The calibration is\n"
        "tested elsewhere, on the noise itself."
    )
    return int(found.alarms)


def bless(options: argparse.Namespace) -> int:
    """Trains every cell of a table, or of one row, under several seeds; writes the raw scores and what made them.

    Raises:
        ValueError: Fewer than five seeds, or a package with changes that no commit holds.
    """
    from peft_dp.machine import Places
    from peft_dp.measuring.environment import environment
    from peft_dp.records import Records
    from peft_dp.runs import runs

    paper, table, *rows = options.table.split("/")
    cells = [cell for cell in papers.cells(f"{paper}/{table}") if not rows or cell.row.id in rows]
    if not cells:
        raise ValueError(f"table {paper}/{table} has no row {rows[0]!r}; `peft-dp list` shows all")
    if options.seeds < MINIMUM_SEEDS:
        raise ValueError(f"--seeds {options.seeds} is too few to know a spread: give at least {MINIMUM_SEEDS}")
    if environment()["dirty"] is not False:
        changes = "peft_dp/ has changes that are not committed"
        raise ValueError(f"{changes}: commit them, so that the record can name what made it")
    places = Places(data=options.data, backbones=options.backbones, device=options.device)
    records = Records(options.records)
    scores: recorded.Runs = {}
    losses: recorded.Runs = {}
    for cell in cells:
        specs = [cell.spec.seeded(FIRST_SEED + run) for run in range(options.seeds)]
        for record in runs(specs, places, records, _bar()):
            score, loss, seed = record.values["score"], record.trail[-1].loss, record.spec.seed
            scores.setdefault(cell.row.id, {}).setdefault(cell.task, {})[str(seed)] = round(score, 4)
            if loss is None:
                raise ValueError(f"{cell.id} seed {seed}: its training loss is not finite, so nothing was recorded")
            losses.setdefault(cell.row.id, {}).setdefault(cell.task, {})[str(seed)] = round(loss, 4)
            print(f"{cell.id} seed {seed}: score {score:.2f}, loss {loss:.3f}", flush=True)
    provenance = environment() | {"date": datetime.now(UTC).date().isoformat()}
    blessing = recorded.Blessing(provenance=provenance, scores=scores, losses=losses)
    print(f"written: {recorded.record(f'{paper}/{table}', blessing)}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Prints the verdicts of a folder of records, and writes them in the forms asked for.

    Raises:
        ValueError: The folder holds no record, or a file cannot be written.
    """
    from peft_dp.suite.report import export
    from peft_dp.suite.report.page import page
    from peft_dp.suite.report.table import render_table
    from peft_dp.suite.verdicts.gather import gather

    found = gather(options.records)
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
            _write(file, form())
    if all(file != SCREEN for file, _ in forms):
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        width = shutil.get_terminal_size((120, 24)).columns
        parts = [render_table(found.verdicts, width=width, verbose=options.verbose, colour=colour)]
        parts += [f"{len(found.others)} records of what is no cell"] * bool(found.others)
        print("\n\n".join(part for part in parts if part))
    code = int(any(verdict.status == "differs" for verdict in found.verdicts))
    for damaged in found.damaged:
        _failed(damaged, code)
    return code


def _write(file: Path, text: str) -> None:
    """Writes a file.

    Raises:
        ValueError: It cannot be written.
    """
    try:
        write(file, text)
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error.strerror}): choose another FILE") from None


def compare(options: argparse.Namespace) -> int:
    """Prints what moved between two folders of records; 1 where anything did.

    Raises:
        ValueError: A folder holds no record, or they share no run.
    """
    from peft_dp.suite.verdicts.drift import drift, text
    from peft_dp.suite.verdicts.gather import gather

    found = drift(gather(options.before), gather(options.after))
    print(json.dumps(asdict(found), indent=1, default=str) if options.json else text(found))
    return int(found.moved)


def _bar() -> Any:
    return sys.stderr if sys.stderr.isatty() else None
