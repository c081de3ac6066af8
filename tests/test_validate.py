"""Checks of input: what passes, what does not, and the words."""

from __future__ import annotations

import math

import pytest

from peft_dp import validate
from peft_dp.validate import Missing


@pytest.mark.parametrize("value", [0, 0.0, -1, -1e-9, math.inf, -math.inf, math.nan])
def test_not_positive(value: float) -> None:
    """Zero, less, and what is no finite number are refused by name and value."""
    with pytest.raises(ValueError) as caught:
        validate.positive(good=1, rate=value)

    assert f"rate must be a finite number above 0, not {value!r}" == str(caught.value)


@pytest.mark.parametrize("value", [0, -3, 1.5, 2.0, True, "2", None])
def test_no_count(value: object) -> None:
    """What is no whole number above zero is refused by name and value."""
    with pytest.raises(ValueError) as caught:
        validate.count(good=1, steps=value)

    assert f"steps must be a whole number of at least 1, not {value!r}" == str(caught.value)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2, math.nan])
def test_not_a_fraction(value: float) -> None:
    """The ends 0 and 1 are outside, and so is NaN."""
    with pytest.raises(ValueError) as caught:
        validate.fraction(delta=value)

    assert f"delta must lie between 0 and 1, not {value!r}" == str(caught.value)


def test_unknown() -> None:
    """An unknown name is answered with the sorted list of those there are."""
    with pytest.raises(ValueError) as caught:
        validate.known("task", "cloa", {"rte": 1, "cola": 2})

    assert "unknown task 'cloa'; known: cola, rte" == str(caught.value)


def test_valid() -> None:
    """What is in range passes, and any iterable of names will do."""
    validate.positive(a=1, b=5e-324)
    validate.fraction(c=1e-12, d=0.999)
    validate.known("task", "rte", iter(["cola", "rte"]))


def test_missing_is_not_an_error_of_input() -> None:
    """`Missing` is no ValueError, so a handler of wrong input cannot take it for one."""
    assert not issubclass(Missing, ValueError)
