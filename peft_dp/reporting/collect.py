"""Records that are there, for tests that assert them without running anything."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from peft_dp.records import Record
from peft_dp.reporting.gather import newest
from peft_dp.spec import Spec
from peft_dp.validate import Missing

_log = logging.getLogger(__name__)


class Collected:
    """The newest record of each run in a folder, found by its spec: no data, weights or device is needed to look it up.

    Args:
        folder: Of records, such as several shards' copied into one.

    Raises:
        ValueError: There is no such folder, or no record in it.
    """

    def __init__(self, folder: Path) -> None:
        from peft_dp.job import code_sha256

        self.folder = folder
        found, damaged = newest(folder)
        for fault in damaged:
            _log.warning(fault)
        code = code_sha256()
        self._paths = {record.key: path for path, record in found.items()}
        self._records = {
            record.spec.digest: record for record in found.values() if record.sources.get("code") == code
        }
        self._others = {record.spec.digest for record in found.values() if record.sources.get("code") != code}

    def path(self, spec: Spec, key: str) -> Path:
        """Where the record of that key lies."""
        return self._paths[key]

    def of(self, specs: Sequence[Spec]) -> list[Record]:
        """The records of some runs.

        Raises:
            Missing: A run has none that this code made.
        """
        lacking = [spec for spec in specs if spec.digest not in self._records]
        if lacking:
            seeds = ", ".join(f"{spec.seed}" for spec in lacking)
            other = any(spec.digest in self._others for spec in lacking)
            by = " but by other code" * other
            raise Missing(f"no record of seed {seeds} in {self.folder}{by}: run it there without --peft-collect")
        return [self._records[spec.digest] for spec in specs]
