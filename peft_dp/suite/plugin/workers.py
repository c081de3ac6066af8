"""Several workers of pytest-xdist: each gets its GPU and cores, the longest cells start first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from peft_dp import machine
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.plan import schedule, workload
from peft_dp.suite.plugin.session import KEY, open_records, worker_input


def pytest_configure(config: pytest.Config) -> None:
    """Have workers take one test at a time, and pytest-benchmark leave its file to us."""
    option = config.option
    if worker_input(config):
        config.workeroutput["peft_texts"] = config.stash[KEY].texts  # type: ignore[attr-defined]  # pytest-xdist's
    elif config.getoption("dist", "no") == "no":
        return
    for folder in filter(None, (option.peft_records, option.peft_data, option.peft_backbones)):
        if not str(folder).isprintable():  # pytest-xdist hands names to workers in UTF-8
            raise pytest.UsageError(f"-n takes no folder of an unprintable name, such as {str(folder)!r}: leave out -n")
    for name in ("save", "autosave", "compare"):
        if getattr(option, f"benchmark_{name}"):
            raise pytest.UsageError(f"--benchmark-{name} needs one process: leave out -n, or use --benchmark-json")
    option.benchmark_disable = True  # pytest-benchmark would do so itself, and warn
    option.maxschedchunk = config.getoption("maxschedchunk", None) or 1  # or a long cell waits behind another


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker per GPU, or per core: `pytest -n auto`."""
    return machine.default_workers()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Give each worker its GPU and its cores before it loads torch; who replaces a dead one gets the same."""
    if config.option.peft_records:  # refused here in one sentence, and not by each worker
        open_records(config)
    for index, spec in enumerate(specs):
        spec.env = machine.worker_environment(index, len(specs)) | spec.env


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker the folder of records."""
    node.workerinput["peft_records"] = str(node.config.stash[KEY].folder)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker has to print at the end."""
    node.config.stash[KEY].texts += getattr(node, "workeroutput", {}).get("peft_texts", [])


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Have several workers begin with the longest cells, and end with claims, which need the records of cells."""
    yield
    if not (worker := worker_input(config)):
        return

    def amount(item: pytest.Item) -> float:
        cell = item.callspec.params.get("cell") if hasattr(item, "callspec") else None
        return workload.flops(cell.spec) * len(cell.specs(config.option.peft_seeds)) if isinstance(cell, Cell) else 0.0

    last = [item for item in items if "check_claim" in getattr(item, "fixturenames", ())]
    first = sorted((item for item in items if item not in last), key=amount, reverse=True)
    items[:] = [*schedule.dealt(first, worker["workercount"]), *last]
