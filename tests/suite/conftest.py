"""Fixtures: a cell of a table made for the test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peft_dp import Spec
from peft_dp.spec import to_json
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.table import Expect, Row, Table

Make = Callable[..., Spec]
Scores = dict[str, dict[str, list[float]]]


@pytest.fixture
def cell(spec: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cell]:
    """Makes the cell of the first row of a table; every row of `recorded` is in it, "-dp" ones private."""

    def make(
        expect: dict[str, Expect] | None = None, recorded: Scores | None = None, differs: str = "", dev: int = 500
    ) -> Cell:
        rows = [
            Row(
                id=name,
                title=name,
                spec={"privacy": {"epsilon": 1.0, "delta": 0.1}} if name.endswith("-dp") else {},
                cells={"sentiment": expect or {}},
                differs=differs,
            )
            for name in recorded or {"row": {}}
        ]
        defaults = {name: value for name, value in to_json(spec(dev=dev)).items() if name not in ("task", "budget")}
        table = Table(
            paper="p",
            table="t",
            title="",
            source="",
            budget="smoke",
            defaults=defaults,
            tasks={"sentiment": {}},
            rows=rows,
        )
        monkeypatch.setattr(Cell, "recorded", recorded or {})
        return Cell(table=table, row=rows[0], task="sentiment")

    return make
