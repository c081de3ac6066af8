"""The texts that faults edit are there: a fault that edits nothing would be seen only where the slow tests run."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from .faults import EXACT_FAULTS, FAULTS, LIBRARY_FAULTS

EDITS = {fault.name: fault.edits for fault in (*FAULTS, *LIBRARY_FAULTS)} | {
    name: edits for name, (edits, _) in EXACT_FAULTS.items()
}


def source(module: str) -> str:
    """The text of a module, which is not imported."""
    path: list[str] = sys.path
    for part in module.split(".")[:-1]:
        spec = PathFinder.find_spec(part, path)
        assert spec
        path = list(spec.submodule_search_locations or [])
    spec = PathFinder.find_spec(module.rpartition(".")[2], path)
    assert spec
    return Path(str(spec.origin)).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EDITS)
def test_texts(name: str) -> None:
    """Each text of a fault stands in its module."""
    for module, edits in EDITS[name].items():
        text = source(module)
        assert [old for old in edits if old not in text] == []
