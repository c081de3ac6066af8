"""The page on the papers is the one that their data give."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_dp.suite import papers
from peft_dp.suite.papers.page import page

PAGE = Path(__file__).parents[3] / "docs" / "papers.md"


def test_page_is_current() -> None:
    """docs/papers.md holds what `expected/` says today."""
    assert page() == PAGE.read_text(encoding="utf-8"), "run: python -m peft_dp.suite.papers.page docs/papers.md"


@pytest.mark.parametrize("paper", ["bitfit_plus", "dp_bitfit", "khan", "slash", "spafit"])
def test_every_known_difference_is_shown(paper: str) -> None:
    """The arithmetic of each figure and claim that cannot hold stands in the paper's part."""
    part = page().partition(f"## {paper}\n")[2].partition("\n## ")[0]
    facts, claims = papers.facts(paper), papers.claims(paper)
    differs = [one.differs for one in facts if one.differs] + [one.differs for one in claims if one.differs]

    assert part
    assert not [why for why in differs if why not in part]
