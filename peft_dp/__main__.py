"""The command line: `peft-dp VERB`, or `python -m peft_dp VERB`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from peft_dp import expected
from peft_dp.expected import MARKERS, Cell, Fact
from peft_dp.spec import to_json
from peft_dp.validate import Missing

MINIMUM_SEEDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; 0 for done, 1 for a cell that differs or leaks, 2 for bad input, 3 for a thing not here."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.verb(options))
    except ValueError as error:
        print(f"peft-dp: {error}", file=sys.stderr)
        return 2
    except Missing as error:
        print(f"peft-dp: {error}", file=sys.stderr)
        return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peft-dp", description="Rows of PEFT and DP papers as runs that can be checked."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("list", help="all facts and cells: id, budget, backbone, what is expected")
    verb.add_argument("--json", action="store_true", help="one JSON list")
    verb.set_defaults(verb=show_all)

    verb = verbs.add_parser("show", help="definition, data, protocol and expectation of one cell")
    verb.add_argument("id", help="e.g. embedded/smoke/bitfit/sentiment")
    verb.set_defaults(verb=show)

    verb = verbs.add_parser("run", help="train one cell, print its record, and keep it")
    verb.add_argument("id", help="e.g. embedded/smoke/bitfit/sentiment")
    verb.add_argument("--seed", type=int, default=0)
    _places(verb)
    _records(verb)
    verb.set_defaults(verb=run)

    verb = verbs.add_parser("audit", help="a lower bound on epsilon of one private cell, found by attacking it")
    verb.add_argument("id", help="e.g. embedded/smoke/bitfit-dp/sentiment")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--canaries", type=int, metavar="M", default=10_000, help="at most; default: 10000")
    _places(verb)
    verb.set_defaults(verb=audit)

    verb = verbs.add_parser("bless", help="record what this machine gives as the expectation of a table or a row")
    verb.add_argument("table", help="a table or one row of it, e.g. embedded/smoke or embedded/smoke/bitfit")
    verb.add_argument("--seeds", type=int, default=MINIMUM_SEEDS)
    _places(verb)
    _records(verb)
    verb.set_defaults(verb=bless)
    return parser


def _places(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", type=Path, metavar="DIR", help="real data, e.g. GLUE's official folders")
    verb.add_argument("--backbones", type=Path, metavar="DIR", help="pretrained models, one folder each")
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _records(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--records", type=Path, metavar="DIR", default=Path("records"), help="default: records/")


def show_all(options: argparse.Namespace) -> int:
    """Prints all facts and cells."""
    lines = [*map(_fact_line, expected.facts()), *map(_line, expected.cells())]
    if options.json:
        print(json.dumps(lines, indent=1))
    else:
        short = [line | {"known difference": "yes" if line["known difference"] else ""} for line in lines]
        print(tabulate(short, headers="keys"))
    return 0


def _line(cell: Cell) -> dict[str, Any]:
    spec = cell.spec
    return {
        "id": cell.id,
        "marker": MARKERS[spec.budget],
        "backbone": spec.backbone,
        "method": spec.method,
        "epsilon": spec.privacy.epsilon if spec.privacy else None,
        "expected": " ".join(f"{name}={expect.value:,g}" for name, expect in cell.expect.items()),
        "known difference": cell.row.differs,
    }


def _fact_line(fact: Fact) -> dict[str, Any]:
    return {
        "id": f"{fact.paper}/{fact.id}",
        "marker": "facts",
        "backbone": fact.given.get("backbone"),
        "method": fact.given.get("method"),
        "epsilon": fact.given.get("epsilon"),
        "expected": fact.printed,
        "known difference": fact.differs,
    }


def show(options: argparse.Namespace) -> int:
    """Prints one cell, or one fact, on one screen."""
    for fact in expected.facts():
        if options.id == f"{fact.paper}/{fact.id}":
            test = f'pytest "bench/test_{fact.paper}.py::test_facts[{fact}]" -m facts'
            lines = {"fact": options.id} | asdict(fact) | {"test": test}
            print(tabulate([line for line in lines.items() if line[1]], tablefmt="plain", maxcolwidths=[None, 96]))
            return 0
    cell = expected.find(options.id)
    table, row = cell.table, cell.row
    recorded = cell.recorded.get(row.id, {}).get(cell.task)
    lines = {
        "cell": cell.id,
        "row": row.title,
        "table": table.title,
        "source": table.source,
        "expected": ", ".join(f"{name} {e.value:g} +- {e.within:g} ({e.why})" for name, e in cell.expect.items())
        or None,
        "recorded": ", ".join(f"{score:.1f}" for score in recorded) if recorded else None,
        "assumed": ", ".join(row.assumed) or None,
        "differs": row.differs or None,
        "note": table.note or None,
        "run": f"peft-dp run {cell.id}",
        "test": f'pytest "bench/test_{table.paper}.py::test_{table.table}[{cell}]" -m {MARKERS[table.budget]}',
    }
    print(tabulate([line for line in lines.items() if line[1]], tablefmt="plain", maxcolwidths=[None, 96]))
    print(json.dumps(to_json(cell.spec), indent=1))
    return 0


def run(options: argparse.Namespace) -> int:
    """Trains one cell under one seed and says whether it agrees."""
    from peft_dp.places import Places
    from peft_dp.records import Records
    from peft_dp.reporting.compare import compare
    from peft_dp.reproduce import run

    cell = expected.find(options.id)
    records = Records(options.records)
    places = Places(data=options.data, backbones=options.backbones, device=options.device)
    record = run(cell.spec.seeded(options.seed), places, records, _bar())
    verdict = compare(cell, [record])
    print(json.dumps({"values": record.values, "cost": record.cost, "ledger": record.ledger}, indent=1))
    print(verdict)
    print(f"record: {records.path(record.spec, record.key)}")
    return int(verdict.status == "differs")


def audit(options: argparse.Namespace) -> int:
    """Attacks one private cell and says whether its claim of epsilon stands.

    Raises:
        ValueError: The cell is not private.
    """
    from peft_dp.job import build, gather
    from peft_dp.places import Places
    from peft_dp.privacy.audit import audit

    cell = expected.find(options.id)
    if cell.spec.privacy is None:
        start = f"{cell.id} trains without privacy, so it claims no epsilon to audit"
        raise ValueError(f"{start}: take a cell for which `peft-dp list` shows one")
    spec = cell.spec.seeded(options.seed)
    places = Places(data=options.data, backbones=options.backbones, device=options.device)
    found = audit(build(spec, gather(spec, places)), options.canaries)
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
    from peft_dp.job import code_sha256
    from peft_dp.measuring.environment import environment
    from peft_dp.places import Places
    from peft_dp.records import Records
    from peft_dp.reproduce import run

    paper, table, *rows = options.table.split("/")
    cells = [cell for cell in expected.cells(f"{paper}/{table}") if not rows or cell.row.id in rows]
    if not cells:
        raise ValueError(f"table {paper}/{table} has no row {rows[0]!r}; `peft-dp list` shows all")
    if options.seeds < MINIMUM_SEEDS:
        raise ValueError(f"--seeds {options.seeds} is too few to know a spread: give at least {MINIMUM_SEEDS}")
    if environment()["dirty"] is not False:
        changes = "peft_dp/ has changes that are not committed"
        raise ValueError(f"{changes}: commit them, so that the record can name what made it")
    places = Places(data=options.data, backbones=options.backbones, device=options.device)
    records = Records(options.records)
    scores: expected.Scores = {}
    for cell in cells:
        for spec in cell.specs(options.seeds):
            score = run(spec, places, records, _bar()).values["score"]
            scores.setdefault(cell.row.id, {}).setdefault(cell.task, {})[str(spec.seed)] = round(score, 4)
            print(f"{cell.id} seed {spec.seed}: {score:.2f}", flush=True)
    provenance = environment() | {"date": datetime.now(UTC).date().isoformat(), "code": code_sha256()}
    blessing = expected.Blessing(provenance=provenance, scores=scores)
    print(f"written: {expected.record(f'{paper}/{table}', blessing)}")
    return 0


def _bar() -> Any:
    return sys.stderr if sys.stderr.isatty() else None


if __name__ == "__main__":
    sys.exit(main())
