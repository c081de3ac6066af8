"""Tables of one's own: `--peft-tables DIR`."""

from __future__ import annotations

import pytest

from peft_dp import cells

OWN = [cell for cell in cells() if cell.table.is_own]

if OWN:

    @pytest.mark.parametrize("cell", OWN, ids=lambda cell: cell.id)
    def test_tables(cell, check):
        """A row of one's own."""
        check(cell)
