"""Verdicts for other programs: markdown for a job's summary, LaTeX for a paper, CSV for a data frame."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tabulate import LATEX_ESCAPE_RULES, tabulate

from peft_dp.records import Record
from peft_dp.spec import to_json
from peft_dp.suite.report.table import SIGNS, Grid, counts, grids, headline, not_run, side_by_side
from peft_dp.suite.verdicts.cells import Verdict
from peft_dp.suite.verdicts.replay import flat

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Where a text starts so, a spreadsheet runs it."""


def to_markdown(verdicts: Sequence[Verdict]) -> str:
    """Counts, failures with the commands that run them again, a grid for each table, and why cells did not run."""
    lines = [[SIGNS[status].mark, count, status, SIGNS[status].meaning] for status, count in counts(verdicts)]
    failed = [str(verdict) for verdict in verdicts if verdict.status == "differs"]
    parts = [
        "## peft-dp",
        f"{headline(verdicts)}.",
        tabulate(lines, ["", "cells", "verdict", "meaning"], tablefmt="github"),
        # HTML, for no text can end it, whereas backticks in a name end a fence.
        *(f"<pre>{html.escape(text)}</pre>" for text in failed),
    ]
    for grid in grids(verdicts):
        headers, rows = _rows(grid)
        table = [[_markdown(cell) for cell in row] for row in rows]
        heading = f"### {_markdown(grid.name)}: {_markdown(grid.title)}"
        parts += [heading, tabulate(table, [*map(_markdown, headers)], tablefmt="github", disable_numparse=True)]
    parts += [f"- {_markdown(line)}" for line in (*side_by_side(verdicts), *not_run(verdicts))]
    return "\n\n".join(parts) + "\n"


def to_latex(verdicts: Sequence[Verdict]) -> str:
    r"""A `table` with booktabs' rules for each table; needs `\usepackage{booktabs}`."""
    legend = ", ".join(f"{SIGNS[status].mark} {status}" for status, _ in counts(verdicts))
    parts = []
    for grid in grids(verdicts):
        headers, rows = _rows(grid)
        caption = _latex(f"{grid.name}: {grid.title}; ours/expected: {legend}")
        table = tabulate(rows, headers, tablefmt="latex_booktabs", disable_numparse=True)
        parts.append(f"\\begin{{table}}\n\\caption{{{caption}}}\n{table}\n\\end{{table}}\n")
    return "\n".join(parts)


def to_csv(verdicts: Sequence[Verdict], others: Sequence[Record] = ()) -> str:
    """One line a cell and record: the verdict and all that the record says, but for its trail and its trace.

    Args:
        verdicts: One a cell.
        others: Records of what is no cell; they have no verdict.
    """
    lines = [_judged(verdict) | flat(_fields(record)) for verdict in verdicts for record in verdict.records]
    lines += [flat(_fields(record)) for record in others]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in line.items()} for line in lines)
    return file.getvalue()


def _rows(grid: Grid) -> tuple[list[str], list[list[str]]]:
    """Headers and lines of a grid, without line breaks."""
    headers, rows = grid.laid_out()
    return [_one_line(name) for name in headers], [[_one_line(cell) for cell in row] for row in rows]


def _judged(verdict: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = {"cell": verdict.cell.id, "verdict": verdict.status}
    for finding in verdict.findings:
        names = ("expected", "ours", "allowed", "unusual")
        found |= {f"{finding.quantity}.{name}": getattr(finding, name) for name in names}
    return found


def _fields(record: Record) -> dict[str, Any]:
    whole = {name: value for name, value in asdict(record).items() if name not in ("trail", "trace", "moved")}
    return whole | {"spec": to_json(record.spec)}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#&" else letter for letter in _one_line(text))


def _latex(text: str) -> str:
    return "".join(LATEX_ESCAPE_RULES.get(letter, letter) for letter in _one_line(text))


def _inert(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
