"""The tables: what papers print and what this project recorded, as data; JSON -> `Cell`.

`expected/<paper>/<table>.json` is written by people: definitions and printed
numbers. `<table>.recorded.json` beside it is written by `peft-dp bless`: the
raw score of every seed, and on what it was made. The allowed band is in
neither: it is computed (`reporting.compare`), so that the three cannot be
taken for each other. `facts.json` holds a paper's figures that need no training,
`claims.json` what it states of its rows. The types here are the format: `schema`
writes them out for editors.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from peft_dp.files import write
from peft_dp.spec import STRICT, Budget, Optimiser, Privacy, Spec, first, from_json
from peft_dp.validate import short

FOLDER = Path(__file__).parents[1] / "expected"
UNITS = {"K": 1e3, "M": 1e6, "%": 1.0}
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
class Row:
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
        assumed: Fields of `spec` that the paper does not state.
    """

    id: str
    title: str
    spec: Layer = field(default_factory=dict)
    expect: dict[str, Expect] = field(default_factory=dict)
    cells: dict[str, dict[str, Expect]]
    tasks: dict[str, Layer] = field(default_factory=dict)
    cited: str = ""
    differs: str = ""
    assumed: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Table:
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
    def path(self) -> str:
        """Its name among the tables of all papers."""
        return f"{self.paper}/{self.table}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Fact:
    """One printed figure that needs no training.

    Attributes:
        id: `table/row/quantity`.
        printed: As in the paper, with its unit: "101K", "0.09%", "0.643".
        quantity: The function of `measuring.facts` that computes it.
        given: That function's arguments.
        cut: Whether the paper cut the last digits off where others round.
        differs: Why the printed figure cannot be right, with the arithmetic; the test is then expected to fail.
        note: What the paper leaves open, and what was decided.
        paper: Folder's name; filled in.
    """

    id: str
    printed: str
    quantity: Literal["parameters", "percent", "noise_multiplier"]
    given: dict[str, Any]
    cut: bool = False
    differs: str = ""
    note: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"[0-9]+(\.[0-9]+)?[{''.join(UNITS)}]?", self.printed):
            units = ", ".join(UNITS)
            raise ValueError(f"printed must be a number, then nothing or a unit ({units}), not {short(self.printed)}")

    def __str__(self) -> str:
        """The pytest id."""
        return self.id.replace("/", "-")

    @property
    def path(self) -> str:
        """Its id among those of all papers."""
        return f"{self.paper}/{self.id}"

    def agrees(self, value: float) -> bool:
        """Whether a computed value, written as the paper writes, is what the paper prints."""
        number, unit = (
            (self.printed, 1.0) if self.printed[-1].isdigit() else (self.printed[:-1], UNITS[self.printed[-1]])
        )
        step = 10.0 ** -len(number.partition(".")[2])
        over = value / unit - float(number)
        return 0 <= over < step if self.cut else abs(over) <= step / 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Facts:
    """The facts of one paper.

    Attributes:
        source: The paper.
        defaults: Arguments common to all facts of that quantity.
        facts: The figures.
    """

    source: str
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: list[Fact]


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
    def path(self) -> str:
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
        table = _table(name)
        row = next((row for row in table.rows if row.id == side), None)
        for task in self.tasks:
            if row is None or task not in row.cells:
                raise ValueError(f"claim {self.path}: {name} has no cell {short(side)[1:-1]}/{short(task)[1:-1]}")
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


Runs = dict[str, dict[str, dict[str, float]]]
"""Row -> task -> seed -> value."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Blessing:
    """What one call of `bless` recorded.

    Attributes:
        provenance: Machine, versions, revision, date.
        scores: What was scored; each row stands in one blessing only.
        losses: The training loss of the last epoch, of the same runs.
    """

    provenance: dict[str, Any]
    scores: Runs
    losses: Runs = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recorded:
    """What was recorded for a table.

    Attributes:
        blessings: Oldest first.
    """

    blessings: list[Blessing]

    def whole(self, quantity: Literal["scores", "losses"]) -> Runs:
        """The scores or losses of all blessings."""
        return {row: tasks for blessing in self.blessings for row, tasks in getattr(blessing, quantity).items()}

    def renewed(self, blessing: Blessing) -> Recorded:
        """The same with one more blessing, in place of what older ones say of its rows."""

        def others(runs: Runs) -> Runs:
            return {row: tasks for row, tasks in runs.items() if row not in blessing.scores}

        kept = [replace(old, scores=others(old.scores), losses=others(old.losses)) for old in self.blessings]
        return Recorded(blessings=[*(old for old in kept if old.scores), blessing])


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
        return f"{self.table.path}/{self.row.id}/{self.task}"

    @property
    def node(self) -> str:
        """What pytest calls its test."""
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
            fields = _merge(fields, layer)
        return from_json(fields, where=self.id)

    def specs(self, seeds: int | None = None) -> list[Spec]:
        """One spec a seed, 0 to `seeds` - 1; None for as many as the table asks for."""
        return [self.spec.seeded(seed) for seed in range(seeds or self.table.seeds)]

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

    def _recorded(self, quantity: Literal["scores", "losses"]) -> dict[str, dict[str, list[float]]]:
        return {
            row: {task: list(seeds.values()) for task, seeds in tasks.items()}
            for row, tasks in recorded(self.table.path).whole(quantity).items()
        }


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, objects field by field."""
    both = dict(base)
    for name, value in over.items():
        old = both.get(name)
        both[name] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def cells(table: str | None = None, *, cited: bool = False) -> list[Cell]:
    """All cells that can run, or those of one table such as "embedded/smoke"; or else those that the papers cite.

    Raises:
        ValueError: No such table, or a file that is not one; the message names the file and the field.
    """
    found = [table] if table else [f"{path.parent.name}/{path.stem}" for path in paths()]
    return [
        Cell(table=read, row=row, task=task)
        for read in map(_table, found)
        for row in read.rows
        for task in row.cells
        if bool(row.cited) == cited
    ]


def facts(paper: str | None = None) -> list[Fact]:
    """All facts, or those of one paper.

    Raises:
        ValueError: A file that does not hold facts; the message names it and the field.
    """
    found = []
    for path in sorted(FOLDER.glob(f"{paper or '*'}/facts.json")):
        held: Facts = _read(path, Facts)
        _unique(path, [fact.id for fact in held.facts])
        for fact in held.facts:
            given = _merge(held.defaults.get(fact.quantity, {}), fact.given)
            found.append(replace(fact, given=given, paper=path.parent.name))
    return found


def find(cell: str) -> Cell:
    """The cell of that id.

    Raises:
        ValueError: No such cell; the message lists the ids that come closest.
    """
    import difflib

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


def claims(paper: str | None = None, *, printed: bool | None = None) -> list[Claim]:
    """All claims, or those of one paper; with `printed` those that its own numbers decide, or else do not contradict.

    Raises:
        ValueError: A file that does not hold claims, or a claim about rows that its table lacks; the message names it.
    """
    found = []
    for path in sorted(FOLDER.glob(f"{paper or '*'}/claims.json")):
        held: Claims = _read(path, Claims)
        _unique(path, [claim.id for claim in held.claims])
        for claim in held.claims:
            made = replace(claim, paper=path.parent.name)
            numbers = made.printed()  # which finds its cells, or says which is missing
            if printed is None or (numbers is not None if printed else not made.differs):
                found.append(made)
    return found


def paths() -> list[Path]:
    """Files of all tables, sorted."""
    others = ("facts.json", "claims.json")
    return sorted(p for p in FOLDER.glob("*/*.json") if p.suffixes == [".json"] and p.name not in others)


@cache
def _table(name: str) -> Table:
    path = FOLDER / f"{name}.json"
    if path not in paths():
        known = ", ".join(f"{path.parent.name}/{path.stem}" for path in paths())
        raise ValueError(f"no table {short(name)}; known: {known}")
    table: Table = _read(path, Table)
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
        if row.cited and row.spec:
            raise ValueError(f"{path}: row {short(row.id)} is cited, so it never runs: leave out its spec")
    _unique(path, [row.id for row in table.rows])
    return table


def recorded(table: str) -> Recorded:
    """What was recorded for a table; no blessing where there is no file.

    Raises:
        ValueError: A file that does not hold that; the message names it and the field.
    """
    path = FOLDER / f"{table}.recorded.json"
    found: Recorded = _read(path, Recorded) if path.is_file() else Recorded(blessings=[])
    return found


def record(table: str, blessing: Blessing) -> Path:
    """Adds a blessing to what was recorded for a table, and gives the file."""
    path = FOLDER / f"{table}.recorded.json"
    renewed = recorded(table).renewed(blessing)
    data = {"$schema": link(Recorded)} | TypeAdapter(Recorded).dump_python(renewed, mode="json")
    write(path, json.dumps(data, indent=1) + "\n")
    return path


def link(kind: type) -> str:
    """What a file of that kind may hold in `$schema`: from there an editor learns what else it holds."""
    return f"../{kind.__name__.lower()}.schema.json"


def _read(path: Path, kind: type) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_pairs, parse_constant=_constant)
        if isinstance(data, dict) and (found := data.pop("$schema", link(kind))) != link(kind):
            raise ValueError(f"$schema must be {link(kind)!r}, not {short(found)}")
        return TypeAdapter(kind).validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        raise ValueError(f"{path}: {first(error)}") from None
    except RecursionError:
        raise ValueError(f"{path}: its objects and lists are nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    _unique("an object", [name for name, _ in pairs])
    return dict(pairs)


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a number that JSON allows")


def _unique(where: object, names: Sequence[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{where} has {short(min(twice))} twice")
