"""`peft-dp show`: one fact, cell, cited cell or claim on one screen."""

from __future__ import annotations

import json
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from textwrap import fill
from typing import Any

from tabulate import tabulate

from peft_dp import registry
from peft_dp.spec import to_json
from peft_dp.suite import papers, pytest_command
from peft_dp.suite.cli.list import cell_line, cited_line, claim_line, exact, fact_line, needs
from peft_dp.suite.cli.verb import Verb, add_id, add_json
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.claim import Claim
from peft_dp.suite.papers.fact import Fact
from peft_dp.suite.papers.table import MARKERS

Lines = list[tuple[str, Any]]
"""Names and texts; an empty text is left out, an empty name goes on with the one before."""


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `show`."""
    add_id(parser, "what to show, e.g. embedded/smoke/bitfit/sentiment or slash/claims/c1")
    add_json(parser)


def run(options: Namespace) -> int:
    """Print what has this id.

    Raises:
        ValueError: Nothing has it.
    """
    kinds = [
        *((fact.address, partial(_fact_page, fact), partial(_fact_data, fact)) for fact in papers.facts()),
        *((cell.id, partial(_cited_page, cell), partial(_cell_data, cell)) for cell in papers.cells(cited=True)),
        *((claim.address, partial(_claim_page, claim), partial(_claim_data, claim)) for claim in papers.claims()),
    ]
    for known, page, data in kinds:
        if known == options.id:
            print(json.dumps(data(), indent=1)) if options.json else _print(page())
            return 0
    cell = papers.find(options.id)
    spec = to_json(cell.spec)
    if options.json:
        print(json.dumps(_cell_data(cell) | {"spec": spec}, indent=1))
        return 0
    _print(_cell_page(cell))
    # Wrapped between values, so that it is still JSON.
    print(fill(json.dumps(spec), 108, break_long_words=False, break_on_hyphens=False))
    return 0


def _print(lines: Sequence[tuple[str, Any]]) -> None:
    kept = [line for line in lines if line[1]]
    print(tabulate(kept, tablefmt="plain", maxcolwidths=[None, 96], disable_numparse=True))


def _fact_data(fact: Fact) -> dict[str, Any]:
    """Return the line of `list` and all else of a fact, as JSON values; likewise the functions below."""
    return asdict(fact) | fact_line(fact)


def _cell_data(cell: Cell) -> dict[str, Any]:
    numbers = {
        "printed": {quantity: asdict(expect) for quantity, expect in cell.expect.items()},
        "recorded": cell.recorded.get(cell.own.row.id, {}).get(cell.task, []),
    }
    texts = {"note": cell.table.note, "cited": cell.row.cited, "picture": cell.row.picture}
    if not cell.row.cited:
        texts |= {"stated": {name: asdict(stated) for name, stated in cell.stated.items()}, "assumed": cell.assumed}
    return (cited_line if cell.row.cited else cell_line)(cell) | dict(_about(cell)) | numbers | texts


def _claim_data(claim: Claim) -> dict[str, Any]:
    return asdict(claim) | claim_line(claim) | {"formula": _formula(claim)}


def _fact_page(fact: Fact) -> Lines:
    test = f"{pytest_command(fact.paper, f'test_facts[{fact}]')} -m facts"
    return [*({"fact": fact.address} | asdict(fact) | {"test": test}).items()]


def _cell_page(cell: Cell) -> Lines:
    table, row = cell.table, cell.row
    recorded = cell.recorded.get(cell.own.row.id, {}).get(cell.task, [])
    return [
        ("cell", cell.id),
        *_about(cell),
        *_printed(cell),
        *_bands(cell),
        ("recorded", ", ".join(f"{score:.1f}" for score in recorded)),
        *_texts("through", {other.spec.implementation: f"peft-dp show {other.id}" for other in cell.through}),
        *_texts("beside", {} if cell.own is cell else {"own": f"peft-dp show {cell.own.id}"}),
        ("cannot", row.cannot and f"{cell.spec.implementation} says: {row.cannot}"),
        *_texts("stated", {name: str(stated) for name, stated in cell.stated.items()}),
        *_texts("assumed", cell.assumed),
        ("differs", row.differs),
        ("note", table.note),
        ("needs", needs(cell.spec)),
        ("run", shlex.join(["peft-dp", "run", cell.id, *cell.tables_option])),
        ("test", _test(cell)),
    ]


def _cited_page(cell: Cell) -> Lines:
    return [
        ("cited", f"{cell.id}, never run"),
        *_about(cell),
        ("cited from", cell.row.cited),
        *_printed(cell),
        ("differs", cell.row.differs),
    ]


def _claim_page(claim: Claim) -> Lines:
    return [
        ("claim", claim.address),
        ("says", claim.says),
        ("section", claim.section),
        ("formula", _formula(claim)),
        *_decided(claim),
        ("differs", claim.differs),
        ("note", claim.note),
        ("needs", claim_line(claim)["needs"]),
        *_tests(claim),
    ]


def _about(cell: Cell) -> Lines:
    return [("row", cell.row.title), ("table", cell.table.title), ("source", cell.table.source)]


def _test(cell: Cell) -> str:
    """Return the command that runs a cell's test."""
    table, marks = cell.table, f"-m {MARKERS[cell.table.budget]}"
    if table.is_own:
        return f"{pytest_command('tables', f'test_tables[{cell.id}]')} --peft-tables {registry.own_folder()} {marks}"
    return f"{pytest_command(table.paper, f'test_{table.table}[{cell}]')} {marks}"


def _texts(title: str, texts: Mapping[str, str]) -> Lines:
    """Return names with their texts, one per line."""
    return [("" if i else title, f"{name}: {text}") for i, (name, text) in enumerate(texts.items())]


def _printed(cell: Cell) -> Lines:
    """Return the printed numbers, one per line."""
    found: Lines = [("printed", "in a picture, from which its numbers were read off")] * cell.row.picture
    for quantity, expect in cell.expect.items():
        words = [f"{quantity} {'at least ' * expect.at_least}{exact(expect.value)}"]
        # The band of a score is computed instead.
        words[0] += f" +- {expect.within:g}" * (quantity != "score" and expect.asserted)
        words += [] if expect.std is None else [f"std {expect.std:g}"]
        words += [f"mean of {expect.runs} runs"] * (expect.runs > 1)
        words += [f"best of {expect.best_of} runs on the scored data"] * (expect.best_of > 1)
        words += ["shown, not asserted"] * (not expect.asserted)
        found.append(("" if found else "printed", ", ".join(words) + f" ({expect.why})" * bool(expect.why)))
    return found


def _bands(cell: Cell) -> Lines:
    """Return what our score is held to, for one run and for as many as the table asks for, in a verdict's words."""
    from peft_dp.suite.verdicts.cells import judge_score

    # The widths rest on how many runs there are, not on what they give.
    found = [finding for runs in sorted({1, cell.seeds}) for finding in judge_score(cell, [0.0] * runs)]
    return [("" if i else "band", f"{finding.expected:.2f}: {finding.band}") for i, finding in enumerate(found)]


def _formula(claim: Claim) -> str:
    left, right = f"{claim.left} {claim.quantity}", exact(claim.plus)
    if claim.right is not None:
        right = f"{exact(claim.times)} x " * (claim.times != 1) + f"{claim.right} {claim.quantity}"
        right += f" {'-' if claim.plus < 0 else '+'} {exact(abs(claim.plus))}" * (claim.plus != 0)
    over = "" if len(claim.tasks) == 1 else "each of " if claim.over == "each" else "the mean over "
    return f"{left} {claim.relation} {right} on {over}{', '.join(claim.tasks)} of {claim.paper}/{claim.table}"


def _decided(claim: Claim) -> Lines:
    """Return whether the paper's own numbers, or else our counts, bear the claim out, pair by pair."""
    pairs, title = claim.printed() or claim.counted(), "counted" if claim.basis == "counts" else "printed"
    if pairs is None:
        return [("printed", "no numbers that decide it")]
    names = ["mean"] if claim.over == "mean" else claim.tasks if len(pairs) == len(claim.tasks) else ["each"]
    found: Lines = []
    for name, (left, right) in zip(names, pairs, strict=True):
        verdict = "holds" if claim.holds([(left, right)]) else "does not hold"
        text = f"{name}: {exact(left)} {claim.relation} {exact(right)} {verdict}"
        found.append(("" if found else title, text))
    return found


def _tests(claim: Claim) -> Lines:
    names = ["test_printed_claims"] * (claim.basis != "runs") + ["test_claims"] * claim.by_run
    tests = [f"{pytest_command(claim.paper, f'{name}[{claim}]')} -m claims" for name in names]
    first, *rest = tests
    return [("test", first), *(("", test) for test in rest)]


SHOW = Verb(
    name="show",
    help="show one fact, cell, cited cell or claim: how it is defined, what is expected, which command runs it",
    examples=(
        "peft-dp show embedded/smoke/bitfit/sentiment",
        "peft-dp show slash/claims/c1  # what a paper states about its rows",
        "peft-dp show slash/table2/slash-d1024/rte --json",
    ),
    add_options=add_options,
    run=run,
)
