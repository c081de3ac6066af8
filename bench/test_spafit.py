"""SPAFIT (Arora, Wang): layer strata, frozen, bias, LoRA."""

from __future__ import annotations

import pytest

from peft_dp import cells, facts


@pytest.mark.parametrize("fact", facts("spafit"), ids=str)
def test_facts(fact, check_fact):
    """Printed figures that need no training."""
    check_fact(fact)


@pytest.mark.parametrize("cell", cells("spafit/table2"), ids=str)
def test_table2(cell, check):
    """BERT-large on GLUE, the best run of a search over four rates."""
    check(cell)
