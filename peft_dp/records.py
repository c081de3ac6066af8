"""What a run gave: one JSON file, keyed by all that determines it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, field
from itertools import chain, count
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from peft_dp.files import sweep, write
from peft_dp.spec import STRICT, Spec, first, to_json
from peft_dp.training.trail import Epoch, Trace
from peft_dp.validate import short


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Record:
    """One run.

    Attributes:
        key: Hash of the spec, the data, the weights, the code and the pins.
        spec: What was run.
        values: Quantity -> value, as rows ask for them.
        ledger: What the run spent of its privacy, from what was run; None without privacy.
        trail: One entry an epoch.
        trace: Where another run of the spec and seed could part from it; None of a run that may not tell.
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
    trace: Trace | None = None
    moved: dict[str, list[float]] = field(default_factory=dict)
    cost: dict[str, float]
    sources: dict[str, str]
    environment: dict[str, Any]

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.key):  # of which a file's name is made
            raise ValueError(f"key must be a SHA-256 in lower case, not {short(self.key)}")
        for name in ("epsilon", "noise_multiplier"):
            if self.ledger is not None and not isinstance(stated := self.ledger.get(name), float):
                raise ValueError(f"ledger must state {name} as a number such as 8.0, not {short(stated)}")

    @property
    def secret(self) -> bool:
        """Whether noise and batches came from the operating system, and its exact course is not told."""
        return self.ledger is not None and self.ledger.get("noise") == "secure"

    def result(self) -> dict[str, Any]:
        """All that must repeat bit for bit on one machine: everything but time, memory and environment."""
        times = ("seconds", "processor_seconds")
        trail = [{name: value for name, value in asdict(epoch).items() if name not in times} for epoch in self.trail]
        return {
            "key": self.key,
            "values": self.values,
            "ledger": self.ledger,
            "trail": trail,
            "trace": self.trace and asdict(self.trace),
            "moved": self.moved,
        }


_ADAPTER = TypeAdapter(Record)
_log = logging.getLogger(__name__)


def mean(records: Sequence[Record], quantity: str) -> float | None:
    """Mean of a quantity over runs; None without any, or where one lacks it."""
    values = [(record.values | record.cost).get(quantity) for record in records]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def key(spec: Spec, sources: dict[str, str], versions: dict[str, str | None], device: str) -> str:
    """The key of a run: change anything that may change its result, and it is another run."""
    whole = {"spec": to_json(spec), "sources": sources, "versions": versions, "device": device}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


class Unwritable(ValueError):
    """A folder of records that takes no file.

    Args:
        what: That cannot be written.
        error: Why.
    """

    def __init__(self, what: str, error: OSError) -> None:
        remedy = "make room or allow it, or choose another folder with --peft-records DIR"
        super().__init__(f"{what} cannot be written to ({error.strerror}): {remedy}")


class Records:
    """A folder of records, which several processes may share."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder.

        Raises:
            Unwritable: It cannot be written to.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{secrets.token_hex(4)}"
            write(probe, "")  # as a record is written: some file systems refuse a step of that
            probe.unlink()
        except OSError as error:
            raise Unwritable(f"records folder {folder}", error) from None

    def path(self, spec: Spec, key: str) -> Path:
        """Where the record of that key lies."""
        private = "-dp" if spec.privacy else ""
        task = re.sub("[^A-Za-z0-9_-]+", "-", spec.task)[:60]  # an address of files is no name of a file
        return self.folder / f"{spec.method}{private}-{task}-seed{spec.seed}-{key[:16]}.json"

    def load(self, spec: Spec, key: str) -> Record | None:
        """The record of that key; None where there is none, or none that is whole."""
        try:
            return _read(self.path(spec, key), key)
        except ValueError:
            return None

    @contextmanager
    def held(self, runs: Sequence[tuple[Spec, str]]) -> Iterator[None]:
        """Lets no other process train what has these keys; waits for one that does, and says so.

        What lies in the place of such a record and is none is set aside, once no other process may write there. The
        locks are the kernel's, so they go with their process, however it ends. All processes take them in the same
        order, so none waits for one that waits for it. A lock's file is removed while the lock is held: who gets the
        lock of a removed file sees that it has no name any more, and starts over (`filelock` does).

        Raises:
            Unwritable: The folder takes no lock, or nothing can be set aside.
        """
        with ExitStack() as locks:
            for path, key in sorted({(self.path(spec, key), key) for spec, key in runs}):
                locks.enter_context(_locked(path))
                sweep(path)
                try:
                    _read(path, key)
                except ValueError as error:
                    _set_aside(path, str(error))
            yield

    def save(self, record: Record) -> Path:
        """Writes a record so that a reader sees the whole of it or nothing.

        Raises:
            Unwritable: The disk is full, or the folder read-only or gone.
        """
        path = self.path(record.spec, record.key)
        text = _text(record)
        try:
            write(path, text)
        except OSError as error:
            _log.error("this record cannot be written, so here it is whole:\n%s", text)
            raise Unwritable(f"record {path}", error) from None
        return path


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        ValueError: The file is not a whole record; the message names it and the first fault.
    """
    try:
        content = path.read_bytes()
        record = _ADAPTER.validate_json(content)
        json.dumps(json.loads(content), allow_nan=False)  # pydantic takes NaN and infinity where any value may stand
        return record
    except ValidationError as error:
        raise ValueError(f"{path} is not a record: {first(error)}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a record: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} is not a record: it cannot be read ({error.strerror})") from None


def _text(record: Record) -> str:
    """What a record's file holds.

    Raises:
        ValueError: It has a number that JSON has no word for.
    """
    return json.dumps(_ADAPTER.dump_python(record, mode="json"), indent=1, allow_nan=False) + "\n"


def _read(path: Path, key: str) -> Record | None:
    """The record of that key, which belongs there; None if no file is there.

    Raises:
        ValueError: As `read`, or it is of another run.
    """
    if not path.is_file():
        return None
    record = read(path)
    if record.key != key:
        raise ValueError(f"{path} holds the record of another run ({record.key[:16]})")
    return record


def _set_aside(path: Path, fault: str) -> None:
    """Renames a file that is no record, to a name that is free."""
    names = chain([".damaged"], (f".damaged-{number}" for number in count(2)))
    aside = next(free for name in names if not (free := Path(f"{path}{name}")).exists())
    try:
        path.rename(aside)
    except OSError as error:
        raise Unwritable(f"{fault}; its folder", error) from None
    _log.warning("%s: set aside as %s, and trained again", fault, aside.name)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of what is written there."""
    # Without the kernel's locks there is a kind that outlives a killed process: better none than that.
    lock = FileLock(f"{path}.lock", fallback_to_soft=False, poll_interval=0.2)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _log.warning("waiting for another process, which trains %s", path.stem)
            lock.acquire()
    except OSError as error:
        raise Unwritable(lock.lock_file, error) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
