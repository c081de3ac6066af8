"""A folder of records as verdicts: what a session prints, without running anything."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from peft_dp import code
from peft_dp.records import Record, read
from peft_dp.suite import papers
from peft_dp.suite.verdicts.cells import Verdict, judge_cell, lacking

WHOLE = ("score", "epoch_seconds", "peak_bytes")
"""Quantities that every run measures."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a folder of records holds.

    Attributes:
        path: The folder.
        verdicts: One per cell that has records, in the order of the tables; a seed that ran more than once counts once,
            see `read_records`.
        others: Records of what is no cell: rows on another backbone or task, or of tables since changed.
        damaged: Files that are no records and cells that cannot be judged, each with what is wrong.
        differing: Runs of which several records differ, each with the file that counts.
    """

    path: Path
    verdicts: Sequence[Verdict]
    others: Sequence[Record]
    damaged: Sequence[str]
    differing: Sequence[str]


def read_baseline(folder: Path) -> dict[str, Record]:
    """Return digest of the spec -> record, of every run in a folder.

    Raises:
        ValueError: There is no such folder, or no record in it.
    """
    return {record.spec.digest: record for record in read_records(folder)[0].values()}


def read_folder(folder: Path, baseline: Mapping[str, Record] | None = None) -> Folder:
    """Read every record under a folder and hold it against its cell, and against a baseline where one is given.

    Raises:
        ValueError: There is no such folder, or no record in it.
    """
    records, damaged = read_records(folder)
    files = {id(record): path for path, record in records.items()}
    alike = by_spec(list(records.values())).items()
    runs = {digest: {record.spec.seed: record for record in some} for digest, some in alike}
    verdicts = []
    known = set()
    for cell in papers.cells():
        digest = cell.spec.seeded(0).digest
        if of_cell := runs.get(digest):
            known.add(digest)
            some = [of_cell[seed] for seed in sorted(of_cell)]
            faults = [f"{files[id(one)]}: {fault}" for one in some if (fault := lacking(cell, one))]
            if faults:  # the other cells are still judged
                damaged += faults
            else:
                verdicts.append(judge_cell(cell, some, baseline))
    others = [record for digest, seeds in runs.items() if digest not in known for record in seeds.values()]
    return Folder(path=folder, verdicts=verdicts, others=others, damaged=damaged, differing=_differing(records))


def read_records(folder: Path) -> tuple[dict[Path, Record], list[str]]:
    """Return every record under a folder with its file, and what is wrong with files that are none.

    Where one run has several records, the one that counts comes last: one that the source files here would make again
    before one of other code, then the newest. A date that is still to come is no date.

    Raises:
        ValueError: There is no such folder, or no record in it.
    """
    if not os.path.isdir(folder):  # where `Path.is_dir` raises for a name that is too long
        raise ValueError(f"{folder} is not a folder: give the one that a session named as its records")
    records: dict[Path, Record] = {}
    damaged: list[str] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            if not path.is_file():  # reading a pipe would wait for ever
                raise ValueError(f"{path} is no file")
            record = read(path)
            if absent := [name for name in WHOLE if name not in record.values | record.cost]:
                raise ValueError(f"{path} is not the record of a whole run: it has no {absent[0]}")
            if min(record.cost.values()) <= 0:
                raise ValueError(f"{path} is not the record of a whole run: it cost nothing")
            records[path] = record
        except ValueError as error:
            damaged.append(str(error))
    if not records:
        whole = f", but {len(damaged)} damaged: {damaged[0]}" if damaged else ""
        raise ValueError(f"{folder} holds no whole record{whole}")
    now = datetime.now(UTC).isoformat()

    def rank(one: tuple[Path, Record]) -> tuple[bool, str]:
        date = str(one[1].environment.get("date", ""))
        return is_current(one[1]), date if date <= now else ""

    return dict(sorted(records.items(), key=rank)), damaged


def is_current(record: Record) -> bool:
    """Return whether the source files that the run used are what they were."""
    try:
        return record.sources.get("code") == code.sha256(record.spec)
    except (ValueError, OSError):  # its method or task is none any more, or never was a name of a file
        return False


def _differing(records: Mapping[Path, Record]) -> list[str]:
    """Return a sentence for each run of which several records differ in more than time, memory and key."""
    runs: dict[str, list[tuple[Path, Record]]] = defaultdict(list)
    for path, record in records.items():
        runs[record.spec.digest].append((path, record))
    found = []
    for some in runs.values():
        if len(some) == 1:
            continue
        results = [record.result() | {"key": ""} for _, record in some]
        if any(result != results[0] for result in results):
            path, record = some[-1]
            other = next(some[at][0] for at in reversed(range(len(some))) if results[at] != results[-1])
            what = f"{record.spec.method} on {record.spec.task}, seed {record.spec.seed}"
            scores = ", ".join(sorted({f"{one.values['score']:.2f}" for _, one in some}))
            found.append(f"{what}: {len(some)} records differ (scores {scores}); {path} counts, {other} does not")
    return found


def by_spec(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return digest of the spec of seed 0 -> its records, in their order."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[record.spec.seeded(0).digest].append(record)
    return found
