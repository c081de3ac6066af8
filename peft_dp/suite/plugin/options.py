"""The options of the bench, and those that cannot work, refused before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from peft_dp import machine

BUDGETS = ("smoke", "small", "paper")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the bench."""
    group = parser.getgroup("peft-dp", "PEFT and DP benchmark")
    group.addoption("--peft-budget", choices=BUDGETS, default="smoke", help="what runs without -m (default: smoke)")
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
    group.addoption(
        "--peft-tables",
        type=Path,
        metavar="DIR",
        help="a folder of your own tables, as PAPER/TABLE.json, with your own methods/ and tasks/ (docs/own.md)",
    )
    group.addoption(
        "--peft-baseline",
        type=Path,
        metavar="DIR",
        help="a folder of earlier records: each run is also held to the one of its spec and seed there",
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


def check_options(config: pytest.Config) -> None:
    """Raise pytest.UsageError for a value that cannot work."""
    option = config.option
    if sys.flags.optimize:
        raise pytest.UsageError("Python runs without assertions, so that no test could fail: unset PYTHONOPTIMIZE")
    if getattr(option, "dist", "no") == "each":
        raise pytest.UsageError("--dist each would run every cell once per worker: leave it out, or take another")
    try:
        machine.worker_count()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    for name in ("peft_data", "peft_backbones", "peft_tables"):
        folder = getattr(option, name)
        if folder is not None and not folder.is_dir():
            raise pytest.UsageError(f"--{name.replace('_', '-')} {folder} is not a folder")
    if option.peft_seeds is not None and option.peft_seeds < 1:
        raise pytest.UsageError(f"--peft-seeds must be at least 1, not {option.peft_seeds}")
    if option.peft_collect and option.peft_records is None:
        raise pytest.UsageError("--peft-collect asserts records that are there: name their folder, --peft-records DIR")
    if option.peft_device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError(f"--peft-device cuda, but torch {torch.__version__} sees no CUDA device here")
