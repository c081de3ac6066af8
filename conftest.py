"""The bench as pytest sees it: options, markers, the `check` fixture, the table at the end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pytest

from peft_dp.expected import FOLDER, Cell, Claim, Fact
from peft_dp.expected import MARKERS as BUDGET_MARKERS
from peft_dp.places import Places
from peft_dp.records import Record, Records, Unwritable
from peft_dp.reporting.compare import Verdict, compare, judge
from peft_dp.reporting.export import to_markdown
from peft_dp.reporting.table import text
from peft_dp.validate import Missing

MARKERS = {
    "facts": "a printed figure that needs no training",
    "smoke": "a cell of the smoke budget: embedded backbone, generated data",
    "small": "a cell of the small budget: embedded backbone, real data (--peft-data or the hub)",
    "gpu": "a cell of the paper budget: the paper's backbone and data, on a CUDA device",
    "claims": "an ordering or ratio that a paper states",
    "speed": "a benchmark against peers",
    "slow": "takes more than a minute on two cores",
}
SELECTED = {"smoke": "not (small or gpu or speed or slow)", "small": "small", "paper": "gpu"}

places_key = pytest.StashKey[Places]()
records_key = pytest.StashKey[Records]()
verdicts_key = pytest.StashKey[list[Verdict]]()
texts_key = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of the bench."""
    group = parser.getgroup("peft-dp", "PEFT and DP benchmark")
    group.addoption(
        "--peft-budget", choices=tuple(SELECTED), default="smoke", help="what runs without -m (default: smoke)"
    )
    group.addoption("--peft-seeds", type=int, metavar="N", help="runs of each cell (default: as its table says)")
    group.addoption(
        "--peft-records",
        type=Path,
        metavar="DIR",
        help="keep records in DIR; cells whose record is there do not train again (default: a new folder in records/)",
    )
    group.addoption(
        "--peft-data", type=Path, metavar="DIR", help="real data, e.g. GLUE's official folders or parquet files"
    )
    group.addoption("--peft-backbones", type=Path, metavar="DIR", help="pretrained models, one folder each")
    group.addoption(
        "--peft-device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (default: auto)"
    )
    group.addoption(
        "--peft-strict", action="store_true", help="a cell that cannot run here fails instead of being skipped"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers markers, and refuses options that cannot work before anything starts."""
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    for folder in FOLDER.glob("*/"):
        config.addinivalue_line("markers", f"{folder.name}: cells of expected/{folder.name}")
    if not config.option.markexpr:
        config.option.markexpr = SELECTED[config.option.peft_budget]
    for option in ("peft_data", "peft_backbones"):
        folder = getattr(config.option, option)
        if folder is not None and not folder.is_dir():
            raise pytest.UsageError(f"--{option.replace('_', '-')} {folder} is not a folder")
    if config.option.peft_seeds is not None and config.option.peft_seeds < 1:
        raise pytest.UsageError(f"--peft-seeds must be at least 1, not {config.option.peft_seeds}")
    if config.option.peft_device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError(f"--peft-device cuda, but torch {torch.__version__} sees no CUDA device here")
    config.stash[verdicts_key] = []
    config.stash[texts_key] = []
    config.stash[places_key] = Places(
        data=config.option.peft_data, backbones=config.option.peft_backbones, device=config.option.peft_device
    )


def pytest_report_header(config: pytest.Config) -> str:
    """Says what is selected, and how to select more."""
    return f'peft-dp: -m "{config.option.markexpr}"'


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks a cell or a fact with its budget, its paper and its known difference."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if isinstance(cell := params.get("cell"), Cell):
        marks, differs = (BUDGET_MARKERS[cell.table.budget], cell.table.paper), cell.row.differs
    elif isinstance(fact := params.get("fact"), Fact):
        marks, differs = ("facts", fact.paper), fact.differs
    elif isinstance(claim := params.get("claim"), Claim):
        run = "check_claim" in item.fixturenames
        budget = claim.cells(claim.left)[0].table.budget
        marks = ("claims", claim.paper, *(BUDGET_MARKERS[budget],) * run)
        differs = claim.differs * (not run)
    else:
        return
    for mark in marks:
        item.add_marker(mark)
    if differs:
        item.add_marker(pytest.mark.xfail(reason=differs, strict=True, raises=AssertionError))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Opens the folder of records, if any cell is to run."""
    if session.config.option.collectonly or not any(
        "records_of" in getattr(i, "fixturenames", ()) for i in session.items
    ):
        return
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    folder = session.config.option.peft_records or session.config.rootpath / "records" / stamp
    try:
        session.config.stash[records_key] = Records(folder)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if session.config.pluginmanager.hasplugin("terminalreporter"):  # a worker of xdist has none
        logging.getLogger("peft_dp").addHandler(_Lines(session.config.pluginmanager))


class _Lines(logging.Handler):
    """Says a warning of the package when it happens, which pytest keeps for the tests that fail."""

    def __init__(self, plugins: pytest.PytestPluginManager) -> None:
        super().__init__(logging.WARNING)
        self._reporter, self._capture = map(plugins.getplugin, ("terminalreporter", "capturemanager"))

    def emit(self, record: logging.LogRecord) -> None:
        with self._capture.global_and_fixture_disabled():
            self._reporter.ensure_newline()
            self._reporter.write_line(f"peft-dp: {record.getMessage()}")


@contextmanager
def _terminal(config: pytest.Config) -> Iterator[TextIO | None]:
    """Where to draw a bar while pytest captures the output; None where no person looks."""
    if not config.get_terminal_writer().hasmarkup:
        yield None
        return
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        yield sys.stderr


@pytest.fixture
def records_of(request: pytest.FixtureRequest) -> Callable[[Cell], list[Record]]:
    """Loads or computes a cell's records."""
    config = request.config

    def run(cell: Cell) -> list[Record]:
        from peft_dp.reproduce import runs

        specs = cell.specs(config.option.peft_seeds)
        try:
            with _terminal(config) as bar:
                return runs(specs, config.stash[places_key], config.stash[records_key], bar)
        except FloatingPointError as error:
            pytest.fail(str(error), pytrace=False)
        except Unwritable as error:  # nor would any other cell's record find room
            pytest.exit(str(error), returncode=2)

    return run


@pytest.fixture
def check(
    request: pytest.FixtureRequest, benchmark: Any, records_of: Callable[[Cell], list[Record]]
) -> Callable[[Cell], None]:
    """Asserts that a cell's records agree with what is expected of it."""
    config = request.config

    def check(cell: Cell) -> None:
        try:
            records = benchmark.pedantic(records_of, args=(cell,), rounds=1, iterations=1)
        except Missing as missing:
            config.stash[verdicts_key].append(Verdict(cell=cell, reason=str(missing)))
            (pytest.fail if config.option.peft_strict else pytest.skip)(str(missing))
        verdict = compare(cell, records)
        config.stash[verdicts_key].append(verdict)
        benchmark.extra_info.update(
            cell=cell.id,
            verdict=verdict.status,
            values=[record.values for record in records],
            cost=[record.cost for record in records],
            ledger=[record.ledger for record in records],
            keys=[record.key for record in records],
        )
        assert not any(finding.status == "differs" for finding in verdict.findings), str(verdict)

    return check


@pytest.fixture
def check_claim(request: pytest.FixtureRequest, records_of: Callable[[Cell], list[Record]]) -> Callable[[Claim], None]:
    """Asserts that a claim holds of the records of its cells."""

    def check(claim: Claim) -> None:
        try:
            runs = {cell.id: records_of(cell) for side in claim.sides for cell in side if not cell.row.cited}
        except Missing as missing:
            needs = f"claim {claim.paper}/{claim.id}: {missing}"
            (pytest.fail if request.config.option.peft_strict else pytest.skip)(needs)
        finding = judge(claim, runs)
        assert finding.status != "differs", f"{claim.says} ({claim.paper}, section {claim.section}): {finding}"

    return check


@pytest.fixture
def check_printed() -> Callable[[Claim], None]:
    """Asserts that a claim holds of the numbers that its paper prints."""

    def check(claim: Claim) -> None:
        pairs = claim.printed() or []
        assert pairs
        assert claim.holds(pairs), f"{claim.says} (section {claim.section}): {pairs}"

    return check


@pytest.fixture
def check_fact() -> Callable[[Fact], None]:
    """Computes a fact and asserts that the paper prints it so."""

    def check(fact: Fact) -> None:
        from peft_dp.measuring import facts

        value = getattr(facts, fact.quantity)(**fact.given)
        assert fact.agrees(value), f"{fact.paper} {fact.id}: printed {fact.printed}, computed {value:,.10g}"

    return check


@pytest.fixture(scope="session")
def at_end(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Has a text printed at the end of the session."""
    return pytestconfig.stash[texts_key].append


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Adds versions and the GPU, which pytest-benchmark does not look for."""
    from peft_dp.measuring.environment import environment

    machine_info["peft_dp"] = environment()


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Iterator[None]:
    """Prints what benchmarks and verdicts have to say; on GitHub, adds the verdicts to the job's summary."""
    yield
    verdicts, texts = config.stash[verdicts_key], config.stash[texts_key]
    if not (verdicts or texts):
        return
    writer = config.get_terminal_writer()
    terminalreporter.section("peft-dp")
    verbose, colour = config.get_verbosity() > 0, writer.hasmarkup
    for part in (*texts, text(verdicts, width=writer.fullwidth, verbose=verbose, colour=colour)):
        terminalreporter.write_line(part)
    if any(verdict.records for verdict in verdicts):
        seconds = [epoch.seconds for verdict in verdicts for record in verdict.records for epoch in record.trail]
        terminalreporter.write_line(f"{sum(seconds):.0f} s of training; records: {config.stash[records_key].folder}")
    if verdicts and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(to_markdown(verdicts))
