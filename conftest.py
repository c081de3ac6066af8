"""The bench as pytest sees it: options, markers, the `check` fixture, the table at the end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from peft_dp import machine
from peft_dp.machine import Places
from peft_dp.records import Record, Records, Unwritable, read
from peft_dp.suite import papers
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.claim import Claim
from peft_dp.suite.papers.fact import Fact
from peft_dp.suite.papers.reader import FOLDER
from peft_dp.suite.papers.table import MARKERS as BUDGET_MARKERS
from peft_dp.suite.plan import schedule, workload
from peft_dp.suite.plugin.collected import Collected
from peft_dp.suite.report.export import to_markdown
from peft_dp.suite.report.table import render_table
from peft_dp.suite.verdicts.cells import Verdict, judge_cell
from peft_dp.suite.verdicts.claims import judge_claim
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
TOLD = "peft-dp"
"""The property of a test that says what became of its cell."""
SELECTED = {"smoke": "not (small or gpu or speed or slow)", "small": "small", "paper": "gpu"}

places_key = pytest.StashKey[Places]()
records_key = pytest.StashKey[Records | Collected]()
folder_key = pytest.StashKey[Path]()
cells_key = pytest.StashKey[dict[str, Cell]]()
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
    group.addoption(
        "--peft-collect", action="store_true", help="train nothing: assert what lies in --peft-records, on any machine"
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
    if config.option.peft_collect and config.option.peft_records is None:
        raise pytest.UsageError("--peft-collect asserts records that are there: name their folder, --peft-records DIR")
    if config.option.peft_device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError(f"--peft-device cuda, but torch {torch.__version__} sees no CUDA device here")
    config.stash[cells_key] = {}
    config.stash[texts_key] = []
    if worker := _is_worker(config):
        config.stash[folder_key] = Path(config.workerinput["peft_records"])
        config.workeroutput["peft_texts"] = config.stash[texts_key]
    else:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
        config.stash[folder_key] = config.option.peft_records or config.rootpath / "records" / stamp
        config.pluginmanager.register(_Summary(config))
    if worker or config.getoption("dist", "no") != "no":
        # pytest-benchmark would do so itself, and warn; `_Summary` has it write what workers ran.
        config.option.benchmark_disable = True
        # Or a long cell would wait in line behind another.
        config.option.maxschedchunk = config.getoption("maxschedchunk", None) or 1
    config.stash[places_key] = Places(
        data=config.option.peft_data, backbones=config.option.peft_backbones, device=config.option.peft_device
    )


def _is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of several of pytest-xdist, which print nothing."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker a GPU, or a core: `pytest -n auto`."""
    return machine.default_workers()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Gives each worker its GPU and its cores before it loads torch; who replaces a dead one gets the same."""
    if config.option.peft_records:  # refused here in one sentence, and not by each worker
        _open(config)
    for index, spec in enumerate(specs):
        spec.env = machine.worker_environment(index, len(specs)) | spec.env


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells a worker the folder of records."""
    node.workerinput["peft_records"] = str(node.config.stash[folder_key])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes over what a worker has to print at the end."""
    node.config.stash[texts_key] += getattr(node, "workeroutput", {}).get("peft_texts", [])


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Has several workers begin with the longest cells, and end with claims, which need the records of cells."""
    yield
    if not _is_worker(config):
        return

    def amount(item: pytest.Item) -> float:
        cell = item.callspec.params.get("cell") if hasattr(item, "callspec") else None
        return workload.flops(cell.spec) * len(cell.specs(config.option.peft_seeds)) if isinstance(cell, Cell) else 0.0

    last = [item for item in items if "check_claim" in getattr(item, "fixturenames", ())]
    first = sorted((item for item in items if item not in last), key=amount, reverse=True)
    items[:] = [*schedule.dealt(first, config.workerinput["workercount"]), *last]


def pytest_report_header(config: pytest.Config) -> str:
    """Says what is selected, and how to select more."""
    return f'peft-dp: -m "{config.option.markexpr}"'


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks a cell or a fact with its budget, its paper and its known difference."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if isinstance(cell := params.get("cell"), Cell):
        item.config.stash[cells_key][cell.id] = cell
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
    logging.getLogger("peft_dp").addHandler(_Lines(session.config.pluginmanager))
    _open(session.config)


def _open(config: pytest.Config) -> None:
    kind = Collected if config.option.peft_collect else Records
    try:
        config.stash[records_key] = kind(config.stash[folder_key])
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


class _Lines(logging.Handler):
    """Says a warning of the package when it happens, which pytest keeps for the tests that fail."""

    def __init__(self, plugins: pytest.PytestPluginManager) -> None:
        super().__init__(logging.WARNING)
        self._reporter, self._capture = map(plugins.getplugin, ("terminalreporter", "capturemanager"))

    def emit(self, record: logging.LogRecord) -> None:
        with self._capture.global_and_fixture_disabled():
            self._reporter.ensure_newline()
            # A worker's standard output goes nowhere.
            print(f"peft-dp: {record.getMessage()}", file=sys.stderr)


@contextmanager
def _terminal(config: pytest.Config) -> Iterator[TextIO | None]:
    """Where to draw a bar while pytest captures the output; None where no person looks."""
    if _is_worker(config) or not config.get_terminal_writer().hasmarkup:
        yield None
        return
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        yield sys.stderr


@pytest.fixture
def records_of(request: pytest.FixtureRequest) -> Callable[[Cell], list[Record]]:
    """Loads or computes a cell's records."""
    config = request.config

    def run(cell: Cell) -> list[Record]:
        from peft_dp.runs import runs

        specs, records = cell.specs(config.option.peft_seeds), config.stash[records_key]
        if isinstance(records, Collected):
            return records.of(specs)
        try:
            with _terminal(config) as bar:
                return runs(specs, config.stash[places_key], records, bar)
        except FloatingPointError as error:
            pytest.fail(str(error), pytrace=False)
        except Unwritable as error:  # nor would any other cell's record find room
            request.session.shouldstop = str(error)
            raise pytest.fail.Exception("its record could not be written", pytrace=False) from None

    return run


def _extra(verdict: Verdict) -> dict[str, Any]:
    """What a benchmark file says of a cell."""
    return {
        "cell": verdict.cell.id,
        "verdict": verdict.status,
        "values": [record.values for record in verdict.records],
        "cost": [record.cost for record in verdict.records],
        "ledger": [record.ledger for record in verdict.records],
        "keys": [record.key for record in verdict.records],
    }


@pytest.fixture
def check(
    request: pytest.FixtureRequest, benchmark: Any, records_of: Callable[[Cell], list[Record]]
) -> Callable[[Cell], None]:
    """Asserts that a cell's records agree with what is expected of it."""
    config = request.config

    def tell(cell: Cell, paths: Sequence[Path], reason: str = "") -> None:
        told = {"cell": cell.id, "records": [str(path) for path in paths], "reason": reason}
        request.node.user_properties.append((TOLD, told))

    def check(cell: Cell) -> None:
        __tracebackhide__ = True  # the message says all
        try:
            records = benchmark.pedantic(records_of, args=(cell,), rounds=1, iterations=1)
        except Missing as missing:
            tell(cell, [], str(missing))
            (pytest.fail if config.option.peft_strict else pytest.skip)(str(missing))
        verdict = judge_cell(cell, records)
        tell(cell, [config.stash[records_key].path(record.spec, record.key) for record in records])
        benchmark.extra_info.update(_extra(verdict))
        if any(finding.status == "differs" for finding in verdict.findings):
            raise AssertionError(str(verdict))

    return check


@pytest.fixture
def check_claim(request: pytest.FixtureRequest, records_of: Callable[[Cell], list[Record]]) -> Callable[[Claim], None]:
    """Asserts that a claim holds of the records of its cells."""

    def check(claim: Claim) -> None:
        __tracebackhide__ = True
        try:
            finding = judge_claim(claim, {cell.id: records_of(cell) for cell in claim.needed})
        except Missing as missing:
            needs = f"claim {claim.address}: {missing}"
            (pytest.fail if request.config.option.peft_strict else pytest.skip)(needs)
        if finding.status == "differs":
            raise AssertionError(f"{claim.says} ({claim.address}, section {claim.section}): {finding}")

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
        from peft_dp.suite.verdicts import facts

        __tracebackhide__ = True
        value = getattr(facts, fact.quantity)(**fact.given)
        if not fact.agrees(value):
            raise AssertionError(f"{fact.paper} {fact.id}: printed {fact.printed}, computed {value:,.10g}")

    return check


@pytest.fixture(scope="session")
def at_end(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Has a text printed at the end of the session."""
    return pytestconfig.stash[texts_key].append


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Adds versions and the GPU, which pytest-benchmark does not look for."""
    from peft_dp.measuring.environment import environment

    machine_info["peft_dp"] = environment()


class _Summary:
    """What tests told of their cells, in the process that prints it: the only one, or the controller of pytest-xdist.

    Attributes:
        config: Of the session.
        verdicts: One a cell.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.verdicts: list[Verdict] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Builds the verdict of a cell from its records."""
        told = dict(report.user_properties).get(TOLD) if report.when == "call" else None
        if not told or told["cell"] not in self._cells:
            return
        cell = self._cells[told["cell"]]
        verdict = Verdict(cell=cell, reason=told["reason"])
        if told["records"]:
            verdict = judge_cell(cell, [read(Path(path)) for path in told["records"]])
            if hasattr(report, "node"):
                self._benchmark(report, verdict)
        self.verdicts.append(verdict)

    @cached_property
    def _cells(self) -> dict[str, Cell]:
        """Those of the tests here; a controller collects none, and knows those of the tables."""
        return self.config.stash[cells_key] or {cell.id: cell for cell in papers.cells()}

    def _benchmark(self, report: pytest.TestReport, verdict: Verdict) -> None:
        """Gives pytest-benchmark what it would have measured, had the test run in this process: one round."""
        session = self.config._benchmarksession
        called = SimpleNamespace(id=str(verdict.cell), params={"cell": verdict.cell})
        node = SimpleNamespace(name=report.nodeid.rpartition("::")[2], nodeid=report.nodeid, callspec=called)
        made = BenchmarkFixture(
            node, add_stats=session.benchmarks.append, logger=None, warner=None, disabled=False, **session.options
        )
        made.extra_info = _extra(verdict)
        made._make_stats(iterations=1).update(report.duration)

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> Iterator[None]:
        """Prints what benchmarks and verdicts have to say; on GitHub, adds the verdicts to the job's summary."""
        yield
        verdicts, texts = sorted(self.verdicts, key=_place), config.stash[texts_key]
        if not (verdicts or texts):
            return
        writer = config.get_terminal_writer()
        terminalreporter.section("peft-dp")
        verbose, colour = config.get_verbosity() > 0, writer.hasmarkup
        for part in (*texts, render_table(verdicts, width=writer.fullwidth, verbose=verbose, colour=colour)):
            terminalreporter.write_line(part)
        if any(verdict.records for verdict in verdicts):
            seconds = [epoch.seconds for verdict in verdicts for record in verdict.records for epoch in record.trail]
            terminalreporter.write_line(f"{sum(seconds):.0f} s of training; records: {config.stash[folder_key]}")
        if verdicts and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(to_markdown(verdicts))


def _place(verdict: Verdict) -> tuple[str, str, int, int]:
    """Where a cell stands in the tables: several workers end in any order."""
    table = verdict.cell.table
    return table.paper, table.table, table.rows.index(verdict.cell.row), list(table.tasks).index(verdict.cell.task)
