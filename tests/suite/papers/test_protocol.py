"""Where each setting of a paper's row comes from: all are stated or assumed, and what is stated stands in the text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peft_dp.suite import papers
from peft_dp.suite.papers.protocol import settings
from peft_dp.suite.papers.reader import FOLDER

from .printed import PAPERS, Text


def plain(text: str) -> str:
    """Letters, digits and signs of a text, without what its typesetting adds."""
    text = re.sub(r"\\(?:times|cdot)", "x", text).replace("\u00d7", "x")
    return re.sub(r"[\s$\\{}*_~^]|text|mathrm|mathbf", "", text.replace("\u2212", "-").replace("\u2013", "-")).lower()


@pytest.mark.parametrize("paper", PAPERS)
def test_every_setting_has_an_origin(paper: str) -> None:
    """Every setting of every row of a paper is stated with its place, or assumed with a reason."""
    cells = [cell for cell in papers.cells() if cell.table.paper == paper]
    without = {(cell.id, name) for cell in cells for name in settings(cell.spec).keys() - cell.origins.keys()}

    assert cells
    assert not without


def test_no_origin_without_a_setting() -> None:
    """Every origin that a protocol or a table gives is of a setting that some row has."""
    used: dict[str, set[str]] = {}
    for cell in papers.cells():
        used.setdefault(cell.table.paper, set()).update(settings(cell.spec))
    for cell in papers.cells():
        assert not (cell.table.stated.keys() | cell.table.assumed.keys()) - used[cell.table.paper], cell.table.table
    for paper in PAPERS:
        held = papers.protocol.read_protocol(paper)
        assert not (held.stated.keys() | held.assumed.keys()) - used[paper], paper
    assert {path.parent.name for path in FOLDER.glob("*/protocol.json")} == {*PAPERS}


@pytest.mark.parametrize("paper", PAPERS)
def test_stated_is_printed(paper: str, texts: Path) -> None:
    """What is stated of a row's setting stands in the named section of the paper's text as it is given."""
    text = Text.of(paper, texts)
    stated = {
        (name, origin.section, origin.printed)
        for cell in papers.cells()
        if cell.table.paper == paper
        for name, origin in cell.stated.items()
    }

    assert stated
    assert not {one for one in stated if plain(str(one[2])) not in plain(text.section(one[1]))}
