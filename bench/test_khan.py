"""Khan and Scheder-Bieschin: four methods on DistilBERT, with and without DP-SGD."""

from __future__ import annotations

import pytest

from peft_dp import cells, claims, facts


@pytest.mark.parametrize("fact", facts("khan"), ids=str)
def test_facts(fact, check_fact):
    """Printed figures that need no training."""
    check_fact(fact)


@pytest.mark.parametrize("cell", cells("khan/figure3"), ids=str)
def test_figure3(cell, check):
    """DistilBERT on MNLI, QQP and SST-2: four methods, each with and without DP-SGD."""
    check(cell)


@pytest.mark.parametrize("cell", cells("khan/figure5"), ids=str)
def test_figure5(cell, check):
    """DistilBERT's shape and generated sequences: seconds of an epoch, with and without DP-SGD."""
    check(cell)


@pytest.mark.parametrize("claim", claims("khan", printed=True), ids=str)
def test_printed_claims(claim, check_printed):
    """What the paper states, of the numbers that it prints, or of our counts where it prints none."""
    check_printed(claim)


@pytest.mark.parametrize("claim", claims("khan", printed=False), ids=str)
def test_claims(claim, check_claim):
    """What the paper states, of our runs."""
    check_claim(claim)
