"""One quantity of one cell, or one claim: what is expected, what was found, and how far apart the two may be."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

Status = Literal[
    "reproduced",
    "consistent",
    "undecided",
    "no expectation",
    "amber",
    "differs",
    "known difference",
    "cannot run",
    "not run",
]

MARKS = {"reproduced": "ok   ", "consistent": "ok   ", "undecided": "ok ? ", "amber": "amber", "differs": "OFF  "}

USEFUL = 5.0
"""Points of a score: a run that would not have shown so much decides nothing."""
REPLAY = "replay"
"""The finding on a run beside the recorded run of its seed; counted in bands."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One quantity of one cell.

    Attributes:
        quantity: Its name.
        expected: What the paper prints or the mean of what was recorded.
        ours: Mean over our runs.
        allowed: Largest difference that is no failure.
        unusual: Smallest difference worth a word.
        at_least: Whether only falling short counts.
        unsure: How far the true difference may lie beyond the one seen, one-sided at 5 %.
        margin: Difference within which the two count as equal.
        unseen: Difference that would be seen with power 80 %; 0 where the question does not arise.
        band: The widths in words, how they came about, and what they can see.
    """

    quantity: str
    expected: float
    ours: float
    allowed: float
    unusual: float
    at_least: bool = False
    unsure: float = 0.0
    margin: float = inf
    unseen: float = 0.0
    band: str = ""

    @property
    def status(self) -> Status:
        """Where our number lies."""
        over = self.ours - self.expected
        gap = -over if self.at_least else abs(over)
        if not gap <= self.allowed:  # so that a gap that is not a number differs
            return "differs"
        if gap > self.unusual:
            return "amber"
        if gap + self.unsure <= self.margin:
            return "reproduced"
        return "consistent" if self.unseen <= USEFUL else "undecided"

    @property
    def repeats(self) -> bool:
        """Whether it says that runs repeat recorded ones."""
        return self.quantity == REPLAY and self.allowed < inf and self.status == "reproduced"

    def __str__(self) -> str:
        if self.quantity == REPLAY:
            return f"{MARKS[self.status]} replay: {self.band}"
        return (
            f"{MARKS[self.status]} {self.quantity}: expected {'at least ' * self.at_least}{self.expected:.6g}, "
            f"ours {self.ours:.6g}, gap {self.ours - self.expected:+.3g}, "
            + (self.band or f"allowed {self.allowed:.3g}")
        )
