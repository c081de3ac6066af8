"""One thing that `doctor` looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "fetched", "missing", "note"]
"""Here; fetched from the hub by the first run that needs it; missing; or wanting, though no cell needs it."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        kind: "python", "packages", "GPU", "weights", "data", ...
        name: Which of its kind; empty where there is one.
        state: Whether it is here.
        says: What there is, or what is wrong.
        mend: The command or step that gets it; empty where nothing is to be done.
    """

    kind: str
    name: str = ""
    state: State
    says: str
    mend: str = ""
