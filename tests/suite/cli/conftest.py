"""A made-up table in place of the project's own, and where its runs go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peft_dp import Places
from peft_dp.measuring import environment

from .made_up import TABLE


@pytest.fixture
def tables(tables: Path) -> Path:
    """One table of two cells on the tiny backbone, in place of the project's own."""
    (tables / "made").mkdir()
    (tables / "made" / "up.json").write_text(json.dumps(TABLE))
    return tables


@pytest.fixture
def here(places: Places, tmp_path: Path) -> list[str]:
    """Arguments that say where the tiny backbone is and where records go."""
    return ["--backbones", str(places.backbones), "--records", str(tmp_path / "records"), "--device", "cpu"]


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool | None], None]]:
    """Says whether the package's checkout has changes; None for no checkout."""

    def say(dirty: bool | None) -> None:
        monkeypatch.setattr(environment, "_git", lambda folder: {"revision": "0" * 40, "dirty": dirty})
        environment.environment.cache_clear()

    yield say
    environment.environment.cache_clear()
