"""What a paper states of its rows: orderings, ratios and differences, held against printed numbers and runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

from pydantic.dataclasses import dataclass

from peft_dp.spec import STRICT
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.reader import read, unique
from peft_dp.suite.papers.table import read_table
from peft_dp.validate import short

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Claim:
    """An ordering, ratio or difference that a paper states: left RELATION times * right + plus.

    Attributes:
        id: Short name, unique in the paper.
        says: The claim in a sentence.
        section: Where it is stated.
        table: The table of its rows.
        left: A row.
        right: Another; null where the left one is compared with `plus`.
        tasks: The columns.
        over: Whether it holds for each task or for the mean over them.
        quantity: What is compared.
        relation: How.
        times: Factor of the right side.
        plus: What is added to it, in the quantity's unit.
        differs: Why the paper's own numbers contradict it, with the arithmetic.
        paper: Folder's name; filled in.
    """

    id: str
    says: str
    section: str
    table: str
    left: str
    right: str | None
    tasks: list[str]
    over: Literal["each", "mean"]
    quantity: Literal["score", "trainable", "epoch_seconds", "peak_bytes"]
    relation: Literal[">", ">=", "<", "<="]
    times: float = 1.0
    plus: float = 0.0
    differs: str = ""
    paper: str = ""

    def __str__(self) -> str:
        """The pytest id."""
        return self.id

    @property
    def address(self) -> str:
        """Its id among those of all papers."""
        return f"{self.paper}/claims/{self.id}"

    def cells(self, side: str | None) -> list[Cell]:
        """The cells of a row, one a task, cited or not; none for the side that is a number.

        Raises:
            ValueError: The table has no such cell.
        """
        if side is None:
            return []
        name = f"{self.paper}/{self.table}"
        table = read_table(name)
        row = next((row for row in table.rows if row.id == side), None)
        for task in self.tasks:
            if row is None or task not in row.cells:
                raise ValueError(f"claim {self.address}: {name} has no cell {short(side)[1:-1]}/{short(task)[1:-1]}")
        return [Cell(table=table, row=row, task=task) for task in self.tasks if row]

    @property
    def sides(self) -> tuple[list[Cell], list[Cell]]:
        """The cells left and right."""
        return self.cells(self.left), self.cells(self.right)

    @property
    def needed(self) -> list[Cell]:
        """The cells whose runs are held against it: none of a known difference, and none that is cited."""
        return [cell for side in self.sides for cell in side if not (cell.row.cited or self.differs)]

    def pairs(self, left: Sequence[float], right: Sequence[float]) -> list[tuple[float, float]]:
        """What stands left and right of the relation: one pair a task, or one of means."""
        right = right or [0.0] * len(left)
        if self.over == "mean":
            left, right = [fmean(left)], [fmean(right)]
        # Printed numbers are decimal: 0.1 + 0.2 must not exceed 0.3.
        return [(round(a, 9), round(self.times * b + self.plus, 9)) for a, b in zip(left, right, strict=True)]

    def printed(self) -> list[tuple[float, float]] | None:
        """The pairs of the paper's own numbers; None where it prints none."""
        sides = [[cell.expect.get(self.quantity) for cell in side] for side in self.sides]
        if not all(expect for side in sides for expect in side):
            return None
        return self.pairs(*([expect.value for expect in side if expect] for side in sides))

    def holds(self, pairs: Sequence[tuple[float, float]]) -> bool:
        """Whether the relation holds for every pair."""
        return all(RELATIONS[self.relation](*pair) for pair in pairs)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Claims:
    """The claims of one paper.

    Attributes:
        source: The paper.
        claims: What it states.
    """

    source: str
    claims: list[Claim]


def claims(paper: str | None = None, *, printed: bool | None = None) -> list[Claim]:
    """All claims, or those of one paper; with `printed` those that its own numbers decide, or else do not contradict.

    Raises:
        ValueError: A file that does not hold claims, or a claim about rows that its table lacks; the message names it.
    """
    found = []
    for path in sorted(reader.FOLDER.glob(f"{paper or '*'}/claims.json")):
        held: Claims = read(path, Claims)
        unique(path, [claim.id for claim in held.claims])
        for claim in held.claims:
            made = replace(claim, paper=path.parent.name)
            numbers = made.printed()  # which finds its cells, or says which is missing
            if printed is None or (numbers is not None if printed else not made.differs):
                found.append(made)
    return found
