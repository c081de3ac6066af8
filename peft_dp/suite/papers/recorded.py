"""What this project recorded for a table: the raw scores and losses of every seed, and on what they were made."""

from __future__ import annotations

import json
import re
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from peft_dp.files import write
from peft_dp.spec import STRICT
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.reader import link, read
from peft_dp.training.trail import Trace

Runs = dict[str, dict[str, dict[str, float]]]
"""Row -> task -> seed -> value."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Kept:
    """What is kept of a run, so that another of its spec and seed can be held to it.

    Attributes:
        spec: Digest of the spec.
        device: "cpu" or "cuda".
        torch: Version of torch.
        hashes: "data", "files" and "weights" -> hash of what it was trained from.
        losses: Loss of each epoch; None where it is not finite.
        tokens: Tokens of each epoch.
        trace: Its first steps, the order of its batches, its answers.
    """

    spec: str
    device: str
    torch: str
    hashes: dict[str, str]
    losses: list[float | None]
    tokens: list[int]
    trace: Trace


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Blessing:
    """What one call of `bless` recorded.

    Attributes:
        provenance: Machine, versions, revision, date.
        scores: What was scored; each row stands in one blessing only.
        losses: The training loss of the last epoch, of the same runs.
        runs: Row -> task -> seed -> what is kept of the same runs.
        drift: Row -> task -> kind of quantity -> largest gap when the runs were repeated under what may differ.
    """

    provenance: dict[str, Any]
    scores: Runs
    losses: Runs = field(default_factory=dict)
    runs: dict[str, dict[str, dict[str, Kept]]] = field(default_factory=dict)
    drift: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recorded:
    """What was recorded for a table.

    Attributes:
        blessings: Oldest first.
    """

    blessings: list[Blessing]

    def whole(self, quantity: Literal["scores", "losses", "runs", "drift"]) -> dict[str, dict[str, dict[str, Any]]]:
        """What all blessings hold of that quantity."""
        return {row: tasks for blessing in self.blessings for row, tasks in getattr(blessing, quantity).items()}

    def renewed(self, blessing: Blessing) -> Recorded:
        """The same with one more blessing, in place of what older ones say of its rows."""

        def others(held: dict[str, Any]) -> dict[str, Any]:
            return {row: tasks for row, tasks in held.items() if row not in blessing.scores}

        names = ("scores", "losses", "runs", "drift")
        kept = [replace(old, **{name: others(getattr(old, name)) for name in names}) for old in self.blessings]
        return Recorded(blessings=[*(old for old in kept if old.scores), blessing])


def read_recorded(table: str) -> Recorded:
    """What was recorded for a table; no blessing where there is no file.

    Raises:
        ValueError: A file that does not hold that; the message names it and the field.
    """
    path = reader.home(table.partition("/")[0]) / f"{table}.recorded.json"
    found: Recorded = read(path, Recorded) if path.is_file() else Recorded(blessings=[])
    return found


def add_blessing(table: str, blessing: Blessing) -> Path:
    """Adds a blessing to what was recorded for a table, and gives the file."""
    path = reader.home(table.partition("/")[0]) / f"{table}.recorded.json"
    renewed = read_recorded(table).renewed(blessing)
    data = {"$schema": link(Recorded)} | TypeAdapter(Recorded).dump_python(renewed, mode="json")
    text = json.dumps(data, indent=1) + "\n"
    write(path, re.sub(r"\n {7,}|\n {6}(?=[}\]])", " ", text))  # a run per line
    return path
