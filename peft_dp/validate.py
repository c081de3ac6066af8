"""Checks of input: one sentence that names the thing, the value and the remedy.

Two kinds of "no" are kept apart everywhere: `ValueError` for input that is
wrong, and `Missing` for a thing that this machine does not have (a device, a
data set, weights). The bench turns the second into a skip with its reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from numbers import Integral


class Missing(RuntimeError):
    """Something this machine lacks; the message says what and how to get it."""


class Unsupported(ValueError):
    """A library cannot make a run; the message says why, in the library's words where it has some."""


def short(value: object) -> str:
    """A value as an error shows it: on one line, nothing in it steers a terminal, and of no great length."""
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:156]} ..."


def positive(**values: float) -> None:
    """Raises ValueError for a value that is not a finite number above zero."""
    for name, value in values.items():
        if not 0 < value < math.inf:  # which takes integers that no float can hold
            raise ValueError(f"{name} must be a finite number above 0, not {short(value)}")


def count(**values: object) -> None:
    """Raise ValueError for a value that is not a whole number above zero; 2.0 and True are none."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {short(value)}")


def fraction(**values: float) -> None:
    """Raises ValueError for a value outside the open interval (0, 1)."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {short(value)}")


def plain(**values: str) -> None:
    """Raises ValueError for a name that is not plain: it becomes part of a file's name."""
    for name, value in values.items():
        if not re.fullmatch("[A-Za-z0-9_-]+", value):
            raise ValueError(f"{name} must be made of letters, digits, _ and -, not {short(value)}")


def known(kind: str, name: str, choices: Iterable[str]) -> None:
    """Raises ValueError for a name that is not among the choices."""
    choices = sorted(choices)
    if name not in choices:
        raise ValueError(f"unknown {kind} {short(name)}; known: {', '.join(choices)}")
