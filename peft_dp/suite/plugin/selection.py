"""Which tests run: the marks of cells, facts and claims, and what is selected without `-m`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peft_dp.suite import HOME
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.claim import Claim
from peft_dp.suite.papers.fact import Fact
from peft_dp.suite.papers.table import MARKERS as BUDGET_MARKERS
from peft_dp.suite.plugin.session import KEY

MARKERS = {
    "facts": "a printed figure that needs no training",
    "smoke": "a cell of the smoke budget: embedded backbone, generated data",
    "small": "a cell of the small budget: embedded backbone, real data (--peft-data or the hub)",
    "gpu": "a cell of the paper budget: the paper's backbone and data, on a CUDA device",
    "libraries": "a cell of a table whose rows run through peft, Opacus or Trainer too",
    "claims": "an ordering or ratio that a paper states",
    "counts": "a claim that our own counts of trained values decide, as the paper prints none",
    "speed": "a benchmark against peers",
    "slow": "takes more than a minute on two cores",
}
SELECTED: dict[str, tuple[str, Callable[[set[str]], bool]]] = {
    "smoke": ("not (small or gpu or speed or slow)", {"small", "gpu", "speed", "slow"}.isdisjoint),
    "small": ("small", lambda marks: "small" in marks),
    "paper": ("gpu", lambda marks: "gpu" in marks),
}
"""Budget -> which tests run without `-m`, in its words and of the names of a test's marks."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    papers = {path.parent.name: f"cells of expected/{path.parent.name}" for path in reader.glob("*/*.json")}
    for name, meaning in (MARKERS | papers).items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is selected, and how to select more."""
    return f'peft-dp: -m "{config.option.markexpr or SELECTED[config.option.peft_budget][0]}"'


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a cell, a fact or a claim with its budget, its paper and its known difference."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    marks: tuple[str, ...]
    if isinstance(cell := params.get("cell"), Cell):
        item.config.stash[KEY].cells[cell.id] = cell
        marks, differs = (BUDGET_MARKERS[cell.table.budget], cell.table.paper), cell.row.differs
        marks += ("libraries",) * cell.table.through_libraries
    elif isinstance(fact := params.get("fact"), Fact):
        marks, differs = ("facts", fact.paper), fact.differs
    elif isinstance(claim := params.get("claim"), Claim):
        run = "check_claim" in getattr(item, "fixturenames", ())
        budget = claim.cells(claim.left)[0].table.budget
        marks = ("claims", claim.paper, *(BUDGET_MARKERS[budget],) * run, *("counts",) * (claim.basis == "counts"))
        differs = claim.differs * (not run)
    else:
        return
    for mark in marks:
        item.add_marker(mark)
    if differs:
        item.add_marker(pytest.mark.xfail(reason=differs, strict=True, raises=AssertionError))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `-m` leave out those of this project's tests that the budget does not select, and no other test."""
    if config.option.markexpr:
        return
    _, selects = SELECTED[config.option.peft_budget]
    left_out = [item for item in items if _ours(item) and not selects({mark.name for mark in item.iter_markers()})]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _ours(item: pytest.Item) -> bool:
    return item.path.is_relative_to(HOME)
