"""The command line: `peft-dp VERB`, or `python -m peft_dp VERB`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

from tabulate import tabulate

from peft_dp import expected
from peft_dp.expected import MARKERS, Cell, Claim, Fact
from peft_dp.spec import Budget, to_json
from peft_dp.validate import Missing

MINIMUM_SEEDS = 5
FIRST_SEED = 5
"""The first that `bless` records: tests train 0, 1, ..., so that they are compared with other runs than their own."""
NEEDS: dict[Budget, str] = {"smoke": "nothing", "small": "real data", "paper": "a GPU, weights and data"}
"""Budget -> what a run of it needs beside the installed package."""

Lines = list[tuple[str, Any]]
"""What `show` prints: names and texts; an empty text is left out."""


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
    except BrokenPipeError:  # as behind `| head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peft-dp", description="Rows of PEFT and DP papers as runs that can be checked."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("list", help="all facts, cells, cited cells and claims: id, needs, what is expected")
    verb.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="only ids that start so, e.g. slash/")
    verb.add_argument("--json", action="store_true", help="one JSON list")
    verb.set_defaults(verb=show_all)

    verb = verbs.add_parser("show", help="one fact, cell, cited cell or claim: definition and expectation")
    verb.add_argument("id", help="e.g. embedded/smoke/bitfit/sentiment or slash/claims/c1")
    verb.set_defaults(verb=show)

    verb = verbs.add_parser("run", help="train one cell, print its record, and keep it")
    verb.add_argument("id", help="e.g. embedded/smoke/bitfit/sentiment")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument(
        "--backbone", metavar="NAME", help="another than the row's, e.g. minilm; then nothing is expected"
    )
    verb.add_argument("--task", metavar="NAME", help="likewise")
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
    """Prints a line for each fact, cell, cited cell and claim, or for those whose id starts so.

    Raises:
        ValueError: No id starts so.
    """
    every = [
        *map(_fact_line, expected.facts()),
        *map(_line, expected.cells()),
        *map(_cited_line, expected.cells(cited=True)),
        *map(_claim_line, expected.claims()),
    ]
    lines = [line for line in every if line["id"].startswith(options.prefix)]
    if every and not lines:
        raise ValueError(f"no id starts with {options.prefix!r}; `peft-dp list` shows all")
    if options.json:
        print(json.dumps(lines, indent=1))
    else:
        short = [line | {"known difference": "yes" if line["known difference"] else ""} for line in lines]
        # Figures stay as papers print them: "0.60" is not 0.6.
        print(tabulate(short, headers="keys", disable_numparse=True))
    return 0


def _entry(name: str, marker: str, expected: str, differs: str, needs: str = "nothing", **more: Any) -> dict[str, Any]:
    setting = {key: more.get(key) for key in ("backbone", "method", "epsilon")}
    return {"id": name, "marker": marker, "needs": needs, **setting, "expected": expected, "known difference": differs}


def _line(cell: Cell) -> dict[str, Any]:
    spec = cell.spec
    setting = {"backbone": spec.backbone, "method": spec.method, "epsilon": spec.privacy and spec.privacy.epsilon}
    return _entry(cell.id, MARKERS[spec.budget], _values(cell), cell.row.differs, NEEDS[spec.budget], **setting)


def _cited_line(cell: Cell) -> dict[str, Any]:
    return _entry(cell.id, "cited", _values(cell), cell.row.differs)


def _claim_line(claim: Claim) -> dict[str, Any]:
    needs = NEEDS[claim.sides[0][0].table.budget] if _runs(claim) else "nothing"
    return _entry(_claim_id(claim), "claims", claim.says, claim.differs, needs)


def _fact_line(fact: Fact) -> dict[str, Any]:
    return _entry(f"{fact.paper}/{fact.id}", "facts", fact.printed, fact.differs, **fact.given)


def _values(cell: Cell) -> str:
    return " ".join(f"{name}={_number(expect.value)}" for name, expect in cell.expect.items())


def _number(value: float) -> str:
    return f"{round(value, 4):,.15g}"


def _claim_id(claim: Claim) -> str:
    return f"{claim.paper}/claims/{claim.id}"


def _runs(claim: Claim) -> bool:
    """Whether runs of ours are held against it."""
    return not claim.differs and any(not cell.row.cited for side in claim.sides for cell in side)


def show(options: argparse.Namespace) -> int:
    """Prints one fact, cell, cited cell or claim on one screen."""
    known = [
        *((f"{fact.paper}/{fact.id}", partial(_show_fact, fact)) for fact in expected.facts()),
        *((cell.id, partial(_show_cited, cell)) for cell in expected.cells(cited=True)),
        *((_claim_id(claim), partial(_show_claim, claim)) for claim in expected.claims()),
    ]
    for name, page in known:
        if name == options.id:
            _print(page())
            return 0
    cell = expected.find(options.id)
    _print(_show_cell(cell))
    # Wrapped between values, so that it is still JSON.
    print(fill(json.dumps(to_json(cell.spec)), 108, break_long_words=False, break_on_hyphens=False))
    return 0


def _print(lines: Sequence[tuple[str, Any]]) -> None:
    kept = [line for line in lines if line[1]]
    print(tabulate(kept, tablefmt="plain", maxcolwidths=[None, 96], disable_numparse=True))


def _show_fact(fact: Fact) -> Lines:
    test = f'pytest "bench/test_{fact.paper}.py::test_facts[{fact}]" -m facts'
    return [*({"fact": f"{fact.paper}/{fact.id}"} | asdict(fact) | {"test": test}).items()]


def _show_cell(cell: Cell) -> Lines:
    table, row = cell.table, cell.row
    recorded = cell.recorded.get(row.id, {}).get(cell.task, [])
    return [
        ("cell", cell.id),
        *_about(cell),
        *_printed(cell),
        *_bands(cell),
        ("recorded", ", ".join(f"{score:.1f}" for score in recorded)),
        ("assumed", ", ".join(row.assumed)),
        ("differs", row.differs),
        ("note", table.note),
        ("needs", NEEDS[table.budget]),
        ("run", f"peft-dp run {cell.id}"),
        ("test", f'pytest "bench/test_{table.paper}.py::test_{table.table}[{cell}]" -m {MARKERS[table.budget]}'),
    ]


def _show_cited(cell: Cell) -> Lines:
    return [
        ("cited", f"{cell.id}, never run"),
        *_about(cell),
        ("cited from", cell.row.cited),
        *_printed(cell),
        ("differs", cell.row.differs),
    ]


def _about(cell: Cell) -> Lines:
    return [("row", cell.row.title), ("table", cell.table.title), ("source", cell.table.source)]


def _printed(cell: Cell) -> Lines:
    """The printed numbers, one a line."""
    found: Lines = []
    for name, expect in cell.expect.items():
        words = [f"{name} {'at least ' * expect.at_least}{_number(expect.value)}"]
        # The band of a score is computed instead.
        words[0] += f" +- {expect.within:g}" * (name != "score" and expect.asserted)
        words += [] if expect.std is None else [f"std {expect.std:g}"]
        words += [f"mean of {expect.runs} runs"] * (expect.runs > 1)
        words += [f"best of {expect.best_of} runs on the scored data"] * (expect.best_of > 1)
        words += ["shown, not asserted"] * (not expect.asserted)
        found.append(("" if found else "printed", ", ".join(words) + f" ({expect.why})" * bool(expect.why)))
    return found


def _bands(cell: Cell) -> Lines:
    """The band that runs of ours are judged by: of one run, and of as many as the table asks for."""
    from peft_dp.records import Record
    from peft_dp.reporting.compare import compare, printed_spread
    from peft_dp.reporting.tolerance import POWER

    # Only the widths are shown, and these do not depend on what a run gives.
    values = {"score": 0.0} | {name: expect.value for name, expect in cell.expect.items()}
    rest: dict[str, Any] = {"ledger": None, "trail": [], "cost": {}, "sources": {}, "environment": {}}
    expect = cell.expect.get("score")
    spread = printed_spread(cell) if expect and expect.asserted else None
    found: Lines = []
    for runs in sorted({1, cell.table.seeds}):
        records = [Record(key="", spec=spec, values=values, **rest) for spec in cell.specs(runs)]
        for finding in compare(cell, records).findings:
            if finding.quantity != "score":
                continue
            band = f"{runs} run{'s' * (runs > 1)}: {finding.expected:.2f} +- {finding.unusual:.2f} agrees"
            band += f", +- {finding.allowed:.2f} passes"
            if spread and expect:
                band += f"; a loss of {spread.detectable(expect.runs, runs):.2f} is seen with power {POWER:.0%}"
            found.append(("" if found else "band", band))
    described = f"{spread.value:.2f} over seeds, {spread.freedom} degrees of freedom" if spread else ""
    return [("spread", described), *found]


def _show_claim(claim: Claim) -> Lines:
    return [
        ("claim", _claim_id(claim)),
        ("says", claim.says),
        ("section", claim.section),
        ("formula", _formula(claim)),
        *_decided(claim),
        ("differs", claim.differs),
        ("needs", _claim_line(claim)["needs"]),
        *_tests(claim),
    ]


def _formula(claim: Claim) -> str:
    left, right = f"{claim.left} {claim.quantity}", _number(claim.plus)
    if claim.right is not None:
        right = f"{_number(claim.times)} x " * (claim.times != 1) + f"{claim.right} {claim.quantity}"
        right += f" {'-' if claim.plus < 0 else '+'} {_number(abs(claim.plus))}" * (claim.plus != 0)
    over = "" if len(claim.tasks) == 1 else "each of " if claim.over == "each" else "the mean over "
    return f"{left} {claim.relation} {right} on {over}{', '.join(claim.tasks)} of {claim.paper}/{claim.table}"


def _decided(claim: Claim) -> Lines:
    """The paper's own numbers, pair by pair."""
    pairs = claim.printed()
    if pairs is None:
        return [("printed", "no numbers that decide it")]
    names = claim.tasks if claim.over == "each" else ["mean"]
    found: Lines = []
    for name, (left, right) in zip(names, pairs, strict=True):
        verdict = "holds" if claim.holds([(left, right)]) else "does not hold"
        text = f"{name}: {_number(left)} {claim.relation} {_number(right)} {verdict}"
        found.append(("" if found else "printed", text))
    return found


def _tests(claim: Claim) -> Lines:
    names = ["test_printed_claims"] * (claim.printed() is not None) + ["test_claims"] * (not claim.differs)
    tests = [f'pytest "bench/test_{claim.paper}.py::{name}[{claim}]" -m claims' for name in names]
    first, *rest = tests or ["none: a known difference of which nothing is printed"]
    return [("test", first), *(("", test) for test in rest)]


def run(options: argparse.Namespace) -> int:
    """Trains one cell under one seed and says whether it agrees; with a backbone or task not its own, what it gives."""
    from peft_dp.places import Places
    from peft_dp.records import Records
    from peft_dp.reporting.compare import compare
    from peft_dp.reproduce import run

    cell = expected.find(options.id)
    records = Records(options.records)
    places = Places(data=options.data, backbones=options.backbones, device=options.device)
    own = {"backbone": cell.spec.backbone, "task": cell.spec.task}
    others = {name: value for name in own if (value := getattr(options, name)) not in (None, own[name])}
    record = run(replace(cell.spec.seeded(options.seed), **others), places, records, _bar())
    print(json.dumps({"values": record.values, "cost": record.cost, "ledger": record.ledger}, indent=1))
    verdict = compare(cell, [record]) if not others else None
    changed = ", ".join(f"{name} {value} for {own[name]}" for name, value in others.items())
    print(verdict or f"{cell.id} with {changed}: not the row's own, so nothing is expected of it")
    print(f"record: {records.path(record.spec, record.key)}")
    return int(verdict is not None and verdict.status == "differs")


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
    from peft_dp.reproduce import runs

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
    scores: expected.Runs = {}
    losses: expected.Runs = {}
    for cell in cells:
        specs = [cell.spec.seeded(FIRST_SEED + run) for run in range(options.seeds)]
        for record in runs(specs, places, records, _bar()):
            score, loss, seed = record.values["score"], record.trail[-1].loss, record.spec.seed
            scores.setdefault(cell.row.id, {}).setdefault(cell.task, {})[str(seed)] = round(score, 4)
            if loss is None:
                raise ValueError(f"{cell.id} seed {seed}: its training loss is not finite, so nothing was recorded")
            losses.setdefault(cell.row.id, {}).setdefault(cell.task, {})[str(seed)] = round(loss, 4)
            print(f"{cell.id} seed {seed}: score {score:.2f}, loss {loss:.3f}", flush=True)
    provenance = environment() | {"date": datetime.now(UTC).date().isoformat(), "code": code_sha256()}
    blessing = expected.Blessing(provenance=provenance, scores=scores, losses=losses)
    print(f"written: {expected.record(f'{paper}/{table}', blessing)}")
    return 0


def _bar() -> Any:
    return sys.stderr if sys.stderr.isatty() else None


if __name__ == "__main__":
    sys.exit(main())
