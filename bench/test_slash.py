"""SLaSh and JR-WARP (Gupta, Galstyan, Ver Steeg): one trainable vector, projected to every layer."""

from __future__ import annotations

import pytest

from peft_dp import cells, claims, facts


@pytest.mark.parametrize("fact", facts("slash"), ids=str)
def test_facts(fact, check_fact):
    """Printed figures that need no training."""
    check_fact(fact)


@pytest.mark.parametrize("cell", cells("slash/table2"), ids=str)
def test_table2(cell, check):
    """RoBERTa-large on GLUE, five runs a cell."""
    check(cell)


@pytest.mark.parametrize("cell", cells("slash/table3"), ids=str)
def test_table3(cell, check):
    """RoBERTa-base on GLUE, five runs a cell."""
    check(cell)


@pytest.mark.parametrize("cell", cells("slash/table4"), ids=str)
def test_table4(cell, check):
    """BERT-base on named entities, one run a cell."""
    check(cell)


@pytest.mark.parametrize("cell", cells("slash/table5"), ids=str)
def test_table5(cell, check):
    """Time and memory with random weights on QNLI's lengths; the claims hold their ratios against the paper's."""
    check(cell)


@pytest.mark.parametrize("cell", cells("slash/table6"), ids=str)
def test_table6(cell, check):
    """Private and other training of both backbones on four GLUE tasks, five runs a cell."""
    check(cell)


@pytest.mark.parametrize("cell", cells("slash/table7"), ids=str)
def test_table7(cell, check):
    """RoBERTa-base on GLUE with the shift at three places, one run a cell."""
    check(cell)


@pytest.mark.parametrize("cell", cells("slash/table8"), ids=str)
def test_table8(cell, check):
    """RoBERTa-large on five GLUE tasks from three initialisations, one run a cell."""
    check(cell)


@pytest.mark.parametrize("cell", cells("slash/table9"), ids=str)
def test_table9(cell, check):
    """Both backbones on GLUE, read at the mask and at the first token, one run a cell."""
    check(cell)


@pytest.mark.parametrize("claim", claims("slash", printed=True), ids=str)
def test_printed_claims(claim, check_printed):
    """What the paper states, of the numbers that it prints, or of our counts where it prints none."""
    check_printed(claim)


@pytest.mark.parametrize("claim", claims("slash", printed=False), ids=str)
def test_claims(claim, check_claim):
    """What the paper states, of our runs."""
    check_claim(claim)
