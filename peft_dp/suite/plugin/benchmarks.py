"""What the benchmark file says of a cell, and the file of several workers, which pytest-benchmark does not write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pytest

from peft_dp.measuring.environment import environment
from peft_dp.suite.verdicts.cells import Verdict


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-benchmark print no table of its own, unless it is asked to (`--benchmark-verbose`)."""
    config.option.benchmark_quiet = True


def extra_info(verdict: Verdict) -> dict[str, Any]:
    """Return what a benchmark file says of a cell: its verdict, and of each run values, cost, ledger and key."""
    return {
        "cell": verdict.cell.id,
        "verdict": verdict.status,
        "values": [record.values for record in verdict.records],
        "cost": [record.cost for record in verdict.records],
        "ledger": [record.ledger for record in verdict.records],
        "keys": [record.key for record in verdict.records],
    }


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add versions and the GPU, which pytest-benchmark does not look for."""
    machine_info["peft_dp"] = environment()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Name a cell, of which pytest-benchmark would write all that its table holds."""
    for entry in output_json["benchmarks"]:
        entry["params"] = entry["params"] and {name: str(value) for name, value in entry["params"].items()}


def entry(report: pytest.TestReport, verdict: Verdict) -> dict[str, Any]:
    """Return what a benchmark file holds of a test that another process ran: one round of one iteration."""
    seconds = report.duration
    whole = ("min", "max", "mean", "median", "q1", "q3", "ld15iqr", "hd15iqr", "total")
    none = ("stddev", "iqr", "stddev_outliers", "iqr_outliers")
    return {
        "group": None,
        "name": report.nodeid.rpartition("::")[2],
        "fullname": report.nodeid,
        "params": {"cell": str(verdict.cell)},
        "param": str(verdict.cell),
        "extra_info": extra_info(verdict),
        "options": {},
        "stats": dict.fromkeys(whole, seconds)
        | dict.fromkeys(none, 0)
        | {"outliers": "0;0", "rounds": 1, "iterations": 1, "ops": 1 / seconds, "data": [seconds]},
    }


def write_file(config: pytest.Config, entries: Sequence[dict[str, Any]]) -> None:
    """Write the file that `--benchmark-json` names, in the form that `pytest-benchmark compare` reads."""
    hook = config.hook
    machine_info = hook.pytest_benchmark_generate_machine_info(config=config)
    hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine_info)
    commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
    hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit_info)
    content = {
        "machine_info": machine_info,
        "commit_info": commit_info,
        "benchmarks": list(entries),
        "datetime": datetime.now(UTC).isoformat(),
        "version": version("pytest-benchmark"),
    }
    config.option.benchmark_json.write_text(json.dumps(content, indent=4), encoding="utf-8")
