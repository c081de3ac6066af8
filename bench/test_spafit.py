"""SPAFIT (Arora, Wang): layer strata, frozen, bias, LoRA."""

from __future__ import annotations

import pytest

from peft_dp import cells, claims, facts


@pytest.mark.parametrize("fact", facts("spafit"), ids=str)
def test_facts(fact, check_fact):
    """Printed figures that need no training."""
    check_fact(fact)


@pytest.mark.parametrize("cell", cells("spafit/table2"), ids=str)
def test_table2(cell, check):
    """BERT-large on GLUE, the best run of a search over four rates."""
    check(cell)


@pytest.mark.parametrize("claim", claims("spafit", printed=True), ids=str)
def test_printed_claims(claim, check_printed):
    """What the paper states, of the numbers that it prints, or of our counts where it prints none."""
    check_printed(claim)


@pytest.mark.parametrize("claim", claims("spafit", printed=False), ids=str)
def test_claims(claim, check_claim):
    """What the paper states, of our runs."""
    check_claim(claim)
