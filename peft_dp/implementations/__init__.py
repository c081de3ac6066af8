"""Who makes a run: this project's own code, or a library that many use, fed with the same random numbers.

A file here is one implementation: `IMPLEMENTATION`, an `Implementation` (`_base.py`). Data, seeds, initial values,
measuring, record and verdict are the same for all, so that a run through a library is a replay of our own: a library
that computes something else turns its cell red.

To add a library: copy `trainer.py`, and add rows to `expected/embedded/libraries.json`.
"""

from __future__ import annotations

from peft_dp import registry
from peft_dp.implementations._base import Implementation

__all__ = ["Implementation", "load"]


def load(name: str) -> Implementation:
    """Return the implementation of that name.

    Raises:
        ValueError: No file of that name.
    """
    found: Implementation = registry.load("implementations", name).IMPLEMENTATION
    return found
