"""BitFit+ (Weng, Kerrigan, Yang): fine-tuning bias and gamma parameters."""

from __future__ import annotations

import pytest

from peft_dp import cells, claims, facts


@pytest.mark.parametrize("fact", facts("bitfit_plus"), ids=str)
def test_facts(fact, check_fact):
    """Printed figures that need no training."""
    check_fact(fact)


@pytest.mark.parametrize("cell", cells("bitfit_plus/figure3"), ids=str)
def test_figure3(cell, check):
    """BERT-base on CoLA, MRPC and RTE, one run a cell."""
    check(cell)


@pytest.mark.parametrize("cell", cells("bitfit_plus/figure7"), ids=str)
def test_figure7(cell, check):
    """The same, and the ablations: gammas, random biases, all biases but b_m2 and b_q."""
    check(cell)


@pytest.mark.parametrize("claim", claims("bitfit_plus", printed=True), ids=str)
def test_printed_claims(claim, check_printed):
    """What the paper states, of the numbers that it prints, or of our counts where it prints none."""
    check_printed(claim)


@pytest.mark.parametrize("claim", claims("bitfit_plus", printed=False), ids=str)
def test_claims(claim, check_claim):
    """What the paper states, of our runs."""
    check_claim(claim)
