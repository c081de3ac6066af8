"""What a paper states of its rows: orderings, ratios and differences, held against printed numbers and runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from statistics import fmean
from typing import Literal

from pydantic.dataclasses import dataclass

from peft_dp.spec import STRICT
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.fact import Fact, facts
from peft_dp.suite.papers.reader import read, unique
from peft_dp.suite.papers.table import read_table
from peft_dp.validate import short

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
COUNT = "trainable"
"""The quantity of counts: it follows from a row's definition, so no run decides it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Claim:
    """An ordering, ratio or difference that a paper states: left RELATION times * right + plus.

    Attributes:
        id: Short name, unique in the paper.
        says: The claim in a sentence.
        section: Where it is stated; "ours" for a claim of this project.
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
        note: What was found where our own numbers may contradict it, or what the paper leaves open.
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
    note: str = ""
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
        """The cells whose runs are held against it: none of a known difference, of counts, or that is cited."""
        return [cell for side in self.sides for cell in side if not cell.row.cited] if self.by_run else []

    @property
    def by_run(self) -> bool:
        """Whether runs are held against it: not where printed numbers contradict it, and never for counts."""
        return not self.differs and self.quantity != COUNT

    @property
    def basis(self) -> Literal["printed", "counts", "runs"]:
        """What decides it: numbers that the paper prints, counts of ours where it prints none, or runs alone."""
        if self.printed() is not None:
            return "printed"
        return "counts" if self.quantity == COUNT else "runs"

    def pairs(self, left: Sequence[float], right: Sequence[float]) -> list[tuple[float, float]]:
        """What stands left and right of the relation: one pair a task, or one of means."""
        right = right or [0.0] * len(left)
        if self.over == "mean":
            left, right = [fmean(left)], [fmean(right)]
        # Printed numbers are decimal: 0.1 + 0.2 must not exceed 0.3.
        return [(round(a, 9), round(self.times * b + self.plus, 9)) for a, b in zip(left, right, strict=True)]

    def printed(self) -> list[tuple[float, float]] | None:
        """The pairs of the paper's own numbers; None where it prints none."""
        if self.quantity != COUNT:
            return self._expected()
        figures = [self._figure(row) for row in (self.left, self.right) if row is not None]
        if None in figures or len({figure.quantity for figure in figures if figure}) > 1:
            return None
        return self.pairs(*([figure.value] for figure in figures if figure), *[[]] * (self.right is None))

    def counted(self) -> list[tuple[float, float]] | None:
        """The pairs of our own counts of trained values, for a claim of counts; None for another."""
        return self._expected() if self.quantity == COUNT else None

    def _expected(self) -> list[tuple[float, float]] | None:
        sides = [[cell.expect.get(self.quantity) for cell in side] for side in self.sides]
        if not all(expect for side in sides for expect in side):
            return None
        return self.pairs(*([expect.value for expect in side if expect] for side in sides))

    def _figure(self, row: str) -> Fact | None:
        """The printed number or share of values that a row trains."""
        ids = {f"{self.table}/{row}/parameters", f"{self.table}/{row}/percent"}
        return next((fact for fact in facts(self.paper) if fact.id in ids), None)

    def holds(self, pairs: Sequence[tuple[float, float]]) -> bool:
        """Whether the relation holds for every pair."""
        return all(RELATIONS[self.relation](*pair) for pair in pairs)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LeftOut:
    """A statement of a paper that is no claim.

    Attributes:
        says: The statement.
        section: Where it stands.
        why: Why it is no claim of two rows.
    """

    says: str
    section: str
    why: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Claims:
    """The claims of one paper.

    Attributes:
        source: The paper.
        claims: What it states.
        left_out: What it states besides, and why that is no claim.
    """

    source: str
    claims: list[Claim]
    left_out: list[LeftOut] = field(default_factory=list)


def claims(paper: str | None = None, *, printed: bool | None = None) -> list[Claim]:
    """All claims, or those of one paper.

    Args:
        paper: Folder's name.
        printed: True for those decided without a run, by printed numbers or else by counts; False for those that
            runs decide, which are not of counts and which printed numbers do not contradict.

    Raises:
        ValueError: A file that does not hold claims, or a claim about rows that its table lacks; the message names it.
    """
    found = []
    for path in reader.glob(f"{paper or '*'}/claims.json"):
        held: Claims = read(path, Claims)
        unique(path, [claim.id for claim in held.claims])
        for claim in held.claims:
            made = replace(claim, paper=path.parent.name)
            basis = made.basis  # which finds its cells, or says which is missing
            if printed is None or (basis != "runs" if printed else made.by_run):
                found.append(made)
    return found
