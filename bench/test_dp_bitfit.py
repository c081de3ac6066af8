"""DP-BiTFiT (Bu, Wang, Zha, Karypis): private bias-only tuning at non-private cost."""

from __future__ import annotations

import pytest

from peft_dp import cells, claims, facts


@pytest.mark.parametrize("fact", facts("dp_bitfit"), ids=str)
def test_facts(fact, check_fact):
    """Printed figures that need no training."""
    check_fact(fact)


@pytest.mark.parametrize("cell", cells("dp_bitfit/comparison"), ids=str)
def test_comparison(cell, check):
    """RoBERTa-base on four tasks: what the paper's claims compare."""
    check(cell)


@pytest.mark.parametrize("cell", cells("dp_bitfit/efficiency"), ids=str)
def test_efficiency(cell, check):
    """RoBERTa-base's shape and generated sequences: bias tuning beside full fine-tuning, private and not."""
    check(cell)


@pytest.mark.parametrize("claim", claims("dp_bitfit", printed=True), ids=str)
def test_printed_claims(claim, check_printed):
    """What the paper states, of the numbers that it prints, or of our counts where it prints none."""
    check_printed(claim)


@pytest.mark.parametrize("claim", claims("dp_bitfit", printed=False), ids=str)
def test_claims(claim, check_claim):
    """What the paper states, of our runs."""
    check_claim(claim)
