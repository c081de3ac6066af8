"""What this machine gives, recorded as what is expected of a table: raw scores and losses, and what made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from peft_dp.machine import Places
from peft_dp.measuring.environment import environment
from peft_dp.records import Records
from peft_dp.runs import runs
from peft_dp.suite import papers
from peft_dp.suite.papers import recorded
from peft_dp.suite.papers.cell import Cell
from peft_dp.validate import short

FIRST_SEED = 5
"""The first recorded seed: tests train 0, 1, ..., so that they are compared with other runs than their own."""


def cells_of(name: str) -> list[Cell]:
    """Return the cells of a table, such as "embedded/smoke", or of one of its rows, "embedded/smoke/bitfit".

    Raises:
        ValueError: No such table, or no such row in it.
    """
    paper, table, *rows = name.split("/")
    cells = [cell for cell in papers.cells(f"{paper}/{table}") if not rows or cell.row.id in rows]
    if not cells:
        raise ValueError(f"table {paper}/{table} has no row {short(rows[0])}; `peft-dp list` shows all")
    return cells


def bless(
    cells: Sequence[Cell],
    seeds: int,
    places: Places,
    records: Records,
    progress: TextIO | None,
    tell: Callable[[str], None],
) -> Path:
    """Train cells of one table under seeds `FIRST_SEED`, ..., record what they gave, and return the file.

    Args:
        cells: The cells; what was recorded before for their rows is replaced.
        seeds: Number of runs per cell.
        places: Where data and backbones are, and the device.
        records: The folder that runs read from and write to.
        progress: Where to draw a bar; None for none.
        tell: Called with one line of text after each run.

    Raises:
        ValueError: A loss is not finite; then nothing is written.
    """
    scores: recorded.Runs = {}
    losses: recorded.Runs = {}
    for cell in cells:
        specs = [cell.spec.seeded(FIRST_SEED + run) for run in range(seeds)]
        for record in runs(specs, places, records, progress):
            score, loss, seed = record.values["score"], record.trail[-1].loss, record.spec.seed
            if loss is None:
                raise ValueError(f"{cell.id} seed {seed}: its training loss is not finite, so nothing was recorded")
            scores.setdefault(cell.row.id, {}).setdefault(cell.task, {})[str(seed)] = round(score, 4)
            losses.setdefault(cell.row.id, {}).setdefault(cell.task, {})[str(seed)] = round(loss, 4)
            tell(f"{cell.id} seed {seed}: score {score:.2f}, loss {loss:.3f}")
    provenance = environment() | {"date": datetime.now(UTC).date().isoformat()}
    blessing = recorded.Blessing(provenance=provenance, scores=scores, losses=losses)
    return recorded.add_blessing(cells[0].table.address, blessing)
