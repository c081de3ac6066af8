"""A paper's text as its extraction from a PDF gives it: its sections, and the tables in front of their captions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

PAPERS = {
    "khan": "seed-000.txt",
    "bitfit_plus": "seed-001.txt",
    "dp_bitfit": "seed-002.txt",
    "slash": "seed-003.txt",
    "spafit": "seed-004.txt",
}
"""Paper -> name of its text in the folder of texts."""
HEADING = re.compile(r"[#*\s]*(\d|[A-D])((?:\.\d+)*)\.?[*\s]+[A-Z\[*]")
CAPTION = re.compile(r"(?:Table|Figure) \d+:")
LONGEST_HEADING = 100
LONGEST_PART = 60
"""Characters of a line between the parts of a table, such as "(a) RoBERTa-large"; a longer one belongs to the text."""


@dataclass(frozen=True)
class Text:
    """The lines of a paper's text."""

    lines: list[str]

    @classmethod
    def of(cls, paper: str, folder: Path) -> Text:
        """Read a paper's text."""
        return cls((folder / PAPERS[paper]).read_text(encoding="utf-8").splitlines())

    def section(self, name: str) -> str:
        """Return the text of "abstract", of a section with those below it ("3", "B.1"), of a table or of a figure.

        A heading's number is higher than all before it: lines of lists that start with a number are none.
        """
        if name.startswith(("Table", "Figure")):
            at = self._caption(name)
            return "\n".join([*self._above(at), self.lines[at]])
        starts: list[tuple[str, int]] = [("front", 0)]
        last: tuple[int | str, ...] = ()
        for at, line in enumerate(self.lines):
            if "abstract" == re.sub(r"\W", "", line).lower():
                starts.append(("abstract", at))
            found = HEADING.match(line)
            if found and (len(line) <= LONGEST_HEADING or found[2].count(".") == 2):  # "3.2.1 Title. The text goes on
                numbers = tuple(int(n) for n in re.findall(r"\d+", found[2]))
                key = (found[1].isalpha(), found[1], *numbers)
                if key > last:
                    last = key
                    starts.append((found[1] + found[2], at))
        parts = pairwise([*starts, ("end", len(self.lines))])
        return "\n".join(
            "\n".join(self.lines[at:end])
            for (number, at), (_, end) in parts
            if number == name or number.startswith(f"{name}.")
        )

    def table(self, name: str) -> list[list[str]]:
        """Return the lines of a table in front of its caption, split at tabs, that end in a number or in a dash."""
        lines = [[part.strip() for part in line.split("\t")] for line in self._above(self._caption(name))]
        last = re.compile(r"-|[\d.]+( \\pm [\d.]+)?( \([\d.]+\))?")
        return [line for line in lines if len(line) > 1 and last.fullmatch(line[-1])]

    def _caption(self, name: str) -> int:
        return next(at for at, line in enumerate(self.lines) if line.startswith(f"{name}:"))

    def _above(self, caption: int) -> list[str]:
        at = caption
        while at and not CAPTION.match(line := self.lines[at - 1]) and ("\t" in line or len(line) <= LONGEST_PART):
            at -= 1
        return self.lines[at:caption]
