"""Fixtures that hold a cell, a claim or a fact against what is expected of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from peft_dp.records import Record, Unwritable
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.claim import Claim
from peft_dp.suite.papers.fact import Fact
from peft_dp.suite.plugin.benchmarks import extra_info
from peft_dp.suite.plugin.collected import Collected
from peft_dp.suite.plugin.session import KEY, RECORDS, terminal
from peft_dp.suite.plugin.summary import CLAIM, TOLD
from peft_dp.suite.verdicts.cells import Verdict, judge_cell
from peft_dp.suite.verdicts.claims import judge_claim
from peft_dp.validate import Missing, Unsupported


def _not_run(config: pytest.Config, why: str) -> None:
    """Skip a test that lacks something here, or fail it where the session is strict."""
    (pytest.fail if config.option.peft_strict else pytest.skip)(why)


@pytest.fixture
def records_of(request: pytest.FixtureRequest) -> Callable[[Cell], list[Record]]:
    """Load or compute a cell's records."""
    config = request.config

    def run(cell: Cell) -> list[Record]:
        from peft_dp.runs import runs

        specs, records = cell.specs(config.option.peft_seeds), config.stash[RECORDS]
        if isinstance(records, Collected):
            return records.of(specs)
        try:
            with terminal(config) as bar:
                return runs(specs, config.stash[KEY].places, records, bar)
        except FloatingPointError as error:
            pytest.fail(str(error), pytrace=False)
        except Unwritable as error:  # nor would any other cell's record find room
            request.session.shouldstop = str(error)
            raise pytest.fail.Exception("its record could not be written", pytrace=False) from None

    return run


@pytest.fixture
def check(
    request: pytest.FixtureRequest, benchmark: Any, records_of: Callable[[Cell], list[Record]]
) -> Callable[[Cell], None]:
    """Assert that a cell's records agree with what is expected of it."""
    config = request.config

    def tell(cell: Cell, paths: Sequence[Path], reason: str = "") -> None:
        told = {"cell": cell.id, "records": [str(path) for path in paths], "reason": reason}
        request.node.user_properties.append((TOLD, told))

    def check(cell: Cell) -> None:
        __tracebackhide__ = True  # the message says all
        try:
            cell.check_settings()
        except ValueError as error:
            pytest.fail(str(error), pytrace=False)
        try:
            records = benchmark.pedantic(records_of, args=(cell,), rounds=1, iterations=1)
        except Missing as missing:
            tell(cell, [], str(missing))
            _not_run(config, str(missing))
        except Unsupported as error:
            if cell.row.cannot and cell.row.cannot in str(error):
                tell(cell, [], str(error))
                return
            pytest.fail(f"{cell.id}: {error}", pytrace=False)
        if cell.row.cannot:
            why = f"its row says that it cannot, in the words {cell.row.cannot!r}"
            pytest.fail(f"{cell.id}: {cell.spec.implementation} runs it now, but {why}: take them out", pytrace=False)
        verdict = judge_cell(cell, records, config.stash[KEY].baseline, config.stash[KEY].places)
        tell(cell, [config.stash[RECORDS].path(record.spec, record.key) for record in records])
        benchmark.extra_info.update(extra_info(verdict))
        request.node.user_properties.extend(_properties(verdict))
        if any(finding.status == "differs" for finding in verdict.findings):
            raise AssertionError(str(verdict))

    return check


def _properties(verdict: Verdict) -> list[tuple[str, object]]:
    """Return what JUnit's file says of a cell beside the outcome."""
    score = verdict.finding("score")
    numbers = (
        (("score", score.ours), ("expected", score.expected), ("gap", score.ours - score.expected)) if score else ()
    )
    return [("verdict", verdict.status), *numbers]


@pytest.fixture
def check_claim(request: pytest.FixtureRequest, records_of: Callable[[Cell], list[Record]]) -> Callable[[Claim], None]:
    """Assert that a claim holds of the records of its cells."""

    def check(claim: Claim) -> None:
        __tracebackhide__ = True
        try:
            found = {cell.id: records_of(cell) for cell in claim.needed}
            request.node.user_properties.append((CLAIM, claim.address))
            finding = judge_claim(claim, found)
        except Missing as missing:
            _not_run(request.config, f"claim {claim.address}: {missing}")
        if finding.status == "differs":
            raise AssertionError(f"{claim.says} ({claim.address}, section {claim.section}): {finding}")

    return check


@pytest.fixture
def check_printed() -> Callable[[Claim], None]:
    """Assert that a claim holds of the numbers that its paper prints, or else of our counts."""

    def check(claim: Claim) -> None:
        __tracebackhide__ = True
        pairs = claim.printed() or claim.counted() or []
        if not (pairs and claim.holds(pairs)):
            raise AssertionError(f"{claim.says} (section {claim.section}): {pairs}")

    return check


@pytest.fixture
def check_fact() -> Callable[[Fact], None]:
    """Compute a fact and assert that the paper prints it so."""

    def check(fact: Fact) -> None:
        from peft_dp.suite.verdicts import facts

        __tracebackhide__ = True
        value = getattr(facts, fact.quantity)(**fact.given)
        if not fact.agrees(value):
            raise AssertionError(f"{fact.paper} {fact.id}: printed {fact.printed}, computed {value:,.10g}")

    return check


@pytest.fixture(scope="session")
def at_end(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Have a text printed at the end of the session."""
    return pytestconfig.stash[KEY].texts.append
