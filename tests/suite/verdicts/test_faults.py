"""One default run of one row sees a fault in the package or in a library, and names where the run parts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tabulate import tabulate

from peft_dp.suite import papers

from ...processes import ROOT
from .faults import EXACT_FAULTS, FAULTS, HOOK, LIBRARY_FAULTS, Fault

CODE = """
import json, sys
from peft_dp.machine import Places
from peft_dp.runs import runs
from peft_dp.suite import papers
from peft_dp.suite.verdicts.cells import judge_cell

cell = papers.find(sys.argv[1])
verdict = judge_cell(cell, runs(cell.specs(), Places(device="cpu")))
print(json.dumps([verdict.status, [[f.quantity, f.status, f.ours, f.band] for f in verdict.findings]]))
"""
EVERY = [*FAULTS, *LIBRARY_FAULTS]
CELLS = sorted({fault.cell for fault in EVERY})

pytestmark = pytest.mark.slow


def default_run(cell: str, folder: Path, edits: dict[str, dict[str, str]]) -> tuple[str, float, str]:
    """Run a cell as the default run does, with faults; return verdict, gap in bands, and what the replay says."""
    (folder / "sitecustomize.py").write_text(HOOK.format(edits=edits))
    path = f"{folder}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-c", CODE, cell],
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    status, findings = json.loads(done.stdout.splitlines()[-1])
    ((bands, says),) = [(ours, band) for quantity, _, ours, band in findings if quantity == "replay"]
    return status, bands, says


@pytest.fixture(scope="module")
def lines() -> Iterator[list[list[str]]]:
    """A line per fault, printed at the end for docs/verdicts.md."""
    made: list[list[str]] = []
    yield made
    if made:
        print("\n\n" + tabulate(made, ["fault", "row", "parts at", "bands"], tablefmt="github", disable_numparse=True))


@pytest.mark.parametrize("cell", CELLS)
def test_without_a_fault(cell: str, tmp_path: Path) -> None:
    """The same run of the unmodified text repeats its recording."""
    status, bands, says = default_run(cell, tmp_path, {})

    assert (status, bands <= 1) == ("reproduced", True), says


@pytest.mark.parametrize("fault", EVERY, ids=lambda fault: fault.name)
def test_fault(fault: Fault, tmp_path: Path, lines: list[list[str]]) -> None:
    """The cell is red, and what its replay names is the place that was written down before."""
    status, bands, says = default_run(fault.cell, tmp_path, fault.edits)
    place = re.search(r"parts from (?:its recording|our own run) at: (.+?)(?: by |;|$)", says)
    lines.append([fault.name, fault.row, place[1] if place else "nowhere", f"{bands:.3g}" if bands < 1e9 else "exact"])

    assert status == "differs", says
    assert place
    assert re.fullmatch(fault.place, place[1]), says


def test_every_row_is_recorded() -> None:
    """A fault's row has a recording to part from."""
    for cell in CELLS:
        assert papers.find(cell).runs


@pytest.mark.parametrize("name", EXACT_FAULTS)
def test_exact_fault(name: str, tmp_path: Path) -> None:
    """The exact check of a library fails, and no other kind of check is needed."""
    edits, words = EXACT_FAULTS[name]
    (tmp_path / "sitecustomize.py").write_text(HOOK.format(edits=edits))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "bench/test_libraries.py", "-q", "-k", words, "-p", "no:cacheprovider"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert done.returncode == 1, done.stdout[-2000:]
    assert "AssertionError" in done.stdout
