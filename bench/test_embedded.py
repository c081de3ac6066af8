"""What this project recorded on its embedded backbone: generated data (smoke) and real GLUE (small)."""

from __future__ import annotations

import pytest

from peft_dp import cells, claims


@pytest.mark.parametrize("cell", cells("embedded/smoke"), ids=str)
def test_smoke(cell, check):
    """MiniLM on generated English."""
    check(cell)


@pytest.mark.parametrize("cell", cells("embedded/libraries"), ids=str)
def test_libraries(cell, check):
    """Runs by this project's code, and the same through peft, Opacus and transformers' Trainer."""
    check(cell)


@pytest.mark.parametrize("cell", cells("embedded/libraries_small"), ids=str)
def test_libraries_small(cell, check):
    """The same pairs on real GLUE."""
    check(cell)


@pytest.mark.parametrize("cell", cells("embedded/small"), ids=str)
def test_small(cell, check):
    """MiniLM on real GLUE."""
    check(cell)


@pytest.mark.parametrize("claim", claims("embedded", printed=True), ids=str)
def test_printed_claims(claim, check_printed):
    """What papers state of counts, of those of the embedded backbone."""
    check_printed(claim)


@pytest.mark.parametrize("claim", claims("embedded", printed=False), ids=str)
def test_claims(claim, check_claim):
    """What papers state of real tasks, of the generated ones."""
    check_claim(claim)
