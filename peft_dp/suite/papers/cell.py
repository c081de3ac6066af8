"""Cells: one test case per row and task of a table, with its runs, its printed numbers and its recorded ones."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from peft_dp import registry
from peft_dp.spec import Spec, from_json
from peft_dp.suite.papers.protocol import Stated, origins, read_protocol, settings
from peft_dp.suite.papers.reader import merged
from peft_dp.suite.papers.recorded import Kept, read_recorded
from peft_dp.suite.papers.table import Expect, Row, Table, read_table, table_files
from peft_dp.validate import short


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One (row, task) pair: one test.

    Attributes:
        table: The table it stands in.
        row: Its line.
        task: Its column.
    """

    table: Table
    row: Row
    task: str

    def __str__(self) -> str:
        """The pytest id within its table, `row-task`."""
        return f"{self.row.id}-{self.task}"

    @property
    def id(self) -> str:
        """`paper/table/row/task`."""
        return f"{self.table.address}/{self.row.id}/{self.task}"

    @property
    def data(self) -> str:
        """Name of the task that it learns, or the address that the table gives for its column."""
        return str(self.table.tasks[self.task].get("task", self.task))

    @property
    def tables_option(self) -> list[str]:
        """The words by which a command finds its table: none where that is in `expected/`."""
        return ["--tables", str(registry.own_folder())] if self.table.is_own else []

    @property
    def node(self) -> str:
        """What pytest calls its test."""
        if self.table.is_own:
            return f"bench/test_tables.py::test_tables[{self.id}]"
        return f"bench/test_{self.table.paper}.py::test_{self.table.table}[{self}]"

    @cached_property
    def spec(self) -> Spec:
        """The run of seed 0.

        Raises:
            ValueError: The table's settings do not make a spec; names the cell and the field.
        """
        fields: dict[str, Any] = {"task": self.task, "budget": self.table.budget}
        for layer in (
            self.table.defaults,
            self.table.tasks[self.task],
            self.row.spec,
            self.row.tasks.get(self.task, {}),
        ):
            fields = merged(fields, layer)
        return from_json(fields, where=self.id)

    @cached_property
    def own(self) -> Cell:
        """The cell of the same run by this project's own code, to whose recording it is held; often itself.

        Raises:
            ValueError: The table has no row of it.
        """
        if "implementation" not in self.row.spec or self.row.cannot:
            return self
        others = (replace(self, row=row) for row in self.table.rows if self.task in row.cells)
        if found := next((other for other in others if other.spec == self.spec.own()), None):
            return found
        raise ValueError(f"{self.id}: its table has no row of the same run by implementation 'own': add one")

    @property
    def through(self) -> list[Cell]:
        """The cells of the same run through libraries, where this is our own code's."""
        rows = [row for row in self.table.rows if "implementation" in row.spec and not row.cannot]
        others = [replace(self, row=row) for row in rows if self.task in row.cells]
        return [other for other in others if other.spec != self.spec and other.spec.own() == self.spec]

    def check_settings(self) -> None:
        """Raise ValueError, naming file, row and field, if the row's method does not take its settings."""
        from peft_dp import implementations, methods  # whose files import torch

        try:
            methods.make(self.spec.method, self.spec.config)
            implementations.load(self.spec.implementation)
        except ValueError as error:
            where = "" if self.table.is_own else "expected/"
            raise ValueError(f"{where}{self.table.address}.json, row {short(self.row.id)}: {error}") from None

    def specs(self, seeds: int | None = None) -> list[Spec]:
        """One spec a seed, 0 to `seeds` - 1; None for as many as the row or the table asks for."""
        return [self.spec.seeded(seed) for seed in range(seeds or self.seeds)]

    @property
    def seeds(self) -> int:
        """Number of runs that the row or the table asks for."""
        return self.row.seeds or self.table.seeds

    @cached_property
    def origins(self) -> dict[str, Stated | str]:
        """Field -> where the paper states it, or why it is assumed; empty for a cell of no paper.

        Raises:
            ValueError: The row speaks of a setting that its method does not have.
        """
        given = settings(self.spec)
        for name in [*self.row.stated, *self.row.assumed]:
            if name not in given:
                raise ValueError(f"{self.id}: its row has an origin for {short(name)}, which is no field")
        return origins((read_protocol(self.table.paper), self.table, self.row), given)

    @property
    def stated(self) -> dict[str, Stated]:
        """Field -> where the paper states it."""
        return {name: origin for name, origin in self.origins.items() if isinstance(origin, Stated)}

    @property
    def assumed(self) -> dict[str, str]:
        """Field -> why it is what it is, where the paper does not state it."""
        return {name: origin for name, origin in self.origins.items() if isinstance(origin, str)}

    @property
    def expect(self) -> dict[str, Expect]:
        """Quantity -> printed number."""
        return self.row.expect | self.row.cells[self.task]

    @cached_property
    def recorded(self) -> dict[str, dict[str, list[float]]]:
        """Row -> task -> recorded scores, of the cell's whole table; empty where nothing was recorded."""
        return self._recorded("scores")

    @cached_property
    def losses(self) -> dict[str, dict[str, list[float]]]:
        """Row -> task -> recorded losses, likewise."""
        return self._recorded("losses")

    @cached_property
    def runs(self) -> dict[int, Kept]:
        """Seed -> the recorded run of the cell that another of that seed is held to; empty where none was kept."""
        held = read_recorded(self.table.address).whole("runs").get(self.own.row.id, {}).get(self.task, {})
        return {int(seed): kept for seed, kept in held.items()}

    @cached_property
    def drift(self) -> dict[str, float]:
        """Kind of quantity -> largest gap when the recorded runs were repeated."""
        return read_recorded(self.table.address).whole("drift").get(self.own.row.id, {}).get(self.task, {})

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """On what the cell's recorded runs were made; empty where there are none."""
        held = [one for one in read_recorded(self.table.address).blessings if self.own.row.id in one.runs]
        return held[-1].provenance if held else {}

    @cached_property
    def scores_by_seed(self) -> dict[int, float]:
        """Seed -> recorded score of the cell."""
        held = read_recorded(self.table.address).whole("scores").get(self.own.row.id, {}).get(self.task, {})
        return {int(seed): score for seed, score in held.items()}

    def _recorded(self, quantity: Literal["scores", "losses"]) -> dict[str, dict[str, list[float]]]:
        return {
            row: {task: list(seeds.values()) for task, seeds in tasks.items()}
            for row, tasks in read_recorded(self.table.address).whole(quantity).items()
        }


def cells(table: str | None = None, *, cited: bool = False) -> list[Cell]:
    """All cells that can run, or those of one table such as "embedded/smoke"; or else those that the papers cite.

    Raises:
        ValueError: No such table, or a file that is not one; the message names the file and the field.
    """
    found = [table] if table else [f"{path.parent.name}/{path.stem}" for path in table_files()]
    return [
        Cell(table=of, row=row, task=task)
        for of in map(read_table, found)
        for row in of.rows
        for task in row.cells
        if bool(row.cited) == cited
    ]


def find(cell: str) -> Cell:
    """The cell of that id.

    Raises:
        ValueError: No such cell; the message lists the ids that come closest.
    """
    every = {known.id: known for known in cells()}
    if cell not in every:
        close = difflib.get_close_matches(cell, every, n=3, cutoff=0.3)
        start = f" {cell}" * any(known.startswith(f"{cell}/") for known in every)
        close_ids = ", ".join(close) or "none"
        raise ValueError(f"no cell {short(cell)}; close: {close_ids}; `peft-dp list{start}` shows all")
    return every[cell]


def select(prefixes: Sequence[str]) -> list[Cell]:
    """The cells whose ids start with one of these.

    Raises:
        ValueError: No cell's id starts with one of them.
    """
    every = cells()
    for prefix in prefixes:
        if not any(cell.id.startswith(prefix) for cell in every):
            raise ValueError(f"no cell's id starts with {short(prefix)}; `peft-dp list` shows all")
    return [cell for cell in every if cell.id.startswith(tuple(prefixes))]
