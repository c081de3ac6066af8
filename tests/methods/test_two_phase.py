"""Two-phase training: all, then what BitFit trains."""

from __future__ import annotations

from typing import Any

import pytest

from peft_dp import Places, methods
from peft_dp.training.job import Job, build, find_sources


def job(spec: Any, places: Places, method: str, **fields: Any) -> Job:
    """A job of a method."""
    made = spec(method=method, **fields)
    return build(made, find_sources(made, places))


@pytest.mark.parametrize("head", ["linear", "stock"])
def test_phases(spec: Any, places: Places, head: str) -> None:
    """All trains first, then just the parameters that BitFit has, the head in both."""
    made = job(spec, places, "two_phase", config={"full_epochs": 3}, head=head)
    expected = [set(job(spec, places, method, head=head).backbone.trained()) for method in ("full", "bitfit")]
    found = [(epochs, set(made.backbone.trained())) for epochs in made.method.phases(made.backbone, epochs=5)]

    assert [(3, expected[0]), (2, expected[1])] == found


def test_wrong_length() -> None:
    """A first phase without an epoch is refused."""
    with pytest.raises(ValueError, match="field 'full_epochs': Input should be greater than 0"):
        methods.make("two_phase", {"full_epochs": 0})
