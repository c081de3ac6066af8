"""docs/papers.md: what each table of each paper needs, what its text leaves open, and what was found wrong in it.

Everything is taken from `expected/`; `python -m peft_dp.suite.papers.page FILE` writes the page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

from peft_dp import registry
from peft_dp.suite import papers
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.protocol import Protocol, read_protocol
from peft_dp.suite.papers.table import Table, read_table, table_files

HEAD = """# The papers

This page says of each paper what its tables need, what its text leaves open, what was found wrong in it, and by how
much. What the cells cost, `peft-dp plan slash` says.
`python -m peft_dp.suite.papers.page docs/papers.md` makes this page from `expected/`; `peft-dp show ID` has the
settings of one cell with their places in the text, and `pytest tests/suite/papers --texts DIR` compares every number
of every table with the papers' texts, both ways.
"""


def page() -> str:
    """Return the page."""
    names = sorted(path.parent.name for path in reader.FOLDER.glob("*/protocol.json"))
    return "\n".join([HEAD, *(line for name in names for line in _paper(name))]) + "\n"


def _paper(name: str) -> Iterator[str]:
    """The lines on one paper."""
    tables = [read_table(f"{name}/{path.stem}") for path in table_files() if path.parent.name == name]
    protocol = read_protocol(name)
    yield f"## {name}\n"
    yield f"{protocol.source if isinstance(protocol, Protocol) else name}.\n"
    head = ["table", "rows to run", "cited", "cells", "backbones", "data", "seeds"]
    yield tabulate([_needs(table) for table in tables], head, tablefmt="github", disable_numparse=True) + "\n"
    yield "**Left open by the text**, and what is assumed:\n"
    yield from (f"- `{field}`: {reason}" for field, reason in protocol.assumed.items())
    for table in tables:
        yield from (f"- `{field}` in {table.table}: {reason}" for field, reason in table.assumed.items())
        said: dict[tuple[str, str], list[str]] = {}
        for row in table.rows:
            for at in row.assumed.items():
                said.setdefault(at, []).append(row.id)
        yield from (f"- `{field}` in {table.table}, {', '.join(ids)}: {why}" for (field, why), ids in said.items())
    yield ""
    wrong = list(_wrong(name, tables))
    if wrong:
        yield "**Known differences**: printed, and impossible by the paper's own numbers or by arithmetic:\n"
        yield tabulate(wrong, ["where", "printed", "arithmetic"], tablefmt="github", disable_numparse=True) + "\n"
    unclear = list(_unclear(name))
    if unclear:
        yield "**Found unclear**, and how it is read:\n"
        yield from unclear
        yield ""
    yield "**Decisions and findings of each table**:\n"
    yield from (f"- {table.table}: {table.note}" for table in tables if table.note)
    yield ""


def _needs(table: Table) -> list[str]:
    """One line: what a table needs to run."""
    cells = papers.cells(table.address)
    rows = {cell.row.id for cell in cells}
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    cited = sum(bool(row.cited) for row in table.rows)
    random = {cell.spec.weights for cell in cells} == {"random"}
    backbones = sorted({registry.load("backbones", cell.spec.backbone).SOURCE.repository for cell in cells})
    shape = " (random weights of that shape)" if random else ""
    return [
        table.table,
        str(len(rows)),
        str(cited),
        str(len(cells)),
        ", ".join(backbones) + shape,
        ", ".join(tasks),
        str(table.seeds),
    ]


def _wrong(name: str, tables: Sequence[Table]) -> Iterator[list[str]]:
    """What cannot hold: figures, claims, rows."""
    yield from ([fact.id, fact.printed, fact.differs] for fact in papers.facts(name) if fact.differs)
    yield from (
        [f"section {claim.section}", claim.says, claim.differs] for claim in papers.claims(name) if claim.differs
    )
    for table in tables:
        yield from ([f"{table.table}/{row.id}", row.title, row.differs] for row in table.rows if row.differs)


def _unclear(name: str) -> Iterator[str]:
    """What a text leaves open of its figures and claims."""
    yield from (f"- {fact.id}, {fact.printed}: {fact.note}" for fact in papers.facts(name) if fact.note)
    yield from (
        f"- {claim.says} (section {claim.section}): {claim.note}" for claim in papers.claims(name) if claim.note
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
