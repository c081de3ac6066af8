"""`peft-dp list`: one line per fact, cell, cited cell and claim."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from textwrap import shorten
from typing import Any

from tabulate import tabulate

from peft_dp.spec import Spec
from peft_dp.suite import papers
from peft_dp.suite.cli.verb import Verb, add_json
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.claim import Claim
from peft_dp.suite.papers.fact import Fact
from peft_dp.suite.papers.table import MARKERS
from peft_dp.validate import short


def add_options(parser: ArgumentParser) -> None:
    """Add the options of `list`."""
    says = "list only ids that start so, e.g. slash/"
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help=says)
    add_json(parser, "list")


def run(options: Namespace) -> int:
    """Print the lines whose id starts with the prefix.

    Raises:
        ValueError: No id starts so.
    """
    every = [
        *map(fact_line, papers.facts()),
        *map(cell_line, papers.cells()),
        *map(cited_line, papers.cells(cited=True)),
        *map(claim_line, papers.claims()),
    ]
    lines = [line for line in every if line["id"].startswith(options.prefix)]
    if every and not lines:
        raise ValueError(f"no id starts with {short(options.prefix)}; `peft-dp list` shows all")
    if options.json:
        print(json.dumps(lines, indent=1))
    else:
        # Figures stay as papers print them: "0.60" is not 0.6.
        print(tabulate(map(_narrow, lines), headers="keys", disable_numparse=True))
    return 0


def fact_line(fact: Fact) -> dict[str, Any]:
    """Return the line of a fact: column -> value."""
    return _line(fact.address, "facts", fact.printed, fact.differs, **fact.given)


def cell_line(cell: Cell) -> dict[str, Any]:
    """Return the line of a cell that can run."""
    spec = cell.spec
    settings = {"backbone": spec.backbone, "method": spec.method, "epsilon": spec.privacy and spec.privacy.epsilon}
    return _line(cell.id, MARKERS[spec.budget], _expected(cell), cell.row.differs, needs(spec), **settings)


def cited_line(cell: Cell) -> dict[str, Any]:
    """Return the line of a cell that its paper cites."""
    return _line(cell.id, "cited", _expected(cell), cell.row.differs)


def claim_line(claim: Claim) -> dict[str, Any]:
    """Return the line of a claim; it needs what the cells need whose runs decide it."""
    what = next((needs(cell.spec) for cell in claim.needed), "nothing")
    return _line(claim.address, "counts" if claim.basis == "counts" else "claims", claim.says, claim.differs, what)


def _line(
    address: str, marker: str, expected: str, differs: str, what: str = "nothing", **settings: Any
) -> dict[str, Any]:
    shown = {name: settings.get(name) for name in ("backbone", "method", "epsilon")}
    return {"id": address, "marker": marker, "needs": what, **shown, "expected": expected, "known difference": differs}


def _narrow(line: dict[str, Any]) -> dict[str, Any]:
    """Return the line as the table has it: a whole sentence in one would make all as long."""
    expected = shorten(line["expected"], 48, placeholder=" ...")
    return line | {"expected": expected, "known difference": "yes" if line["known difference"] else ""}


def needs(spec: Spec) -> str:
    """Return what a run needs beside the installed package."""
    if spec.budget == "paper":
        return "a GPU" + ", weights and data" * (spec.weights == "pretrained")
    return "real data" if spec.budget == "small" else "nothing"


def _expected(cell: Cell) -> str:
    return " ".join(f"{quantity}={exact(expect.value)}" for quantity, expect in cell.expect.items())


def exact(value: float) -> str:
    """Return a number with thousands set off and at most four decimals, as many as it has."""
    return f"{round(value, 4):,.15g}"


LIST = Verb(
    name="list",
    help="list all facts, cells, cited cells and claims: id, what it needs, what is expected",
    examples=(
        "peft-dp list",
        "peft-dp list slash/table2  # one table",
        "peft-dp list --json embedded/",
    ),
    add_options=add_options,
    run=run,
)
