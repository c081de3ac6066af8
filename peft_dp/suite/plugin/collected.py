"""Records that are there, for tests that assert them without running anything."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from peft_dp.records import Record
from peft_dp.spec import Spec
from peft_dp.suite.verdicts.folder import is_current, read_records
from peft_dp.validate import Missing

_log = logging.getLogger(__name__)


class Collected:
    """The newest record of each run in a folder, found by its spec: that needs no data, weights or device.

    Args:
        folder: Of records, such as those of several machines copied into one.

    Raises:
        ValueError: There is no such folder, or no record in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        records, damaged = read_records(folder)
        for fault in damaged:
            _log.warning(fault)
        ours = {path: record for path, record in records.items() if is_current(record)}
        self._found = {record.spec.digest: (path, record) for path, record in ours.items()}
        self._others = {record.spec.digest for record in records.values()} - self._found.keys()

    def path(self, spec: Spec, key: str) -> Path:
        """Where a record of a run lies, as in `Records`."""
        return self._found[spec.digest][0]

    def of(self, specs: Sequence[Spec]) -> list[Record]:
        """The records of some runs.

        Raises:
            Missing: A run has none that this code made.
        """
        lacking = [spec for spec in specs if spec.digest not in self._found]
        if lacking:
            seeds = ", ".join(f"{spec.seed}" for spec in lacking)
            other = " but of other code" * any(spec.digest in self._others for spec in lacking)
            raise Missing(f"no record of seed {seeds}{other} in {self._folder}: run it there without --peft-collect")
        return [self._found[spec.digest][1] for spec in specs]
