"""Cells that fill one folder of records, and a group of them that one process runs: `peft-dp submit`.

A group reads the records that are there and trains the rest. So whatever ended it (a time limit, a job of higher
priority, a dead node), it is started again as it was and goes on.
"""

from __future__ import annotations

import shlex
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_dp.machine import Places
from peft_dp.records import Records, Unwritable
from peft_dp.spec import Spec
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.table import MARKERS
from peft_dp.validate import Missing


@dataclass(frozen=True, kw_only=True)
class Work:
    """Cells to run, and what their runs share.

    Attributes:
        cells: The cells.
        seeds: Runs per cell; None for as many as its table asks for.
        places: Where a process finds what the runs need.
        records: The folder of records.
    """

    cells: Sequence[Cell]
    seeds: int | None
    places: Places
    records: Path

    @property
    def command(self) -> str:
        """Return the command that asserts that the records agree, and trains nothing."""
        marks = " or ".join(sorted({MARKERS[cell.table.budget] for cell in self.cells}))
        seeds = ["--peft-seeds", str(self.seeds)] if self.seeds else []
        return shlex.join(
            ["pytest", "bench", "-m", marks, "--peft-records", str(self.records), "--peft-collect", *seeds]
        )

    def missing(self) -> list[Cell]:
        """Return the cells that lack a record, or of which this machine lacks what is needed to tell.

        Raises:
            ValueError: A cell names what does not exist, a file is damaged, or the folder cannot be written to.
        """
        from peft_dp.runs import all_recorded

        records = Records(self.records)

        def there(cell: Cell) -> bool:
            try:
                return all_recorded(cell.specs(self.seeds), self.places, records)
            except Missing:
                return False

        return [cell for cell in self.cells if not there(cell)]

    def runs(self, cells: Sequence[Cell]) -> dict[str, list[Spec]]:
        """Return the runs of some of the cells, by the cells' ids."""
        return {cell.id: cell.specs(self.seeds) for cell in cells}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cells that one process runs, one after another.

    Attributes:
        runs: Id of a cell -> its runs.
        places: Where that process finds what they need.
        records: The folder of records.
    """

    runs: Mapping[str, Sequence[Spec]]
    places: Places
    records: Path

    def __call__(self) -> None:
        """Run what has no record yet and print how each cell ended; where one fails, go on with the next.

        Raises:
            SystemExit: Cells failed; the message names them.
            Unwritable: The folder takes no record, so that of the next cell would not be kept either.
        """
        from peft_dp.runs import runs

        records = Records(self.records)
        failed = []
        for name, specs in self.runs.items():
            start = time.monotonic()
            try:
                runs(specs, self.places, records)
            except Unwritable:
                raise
            except Exception as error:
                if not isinstance(error, (ValueError, Missing, FloatingPointError)):  # whose message says all
                    traceback.print_exc()
                failed.append(name)
                print(f"{name}: failed: {error}", flush=True)
            else:
                print(f"{name}: done in {time.monotonic() - start:.0f} s", flush=True)
        if failed:
            sys.exit(f"peft-dp: {len(failed)} of {len(self.runs)} cells failed: {', '.join(failed)}")
