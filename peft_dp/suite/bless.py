"""What this machine gives, recorded as what is expected of a table: runs, how far repeats drift, and what made them.

Each run is made alone, then again under what may rightly differ: another instruction set and number of threads,
another cut of the logical batches, and beside the other seeds. How far a repeat is from the run is the drift that later
runs are allowed. The repeats run in processes of their own: instruction sets are chosen when torch is imported, which
nothing here may do before.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

from peft_dp.machine import Places
from peft_dp.spec import Spec
from peft_dp.suite import papers
from peft_dp.suite.papers import recorded
from peft_dp.suite.papers.cell import Cell
from peft_dp.validate import short

if TYPE_CHECKING:
    from peft_dp.records import Record, Records


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What may rightly differ between two runs of a seed.

    Attributes:
        name: What it is called in a message.
        threads: Threads of torch.
        tokens: Tokens of a physical batch; None for as many as ever. Rows with dropout, which draws by physical batch,
            keep theirs.
        together: Whether all seeds train in one call, in the same batches where they can.
        environment: Variables that are set before torch is imported.
    """

    name: str
    threads: int = 1
    tokens: int | None = None
    together: bool = False
    environment: dict[str, str] = field(default_factory=dict)


SSE = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
"""Another instruction set than that of any machine of today, so that a repeat differs on each of them."""
RECORDED = Variant(name="one thread")
VARIANTS = (
    Variant(name="SSE arithmetic, one thread, 256 tokens in a physical batch", tokens=256, environment=SSE),
    Variant(name="two threads, all seeds in one call", threads=2, together=True),
)


def cells_of(name: str) -> list[Cell]:
    """Return the cells of a table, such as "embedded/smoke", or of one of its rows, "embedded/smoke/bitfit".

    Rows through a library are left out: they are held to what our own code gives.

    Raises:
        ValueError: No such table, or no such row in it.
    """
    paper, table, *rows = name.split("/")
    every = [cell for cell in papers.cells(f"{paper}/{table}") if cell.spec.implementation == "own"]
    cells = [cell for cell in every if not rows or cell.row.id in rows]
    if not cells:
        raise ValueError(f"table {paper}/{table} has no row {short(rows[0])} to record; `peft-dp list` shows all")
    return cells


def bless(
    cells: Sequence[Cell],
    seeds: int,
    places: Places,
    records: Records,
    tell: Callable[[str], None],
) -> Path:
    """Train cells of one table under seeds 0, 1, ..., record what they gave and how far repeats drift; return the file.

    Args:
        cells: The cells; what was recorded before for their rows is replaced.
        seeds: Number of runs per cell.
        places: Where data and backbones are, and the device.
        records: The folder that runs read from and write to.
        tell: Called with one line of text after each run.

    Raises:
        ValueError: A loss is not finite, or a repeat draws other batches; then nothing is written.
    """
    from peft_dp.measuring.environment import environment
    from peft_dp.suite.verdicts.replay import kept_of

    made = recorded.Blessing(
        provenance=environment() | {"date": datetime.now(UTC).date().isoformat()}, scores={}, losses={}
    )
    for cell, record in trained(cells, seeds, places, RECORDED, records.folder):
        loss, seed = record.trail[-1].loss, str(record.spec.seed)
        if loss is None and record.trace:
            raise ValueError(f"{cell.id} seed {seed}: its training loss is not finite, so nothing was recorded")
        made.scores.setdefault(cell.row.id, {}).setdefault(cell.task, {})[seed] = round(record.values["score"], 4)
        if loss is not None:
            made.losses.setdefault(cell.row.id, {}).setdefault(cell.task, {})[seed] = round(loss, 4)
        if record.trace:
            made.runs.setdefault(cell.row.id, {}).setdefault(cell.task, {})[seed] = kept_of(record)
        told = "not told of a private run" if loss is None else f"{loss:.3f}"
        tell(f"{cell.id} seed {seed}: score {record.values['score']:.2f}, loss {told}")
    # Private runs on data that are not public have secret noise: they do not repeat, and only their spread is known.
    repeating = [cell for cell in cells if cell.task in made.runs.get(cell.row.id, {})]
    for variant in VARIANTS if repeating else ():
        tell(f"again, with {variant.name}")
        for cell, record in trained(repeating, seeds, places, variant):
            _widen(made, cell, record, variant)
    for row, tasks in made.drift.items():
        for task, drift in tasks.items():
            tell(f"{row} {task}: drift of {', '.join(f'{kind} {size:.2g}' for kind, size in drift.items())}")
    return recorded.add_blessing(cells[0].table.address, made)


def _widen(made: recorded.Blessing, cell: Cell, repeated: Record, variant: Variant) -> None:
    """Widen the drift of a row by how far a repeat is from the recorded run.

    Raises:
        ValueError: What must be equal is not.
    """
    from peft_dp.suite.verdicts.replay import gaps_between, kept_of

    drift = made.drift.setdefault(cell.row.id, {}).setdefault(cell.task, {})
    first = made.runs[cell.row.id][cell.task][str(repeated.spec.seed)]
    for gap in gaps_between(kept_of(repeated), first):
        if gap.kind == "exact" and gap.size:
            where = f"{cell.id} seed {repeated.spec.seed}, repeated with {variant.name}"
            raise ValueError(f"{where}: {gap.place} is not the same, so nothing was recorded")
        if gap.kind != "exact":
            drift[gap.kind] = max(drift.get(gap.kind, 0.0), float(f"{gap.size:.3g}"))


def trained(
    cells: Sequence[Cell], seeds: int, places: Places, variant: Variant, folder: Path | None = None
) -> Iterator[tuple[Cell, Record]]:
    """Yield each cell with the record of each of its runs, made in processes of their own under a variant.

    Args:
        cells: The cells.
        seeds: Number of runs per cell.
        places: Where data and backbones are, and the device.
        variant: What may differ.
        folder: Folder of records to read from and write to; None for neither.
    """
    specs = list({cell.spec.digest: cell.specs(seeds) for cell in cells}.values())
    groups = specs if variant.together else [[spec] for group in specs for spec in group]
    workers = max(1, (os.cpu_count() or 1) // variant.threads)
    before = dict(os.environ)
    os.environ.update(variant.environment)  # which the processes take with them when they start
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (variant.threads,)) as pool:
            for group in pool.map(_train, groups, repeat(places), repeat(folder), repeat(variant.tokens)):
                for record in group:
                    alike = record.spec.seeded(0).digest
                    yield from ((cell, record) for cell in cells if cell.spec.digest == alike)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _begin(threads: int) -> None:
    """Prepare a process that makes runs."""
    import torch

    torch.set_num_threads(threads)


def _train(specs: Sequence[Spec], places: Places, folder: Path | None, tokens: int | None) -> list[Record]:
    """Make runs of one cell."""
    from peft_dp.models.batch import BUDGETS
    from peft_dp.records import Records
    from peft_dp.runs import runs

    budget = BUDGETS["cpu"]
    own, budget.tokens = budget.tokens, budget.tokens if specs[0].dropout else tokens or budget.tokens
    try:
        return runs(specs, places, Records(folder) if folder else None)
    finally:
        budget.tokens = own
