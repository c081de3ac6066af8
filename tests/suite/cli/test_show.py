"""`peft-dp show`: all that is known of a cell, a fact, a claim or a cited line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peft_dp import Record
from peft_dp.spec import to_json
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main
from peft_dp.suite.verdicts.cells import judge_cell

from .made_up import TABLE, add, shown


def test_show_fact(capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints a fact with its arithmetic and the test that checks it."""
    code = main(["show", "slash/table2/warp-20/parameters"])
    printed = capsys.readouterr().out

    assert code == 0
    assert "20 x 1,024 + 3,075 = 23,555" in " ".join(printed.split())
    assert 'pytest "bench/test_slash.py::test_facts[table2-warp-20-parameters]" -m facts' in printed


@pytest.mark.parametrize("cell", ["embedded/smoke/bitfit-dp/sentiment", "bitfit_plus/figure3/bitfit/rte"])
def test_show(cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints expectation, source, commands and the whole definition of a cell."""
    code = main(["show", cell])
    printed = capsys.readouterr().out
    paper, table, row, task = cell.split("/")

    assert code == 0
    assert f"peft-dp run {cell}" in printed
    assert f'pytest "bench/test_{paper}.py::test_{table}[{row}-{task}]" -m ' in printed
    assert papers.find(cell).table.source in " ".join(printed.split())
    assert to_json(papers.find(cell).spec) == json.loads(printed[printed.index("\n{") :])


def test_show_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """The cell with the longest texts of the project's own tables takes 50 lines at most."""
    longest = max(papers.cells(), key=lambda cell: len(cell.table.note + cell.row.differs))

    assert len(shown(longest.id, capsys)) <= 50


def test_show_band(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A printed score is shown with spread and runs, and the widths that one run and the table's seeds are held to."""
    add(tables)
    spread, best = (" ".join(shown(f"made/up/{row}/sentiment", capsys)) for row in ("spread", "best"))

    assert "printed score 70, std 2, mean of 5 runs" in spread
    # t(4, 0.95) = 2.132, t(4, 0.975) = 2.776 and t(4, 0.9995) = 8.610, times 2 sqrt(1/5 + 1/N), and half a step of
    # the table, 0.05; the margin is 1.96 sqrt(70 * 30 / 8) = 31.8 points, on eight dev examples, so amber comes first.
    words = "spread 2 over seeds, 4 degrees of freedom, runs 5 there and"
    assert f"band 70.00: reproduced within 6.13, amber beyond 6.13, differs beyond 18.9: {words} 1 here, " in spread
    assert f"70.00: reproduced within 4.11, amber beyond 4.11, differs beyond 12.6: {words} 3 here, " in spread
    assert "printed score 80.5, best of 4 runs on the scored data" in best
    # The largest of four standard normal values is 1.029 on average (tabled); the band is 2.776 times 2 sqrt(2).
    assert "band 78.44: reproduced within 7.9, amber beyond 7.9, differs beyond " in best


def test_show_loss(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss that `show` gives lies outside the band in 80 % of the draws it is computed for."""
    add(tables)
    found = re.search(
        r"a loss of ([0-9.]+) is seen with power 80%", " ".join(shown("made/up/spread/sentiment", capsys))
    )
    assert found
    draw = np.random.default_rng(0)
    theirs, ours = draw.normal(0, 2, (100_000, 5)).mean(1), draw.normal(-float(found[1]), 2, 100_000)
    spread = 2 * np.sqrt(draw.chisquare(4, 100_000) / 4)
    seen = (abs(theirs - ours) > 2.776 * spread * np.sqrt(1 / 5 + 1)).mean()

    # The error of 100,000 draws is 0.0013, and that of three digits is less.
    assert seen == pytest.approx(0.8, abs=0.006)


def test_show_is_what_is_judged(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `show` prints of one run is, word for word, what the verdict on a run says."""
    add(tables)
    for row in ("spread", "best"):
        cell = papers.find(f"made/up/{row}/sentiment")
        rest: dict[str, Any] = {"ledger": None, "trail": [], "cost": {}, "sources": {}, "environment": {}}
        verdict = judge_cell(cell, [Record(key="0" * 64, spec=cell.spec, values={"score": 0.0}, **rest)])
        (finding,) = verdict.findings

        assert finding.band in " ".join(shown(cell.id, capsys))
        assert finding.band in str(verdict)


def test_show_not_asserted(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number that no run must meet is shown as such, with its reason and without a band."""
    add(tables)
    lines = shown("made/up/shown/sentiment", capsys)

    assert "printed peak_bytes 15,600,000,000, shown, not asserted (15.6 GB)" in lines
    assert not any(line.startswith("band") for line in lines)


def test_show_cited(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cited cell is shown with where it is from and its number; it never runs, and so has no command."""
    add(tables)
    lines = shown("made/up/cited/sentiment", capsys)

    assert "cited made/up/cited/sentiment, never run" in lines
    assert "cited from Doe 2020" in lines
    assert "printed score 60" in lines
    assert "source a test" in lines
    assert not any("peft-dp run" in line or "pytest" in line for line in lines)


def test_show_claim(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A claim is shown as a sentence and a formula, with the paper's own numbers and the tests that check it."""
    add(tables)

    # 1.5 x 60 - 2 = 88.
    assert shown("made/claims/c1", capsys) == [
        "claim made/claims/c1",
        "says Best beats.",
        "section 2",
        "formula best score > 1.5 x cited score - 2 on sentiment of made/up",
        "printed sentiment: 80.5 > 88 does not hold",
        "needs nothing",
        'test pytest "bench/test_made.py::test_printed_claims[c1]" -m claims',
        'pytest "bench/test_made.py::test_claims[c1]" -m claims',
    ]


def test_show_claim_that_differs(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A claim that its paper's numbers contradict is shown with the difference, and is not held against runs."""
    add(tables, differs="70 < 80.5")
    lines = shown("made/claims/c2", capsys)

    assert "differs 70 < 80.5" in lines
    assert lines[-1] == 'test pytest "bench/test_made.py::test_printed_claims[c2]" -m claims'


def test_show_claim_of_a_number(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A claim against a number names it; where the paper prints nothing, only runs decide."""
    add(tables)
    lines = shown("made/claims/c3", capsys)

    assert "formula right peak_bytes < 9 on sentiment of made/up" in lines
    assert "printed no numbers that decide it" in lines
    assert lines[-1] == 'test pytest "bench/test_made.py::test_claims[c3]" -m claims'


@pytest.mark.parametrize(
    ("over", "words", "pairs"),
    [
        ("each", "on each of rte, cola of p/t", [("rte", 5.0, 4.0, "holds"), ("cola", 1.0, 2.0, "does not hold")]),
        ("mean", "on the mean over rte, cola of p/t", [("mean", 3.0, 3.0, "does not hold")]),
    ],
)
def test_show_claim_of_tasks(
    tables: Path, capsys: pytest.CaptureFixture[str], over: str, words: str, pairs: list[tuple[str, float, float, str]]
) -> None:
    """Each of several tasks has its pair, or their mean has one."""
    rows = [
        {"id": name, "title": name, "cited": "x", "cells": {task: {"score": {"value": value}} for task, value in cells}}
        for name, cells in (("a", [("rte", 5), ("cola", 1)]), ("b", [("rte", 4), ("cola", 2)]))
    ]
    claim = {"id": "c", "says": "s", "section": "1", "table": "t", "left": "a", "right": "b", "tasks": ["rte", "cola"]}
    claim |= {"over": over, "quantity": "score", "relation": ">"}
    (tables / "p").mkdir()
    table = TABLE | {"paper": "p", "table": "t", "tasks": {"rte": {}, "cola": {}}, "rows": rows}
    (tables / "p" / "t.json").write_text(json.dumps(table))
    (tables / "p" / "claims.json").write_text(json.dumps({"source": "x", "claims": [claim]}))
    text = " ".join(shown("p/claims/c", capsys))

    assert f"formula a score > b score {words}" in text
    assert "printed " + " ".join(f"{t}: {a:g} > {b:g} {verdict}" for t, a, b, verdict in pairs) in text


@pytest.mark.parametrize("name", [claim.address for claim in papers.claims()[::40]])
def test_show_own_claim(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Claims of the project's own files are shown on one screen."""
    lines = shown(name, capsys)

    assert lines[0] == f"claim {name}"
    assert len(lines) <= 50


def test_show_what_was_recorded(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints printed numbers with their reason, recorded scores, and what was assumed."""
    scores = {"right": {"sentiment": {"0": 50.0, "1": 62.5}}}
    (tables / "made" / "up.recorded.json").write_text(json.dumps({"blessings": [{"provenance": {}, "scores": scores}]}))
    main(["show", "made/up/right/sentiment"])
    printed = capsys.readouterr().out

    assert "trainable 338 +- 0 (counted by hand)" in printed
    assert "50.0, 62.5" in printed
    assert "epochs" in printed.split("{")[0]


def test_show_json(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show --json` is the line of `list` and all else of a cell, a cited cell or a claim, numbers as numbers."""
    add(tables, differs="70 < 80.5")
    main(["list", "--json"])
    listed = {line["id"]: line for line in json.loads(capsys.readouterr().out)}
    found = {}
    for name in ("made/up/spread/sentiment", "made/up/cited/sentiment", "made/claims/c2"):
        assert main(["show", name, "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)

    assert all(listed[name].items() <= data.items() for name, data in found.items())
    assert (70.0, 2.0) == tuple(found["made/up/spread/sentiment"]["printed"]["score"][key] for key in ("value", "std"))
    assert to_json(papers.find("made/up/spread/sentiment").spec) == found["made/up/spread/sentiment"]["spec"]
    assert "Doe 2020" == found["made/up/cited/sentiment"]["cited"]
    assert "70 < 80.5" == found["made/claims/c2"]["differs"]
