"""Printed figures that need no training: parameter counts, percentages, noise multipliers."""

from __future__ import annotations

import re
from dataclasses import field, replace
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from peft_dp.spec import STRICT
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.reader import merged, read, unique
from peft_dp.validate import short

UNITS = {"K": 1e3, "M": 1e6, "%": 1.0}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Fact:
    """One printed figure that needs no training.

    Attributes:
        id: `table/row/quantity`.
        printed: As in the paper, with its unit: "101K", "0.09%", "0.643".
        quantity: The function of `measuring.facts` that computes it.
        given: That function's arguments.
        cut: Whether the paper cut the last digits off where others round.
        filled: Number of zeros at the end that only fill: 2 in an "800K" of one digit.
        differs: Why the printed figure cannot be right, with the arithmetic; the test is then expected to fail.
        note: What the paper leaves open, and what was decided.
        paper: Folder's name; filled in.
    """

    id: str
    printed: str
    quantity: Literal["parameters", "percent", "noise_multiplier"]
    given: dict[str, Any]
    cut: bool = False
    filled: int = 0
    differs: str = ""
    note: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"[0-9]+(\.[0-9]+)?[{''.join(UNITS)}]?", self.printed):
            units = ", ".join(UNITS)
            raise ValueError(f"printed must be a number, then nothing or a unit ({units}), not {short(self.printed)}")

    def __str__(self) -> str:
        """The pytest id."""
        return self.id.replace("/", "-")

    @property
    def address(self) -> str:
        """Its id among those of all papers."""
        return f"{self.paper}/{self.id}"

    @property
    def value(self) -> float:
        """The printed figure as a number: 101,000 of "101K", 0.09 of "0.09%"."""
        return float(self._number) * UNITS.get(self.printed[-1], 1.0)

    @property
    def _number(self) -> str:
        return self.printed.rstrip("".join(UNITS))

    def agrees(self, value: float) -> bool:
        """Whether a computed value, written as the paper writes, is what the paper prints."""
        step = 10.0 ** (self.filled - len(self._number.partition(".")[2]))
        over = (value - self.value) / UNITS.get(self.printed[-1], 1.0)
        return 0 <= over < step if self.cut else abs(over) <= step / 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Facts:
    """The facts of one paper.

    Attributes:
        source: The paper.
        defaults: Arguments common to all facts of that quantity.
        facts: The figures.
    """

    source: str
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: list[Fact]


def facts(paper: str | None = None) -> list[Fact]:
    """All facts, or those of one paper.

    Raises:
        ValueError: A file that does not hold facts; the message names it and the field.
    """
    found = []
    for path in reader.glob(f"{paper or '*'}/facts.json"):
        held: Facts = read(path, Facts)
        unique(path, [fact.id for fact in held.facts])
        for fact in held.facts:
            given = merged(held.defaults.get(fact.quantity, {}), fact.given)
            found.append(replace(fact, given=given, paper=path.parent.name))
    return found
