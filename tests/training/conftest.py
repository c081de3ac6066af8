"""A job of a tiny model in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peft_dp import Places, Spec
from peft_dp.training.job import Job, build, gather


@pytest.fixture
def job(spec: Callable[..., Spec], places: Places) -> Callable[..., Job]:
    """Builds a job in float64 without dropout; arguments replace the spec's fields."""

    def make(**fields: Any) -> Job:
        made = spec(**({"dropout": False} | fields))
        found = build(made, gather(made, places))
        found.backbone.model.double().train()
        return found

    return make
