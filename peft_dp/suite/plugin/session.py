"""What the tests of one session share: places, the folder of records, what is said at the end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pytest

from peft_dp.machine import Places
from peft_dp.records import Record, Records
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.plugin.collected import Collected
from peft_dp.suite.plugin.options import check_options
from peft_dp.suite.verdicts.folder import read_baseline


@dataclass(kw_only=True)
class Session:
    """What the tests of one session share.

    Attributes:
        places: Where data and backbones are, and the device.
        folder: The folder of records.
        cells: Cell's id -> cell, of the tests that were collected.
        texts: What tests have printed at the end.
        baseline: Digest of a spec -> an earlier run; None without a baseline.
    """

    places: Places
    folder: Path
    cells: dict[str, Cell] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    baseline: dict[str, Record] | None = None


KEY = pytest.StashKey[Session]()
RECORDS = pytest.StashKey[Records | Collected]()
"""The folder of records, opened if a cell or a claim is to run."""


def worker_input(config: pytest.Config) -> dict[str, Any] | None:
    """Return what pytest-xdist's controller told this process, which prints nothing; None if it is no worker."""
    told: dict[str, Any] | None = getattr(config, "workerinput", None)
    return told


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot work, and make the session's `Session`."""
    option = config.option
    check_options(config)
    try:
        reader.check_folder()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if worker := worker_input(config):
        folder = Path(worker["peft_records"])
    else:
        folder = option.peft_records or config.rootpath / "records" / datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    places = Places(data=option.peft_data, backbones=option.peft_backbones, device=option.peft_device)
    try:
        baseline = read_baseline(option.peft_baseline) if option.peft_baseline else None
    except ValueError as error:
        raise pytest.UsageError(f"--peft-baseline: {error}") from None
    config.stash[KEY] = Session(places=places, folder=folder, baseline=baseline)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Open the folder of records, if any cell is to run."""
    config = session.config
    if not config.option.collectonly and any("records_of" in getattr(i, "fixturenames", ()) for i in session.items):
        logging.getLogger("peft_dp").addHandler(_Lines(config))
        open_records(config)


def open_records(config: pytest.Config) -> None:
    """Open the folder of records.

    Raises:
        pytest.UsageError: It cannot be written to, or holds nothing to collect.
    """
    kind = Collected if config.option.peft_collect else Records
    try:
        config.stash[RECORDS] = kind(config.stash[KEY].folder)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


@contextmanager
def terminal(config: pytest.Config) -> Iterator[TextIO | None]:
    """Give a bar the terminal while pytest captures the output; None where no person looks."""
    if worker_input(config) or not config.get_terminal_writer().hasmarkup:
        yield None
        return
    with uncaptured(config):
        yield sys.stderr


def uncaptured(config: pytest.Config) -> AbstractContextManager[None]:
    """Return a context within which output goes to the terminal, not to the report of a test."""
    manager: Any = config.pluginmanager.getplugin("capturemanager")
    return manager.global_and_fixture_disabled() if manager else nullcontext()


class _Lines(logging.Handler):
    """Prints a warning of the package when it is given: pytest would keep it for the tests that fail."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(logging.WARNING)
        self._config = config

    def emit(self, record: logging.LogRecord) -> None:
        with uncaptured(self._config):
            self._config.pluginmanager.getplugin("terminalreporter").ensure_newline()
            # A worker's standard output goes nowhere.
            print(f"peft-dp: {record.getMessage()}", file=sys.stderr)
