"""The format of a table, `expected/<paper>/<table>.json`: definitions and printed numbers, written by people."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import Field
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from peft_dp.spec import STRICT, Budget, Optimiser, Privacy, Spec
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.protocol import Origins
from peft_dp.suite.papers.reader import read, unique
from peft_dp.validate import short

MARKERS: dict[Budget, str] = {"smoke": "smoke", "small": "small", "paper": "gpu"}
"""Budget -> the pytest marker of its cells."""


def _some(kind: type, **parts: Any) -> Any:
    """The type of a dict of some fields of a class, `parts` in place of those that are objects themselves."""
    create: Any = TypedDict  # or else a type checker asks for fields that are written out
    made = create(kind.__name__, get_type_hints(kind) | parts, total=False)
    made.__doc__ = kind.__doc__
    return made


if TYPE_CHECKING:
    Layer = dict[str, Any]
else:
    Layer = _some(Spec, privacy=_some(Privacy) | None, optimiser=_some(Optimiser))
    """Fields of `Spec` that a table, a task or a row sets; laid upon each other they make one."""


Count = Annotated[int, Field(ge=1, le=1000)]
"""A number of runs."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Expect:
    """One printed number.

    Attributes:
        value: As the paper prints it; scores are times 100.
        std: Standard deviation over the runs, as printed; null where none is.
        runs: Number of runs that `value` is the mean of.
        best_of: Number of runs, chosen among on the scored data, of which `value` is the best.
        within: Largest difference that counts as agreement.
        at_least: Whether only a number below `value` can disagree.
        asserted: Whether a run must agree; seconds and bytes of another machine are shown, and their ratios claimed.
        why: Where `value` or `within` comes from.
    """

    value: float
    std: float | None = None
    runs: Count = 1
    best_of: Count = 1
    within: float = 0.0
    at_least: bool = False
    asserted: bool = True
    why: str = ""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Row(Origins):
    """One printed line of a table.

    Attributes:
        id: Short name, unique in the table.
        title: The paper's name of the line.
        spec: Fields of `Spec` that this row sets.
        expect: Quantity -> printed number, the same for every task.
        cells: Task -> quantity -> printed number; its keys are the row's cells.
        tasks: Task -> fields of `Spec` that this row sets for it.
        cited: From where the paper took the line; it is shown, and never run.
        differs: Why the printed number cannot hold; the test is then expected to fail.
        cannot: What a library says that cannot make the run, in part; the test fails once it can.
        picture: Whether its numbers were read off a picture, the text having none.
        seeds: Runs of each of its cells, in place of the table's number.
        stated: Field -> where the paper states it, in place of what table and paper say of it.
        assumed: Field -> why it is what it is, likewise.
    """

    id: str
    title: str
    spec: Layer = field(default_factory=dict)
    expect: dict[str, Expect] = field(default_factory=dict)
    cells: dict[str, dict[str, Expect]]
    tasks: dict[str, Layer] = field(default_factory=dict)
    cited: str = ""
    differs: str = ""
    cannot: str = ""
    picture: bool = False
    seeds: int | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Table(Origins):
    """One table of one paper.

    Attributes:
        paper: Folder's name.
        table: File's name.
        title: What the table shows.
        source: Where the numbers come from.
        budget: How much work its cells may spend.
        seeds: Runs of each cell, seeds 0, 1, ...
        defaults: Fields of `Spec` common to all rows.
        tasks: Task -> fields of `Spec` that the task sets; a row's own come after them, a row's own for a task last.
        rows: The lines.
        note: Decisions taken where the paper is silent or wrong.
        stated: Field -> where the paper states it, in place of what `protocol.json` says of it.
        assumed: Field -> why it is what it is, likewise.
    """

    paper: str
    table: str
    title: str
    source: str
    budget: Budget
    seeds: Count = 1
    defaults: Layer
    tasks: dict[str, Layer]
    rows: list[Row]
    note: str = ""

    @property
    def through_libraries(self) -> bool:
        """Whether a row runs through a library."""
        return any("implementation" in row.spec for row in self.rows)

    @property
    def is_own(self) -> bool:
        """Whether it stands in the folder of a user's own tables."""
        return reader.home(self.paper) != reader.FOLDER

    @property
    def address(self) -> str:
        """Its name among the tables of all papers."""
        return f"{self.paper}/{self.table}"


def table_files() -> list[Path]:
    """Files of all tables, sorted."""
    return [path for path in reader.glob("*/*.json") if _is_table(path)]


def _is_table(path: Path) -> bool:
    return path.suffixes == [".json"] and path.name not in ("facts.json", "claims.json", "protocol.json")


def read_table(name: str) -> Table:
    """Return the table of that name, such as "embedded/smoke".

    Raises:
        ValueError: No such table, or a file that is not one; the message names the file and the field.
    """
    path = reader.home(name.partition("/")[0]) / f"{name}.json"
    if name.count("/") != 1 or not _is_table(path) or not path.is_file():
        known = ", ".join(f"{path.parent.name}/{path.stem}" for path in table_files())
        raise ValueError(f"no table {short(name)}; known: {known}")
    table: Table = read(path, Table)
    if (table.paper, table.table) != (path.parent.name, path.stem):
        raise ValueError(f"{path}: paper and table must be {path.parent.name!r} and {path.stem!r}, as in its path")
    for row in table.rows:
        for task in row.cells:
            if task not in table.tasks:
                raise ValueError(
                    f"{path}: row {short(row.id)} has a cell for {short(task)}, which `tasks` does not list"
                )
        for task in row.tasks.keys() - row.cells.keys():
            raise ValueError(f"{path}: row {short(row.id)} has settings for {short(task)}, but no cell")
        if row.cited and (row.spec or row.stated or row.assumed):
            raise ValueError(
                f"{path}: row {short(row.id)} is cited, so it never runs: leave out its spec and its origin"
            )
    unique(path, [row.id for row in table.rows])
    return table
