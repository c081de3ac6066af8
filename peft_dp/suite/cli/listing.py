"""What `peft-dp list` and `peft-dp show` print: facts, cells, cited cells and claims, as lines and as pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from textwrap import fill, shorten
from typing import Any

from tabulate import tabulate

from peft_dp.spec import Spec, to_json
from peft_dp.suite import papers
from peft_dp.suite.papers.claim import Claim
from peft_dp.suite.papers.fact import Fact
from peft_dp.suite.papers.table import MARKERS, Cell

Lines = list[tuple[str, Any]]
"""What `show` prints: names and texts; an empty text is left out."""


def show_all(prefix: str, *, as_json: bool) -> None:
    """Prints a line for each fact, cell, cited cell and claim whose id starts so.

    Raises:
        ValueError: No id starts so.
    """
    every = [
        *map(_fact_line, papers.facts()),
        *map(_line, papers.cells()),
        *map(_cited_line, papers.cells(cited=True)),
        *map(_claim_line, papers.claims()),
    ]
    lines = [line for line in every if line["id"].startswith(prefix)]
    if every and not lines:
        raise ValueError(f"no id starts with {prefix!r}; `peft-dp list` shows all")
    if as_json:
        print(json.dumps(lines, indent=1))
    else:
        # Figures stay as papers print them: "0.60" is not 0.6.
        print(tabulate(map(_brief, lines), headers="keys", disable_numparse=True))


def _brief(line: dict[str, Any]) -> dict[str, Any]:
    """The line as the table has it: a whole sentence in one would make all as long."""
    expected = shorten(line["expected"], 48, placeholder=" ...")
    return line | {"expected": expected, "known difference": "yes" if line["known difference"] else ""}


def _entry(name: str, marker: str, expected: str, differs: str, needs: str = "nothing", **more: Any) -> dict[str, Any]:
    setting = {key: more.get(key) for key in ("backbone", "method", "epsilon")}
    return {"id": name, "marker": marker, "needs": needs, **setting, "expected": expected, "known difference": differs}


def _line(cell: Cell) -> dict[str, Any]:
    spec = cell.spec
    setting = {"backbone": spec.backbone, "method": spec.method, "epsilon": spec.privacy and spec.privacy.epsilon}
    return _entry(cell.id, MARKERS[spec.budget], _values(cell), cell.row.differs, _needs(spec), **setting)


def _needs(spec: Spec) -> str:
    """What a run needs beside the installed package."""
    if spec.budget == "paper":
        return "a GPU" + ", weights and data" * (spec.weights == "pretrained")
    return "real data" if spec.budget == "small" else "nothing"


def _cited_line(cell: Cell) -> dict[str, Any]:
    return _entry(cell.id, "cited", _values(cell), cell.row.differs)


def _claim_line(claim: Claim) -> dict[str, Any]:
    needs = next((_needs(cell.spec) for cell in claim.needed), "nothing")
    return _entry(claim.path, "claims", claim.says, claim.differs, needs)


def _fact_line(fact: Fact) -> dict[str, Any]:
    return _entry(fact.path, "facts", fact.printed, fact.differs, **fact.given)


def _values(cell: Cell) -> str:
    return " ".join(f"{name}={_number(expect.value)}" for name, expect in cell.expect.items())


def _number(value: float) -> str:
    return f"{round(value, 4):,.15g}"


def show(name: str, *, as_json: bool) -> None:
    """Prints one fact, cell, cited cell or claim on one screen.

    Raises:
        ValueError: There is none of that name.
    """
    known = [
        *((fact.path, partial(_show_fact, fact), partial(_fact, fact)) for fact in papers.facts()),
        *((cell.id, partial(_show_cited, cell), partial(_cell, cell)) for cell in papers.cells(cited=True)),
        *((claim.path, partial(_show_claim, claim), partial(_claim, claim)) for claim in papers.claims()),
    ]
    for known_name, page, data in known:
        if known_name == name:
            print(json.dumps(data(), indent=1)) if as_json else _print(page())
            return
    cell = papers.find(name)
    if as_json:
        print(json.dumps(_cell(cell) | {"spec": to_json(cell.spec)}, indent=1))
        return
    _print(_show_cell(cell))
    # Wrapped between values, so that it is still JSON.
    print(fill(json.dumps(to_json(cell.spec)), 108, break_long_words=False, break_on_hyphens=False))


def _fact(fact: Fact) -> dict[str, Any]:
    """A fact, a cell or a claim as data: its line of `list`, and what only `show` says."""
    return asdict(fact) | _fact_line(fact)


def _cell(cell: Cell) -> dict[str, Any]:
    numbers = {
        "printed": {name: asdict(expect) for name, expect in cell.expect.items()},
        "recorded": cell.recorded.get(cell.row.id, {}).get(cell.task, []),
    }
    more = {"assumed": cell.row.assumed, "note": cell.table.note, "cited": cell.row.cited}
    return (_cited_line if cell.row.cited else _line)(cell) | dict(_about(cell)) | numbers | more


def _claim(claim: Claim) -> dict[str, Any]:
    return asdict(claim) | _claim_line(claim) | {"formula": _formula(claim)}


def _print(lines: Sequence[tuple[str, Any]]) -> None:
    kept = [line for line in lines if line[1]]
    print(tabulate(kept, tablefmt="plain", maxcolwidths=[None, 96], disable_numparse=True))


def _show_fact(fact: Fact) -> Lines:
    test = f'pytest "bench/test_{fact.paper}.py::test_facts[{fact}]" -m facts'
    return [*({"fact": fact.path} | asdict(fact) | {"test": test}).items()]


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
        ("needs", _needs(cell.spec)),
        ("run", f"peft-dp run {cell.id}"),
        ("test", f'pytest "{cell.node}" -m {MARKERS[table.budget]}'),
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
    """What a score of ours is held to, of one run and of as many as the table asks for, in the words of a verdict."""
    from peft_dp.suite.verdicts.cells import judge_score

    # The widths rest on how many runs there are, not on what they give.
    found = [finding for runs in sorted({1, cell.table.seeds}) for finding in judge_score(cell, [0.0] * runs)]
    return [("" if i else "band", f"{finding.expected:.2f}: {finding.band}") for i, finding in enumerate(found)]


def _show_claim(claim: Claim) -> Lines:
    return [
        ("claim", claim.path),
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
