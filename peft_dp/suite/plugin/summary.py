"""What tests told of their cells, and the table of verdicts at the end of a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from peft_dp.records import read
from peft_dp.suite import papers
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.plugin import benchmarks
from peft_dp.suite.plugin.session import KEY, worker_input
from peft_dp.suite.report.export import to_markdown
from peft_dp.suite.report.table import headline, render_table
from peft_dp.suite.verdicts.cells import Verdict, judge_cell

TOLD = "peft-dp"
"""The property of a test that says what became of its cell."""
CLAIM = "peft-dp-claim"
"""The property of a test that holds a claim against records."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep a `Summary` in the process that prints: the only one, or the controller of pytest-xdist."""
    if not worker_input(config):
        config.pluginmanager.register(Summary(config))


class Summary:
    """The verdicts of a session.

    Attributes:
        config: The session's configuration.
        verdicts: Cell's id -> its verdict, by the last test of it: a repeated test has run no other cell.
        claims: Claims about records that hold, and those that were checked.
        benchmarks: Test's id -> its entry of the benchmark file, for what other processes ran.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.verdicts: dict[str, Verdict] = {}
        self.benchmarks: dict[str, dict[str, Any]] = {}
        self.claims = (0, 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Build the verdict of a cell from its records."""
        properties: dict[str, Any] = dict(report.user_properties) if report.when == "call" else {}
        if CLAIM in properties:
            self.claims = (self.claims[0] + report.passed, self.claims[1] + 1)
        told = properties.get(TOLD)
        if not told or told["cell"] not in self._cells:
            return
        cell = self._cells[told["cell"]]
        verdict = Verdict(cell=cell, reason=told["reason"])
        if told["records"]:
            held, records = self.config.stash[KEY], [read(Path(path)) for path in told["records"]]
            verdict = judge_cell(cell, records, held.baseline, held.places)
            if hasattr(report, "node"):
                self.benchmarks[report.nodeid] = benchmarks.entry(report, verdict)
        self.verdicts[cell.id] = verdict

    @cached_property
    def _cells(self) -> dict[str, Cell]:
        """The cells of the tests here; a controller collects none, and knows those of the tables."""
        return self.config.stash[KEY].cells or {cell.id: cell for cell in papers.cells()}

    def pytest_sessionfinish(self) -> None:
        """Write the benchmark file of what other processes ran."""
        if self.benchmarks and self.config.option.benchmark_json:
            benchmarks.write_file(self.config, [*self.benchmarks.values()])

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> Iterator[None]:
        """Print what benchmarks and verdicts have to say; on GitHub, add the verdicts to the job's summary."""
        yield
        config, verdicts = self.config, sorted(self.verdicts.values(), key=_place)
        texts = config.stash[KEY].texts
        if not (verdicts or texts):
            return
        writer = config.get_terminal_writer()
        terminalreporter.section("peft-dp")
        verbose, colour = config.get_verbosity() > 0, writer.hasmarkup
        for part in (
            *[f"{headline(verdicts, self.claims)}\n"] * bool(verdicts),
            *texts,
            render_table(verdicts, width=writer.fullwidth, verbose=verbose, colour=colour),
        ):
            terminalreporter.write_line(part)
        if any(verdict.records for verdict in verdicts):
            seconds = [epoch.seconds for verdict in verdicts for record in verdict.records for epoch in record.trail]
            terminalreporter.write_line(f"{sum(seconds):.0f} s of training; records: {config.stash[KEY].folder}")
        if verdicts and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
            try:
                with Path(summary).open("a", encoding="utf-8") as file:
                    file.write(to_markdown(verdicts))
            except OSError as error:
                terminalreporter.write_line(f"peft-dp: GITHUB_STEP_SUMMARY {summary} was not written: {error.strerror}")


def _place(verdict: Verdict) -> tuple[str, str, int, int]:
    """Where a cell stands in the tables: several workers end in any order."""
    table = verdict.cell.table
    return table.paper, table.table, table.rows.index(verdict.cell.row), list(table.tasks).index(verdict.cell.task)
