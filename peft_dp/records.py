"""What a run gave: one JSON file, keyed by all that determines it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from peft_dp.files import write
from peft_dp.spec import Spec, first, to_json
from peft_dp.training.trail import Epoch


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Record:
    """One run.

    Attributes:
        key: Hash of the spec, the data, the weights, the code and the pins.
        spec: What was run.
        values: Quantity -> value, as rows ask for them.
        ledger: What the run spent of its privacy, from what was run; None without privacy.
        trail: One entry an epoch.
        moved: Term of biases or scales -> mean absolute change in each layer, lowest first; where any moved.
        cost: Seconds per epoch, examples and tokens per second, peak bytes.
        sources: Hashes of data, weights and code.
        environment: Machine, versions, and when it was made.
    """

    key: str
    spec: Spec
    values: dict[str, float]
    ledger: dict[str, Any] | None
    trail: list[Epoch]
    moved: dict[str, list[float]] = field(default_factory=dict)
    cost: dict[str, float]
    sources: dict[str, str]
    environment: dict[str, Any]

    def result(self) -> dict[str, Any]:
        """All that must repeat bit for bit on one machine: everything but time, memory and environment."""
        trail = [{name: value for name, value in asdict(epoch).items() if name != "seconds"} for epoch in self.trail]
        return {
            "key": self.key,
            "values": self.values,
            "ledger": self.ledger,
            "trail": trail,
            "moved": self.moved,
        }


_ADAPTER = TypeAdapter(Record)


def key(spec: Spec, sources: dict[str, str], versions: dict[str, str | None], device: str) -> str:
    """The key of a run: change anything that may change its result, and it is another run."""
    whole = {"spec": to_json(spec), "sources": sources, "versions": versions, "device": device}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


class Records:
    """A folder of records."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder.

        Raises:
            ValueError: It cannot be written to.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = f"records folder {folder} cannot be written to ({error.strerror})"
            raise ValueError(f"{reason}: choose another with --peft-records DIR") from None

    def path(self, spec: Spec, key: str) -> Path:
        """Where the record of that key lies."""
        private = "-dp" if spec.privacy else ""
        return self.folder / f"{spec.method}{private}-{spec.task}-seed{spec.seed}-{key[:16]}.json"

    def load(self, spec: Spec, key: str) -> Record | None:
        """The record of that key, or None.

        Raises:
            ValueError: The file is not a record, or of another run.
        """
        path = self.path(spec, key)
        if not path.is_file():
            return None
        record = read(path)
        if record.key != key:
            raise ValueError(f"{path} holds the record of another run ({record.key[:16]}): move it away")
        return record

    def save(self, record: Record) -> Path:
        """Writes a record so that a reader sees the whole of it or nothing."""
        path = self.path(record.spec, record.key)
        text = json.dumps(_ADAPTER.dump_python(record, mode="json"), indent=1, allow_nan=False)
        write(path, text + "\n")
        return path


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        ValueError: The file is not a whole record; the message names it and the first fault.
    """
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not a record: {first(error)}: delete it to train again") from None
