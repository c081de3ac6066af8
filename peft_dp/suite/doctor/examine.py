"""All checks together: how many cells of each paper and budget can run on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from peft_dp.machine import Places
from peft_dp.spec import Budget
from peft_dp.suite import papers, pytest_command
from peft_dp.suite.doctor.check import Check, State
from peft_dp.suite.doctor.inputs import Need, inputs, needs
from peft_dp.suite.doctor.machine import machine
from peft_dp.suite.papers.table import MARKERS


@dataclass(frozen=True, kw_only=True)
class Share:
    """The cells of one paper and budget.

    Attributes:
        budget: The budget.
        paper: The folder in `expected/`.
        cells: How many there are.
        here: How many can run here.
        lacks: What the others need, as kinds and names.
        command: What runs them.
    """

    budget: Budget
    paper: str
    cells: int
    here: int
    lacks: Sequence[Need]
    command: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found.

    Attributes:
        checks: What was looked at.
        shares: How many cells can run.
    """

    checks: Sequence[Check]
    shares: Sequence[Share]

    @property
    def well(self) -> bool:
        """Whether the main job, the smoke budget, can run whole."""
        return all(share.here == share.cells for share in self.shares if share.budget == "smoke")


def examine(places: Places, records: Path) -> Report:
    """Look at all that runs need, without fetching anything.

    Args:
        places: Where data and backbones are looked for.
        records: The folder that runs would write to.
    """
    cells = papers.cells()
    wanted = {cell.id: set(needs(cell.spec)) for cell in cells}
    checks = [*machine(records), *inputs(set[Need]().union(*wanted.values()), places)]
    missing = {(check.kind, check.name) for check in checks if check.state == "missing"}
    groups: dict[tuple[Budget, str], list[set[Need]]] = defaultdict(list)
    for cell in cells:
        groups[cell.table.budget, cell.table.paper].append(wanted[cell.id] & missing)
    budgets = [*MARKERS]
    shares = [
        Share(
            budget=budget,
            paper=paper,
            cells=len(lacks),
            here=lacks.count(set()),
            lacks=sorted(set[Need]().union(*lacks)),
            command=f'{pytest_command()} -m "{MARKERS[budget]} and {paper}"',
        )
        for (budget, paper), lacks in sorted(groups.items(), key=lambda group: budgets.index(group[0][0]))
    ]
    return Report(checks=checks, shares=shares)


def render_report(report: Report) -> str:
    """Return the report for a terminal: things of a kind and state on one line, with what mends them below."""
    together: dict[tuple[str, State, str], list[Check]] = defaultdict(list)
    for check in report.checks:
        together[check.kind, check.state, check.mend].append(check)
    lines: list[tuple[str, str, str]] = []
    for (kind, state, mend), checks in together.items():
        names = ", ".join(check.name for check in checks if check.name)
        says = checks[0].says if len({check.says for check in checks}) == 1 else ""
        lines.append((state, kind, ": ".join(part for part in (names, says) if part)))
        lines += [("", "", f"-> {mend}")] * bool(mend)
    table = [
        (share.budget, share.paper, share.cells, share.here, _in_words(share.lacks), share.command)
        for share in report.shares
    ]
    headers = ("budget", "paper", "cells", "run here", "the rest lack", "command")
    end = f"The main job can run: {pytest_command()}"
    if not report.well:
        end = "The main job cannot run whole; what is missing stands above, each with what mends it."
    return "\n\n".join(
        [tabulate(lines, tablefmt="plain"), tabulate(table, headers=headers, maxcolwidths=[None] * 4 + [48, None]), end]
    )


def _in_words(lacks: Sequence[Need]) -> str:
    """Return needs by kind: "GPU; data cola, rte"."""
    kinds = {kind: [name for other, name in lacks if other == kind] for kind, _ in lacks}
    return "; ".join(f"{kind} {', '.join(names)}".strip() for kind, names in kinds.items())
