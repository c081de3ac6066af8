"""What this project recorded for a table: the raw scores and losses of every seed, and on what they were made."""

from __future__ import annotations

import json
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from peft_dp.files import write
from peft_dp.spec import STRICT
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.reader import link, read

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


def read_recorded(table: str) -> Recorded:
    """What was recorded for a table; no blessing where there is no file.

    Raises:
        ValueError: A file that does not hold that; the message names it and the field.
    """
    path = reader.FOLDER / f"{table}.recorded.json"
    found: Recorded = read(path, Recorded) if path.is_file() else Recorded(blessings=[])
    return found


def add_blessing(table: str, blessing: Blessing) -> Path:
    """Adds a blessing to what was recorded for a table, and gives the file."""
    path = reader.FOLDER / f"{table}.recorded.json"
    renewed = read_recorded(table).renewed(blessing)
    data = {"$schema": link(Recorded)} | TypeAdapter(Recorded).dump_python(renewed, mode="json")
    write(path, json.dumps(data, indent=1) + "\n")
    return path
