"""Fixtures: a record of a cell."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from pydantic import TypeAdapter

from peft_dp import Record
from peft_dp.measuring.environment import environment
from peft_dp.spec import to_json
from peft_dp.suite import papers


@pytest.fixture
def record() -> Callable[..., Record]:
    """Makes a record of a smoke cell, of 12 s on this machine; arguments replace entries of its environment."""

    def make(cell: str = "embedded/smoke/head/sentiment", seed: int = 0, **entries: object) -> Record:
        spec = to_json(papers.find(cell).spec.seeded(seed))
        epoch = {"loss": 1.0, "clipped": None, "examples": 800, "tokens": 13000, "steps": 25, "seconds": 6.0}
        data = {
            "key": "0" * 64,
            "spec": spec,
            "values": {"score": 80.0, "trainable": 770.0, "answers": 2.0, "above_majority": 30.0},
            "ledger": None,
            "trail": [epoch, epoch],
            "cost": {"epoch_seconds": 6.0, "peak_bytes": 1e8},
            "sources": {},
            "environment": environment() | {"device": "cpu", "side_by_side": 1, "seeds_together": 1} | entries,
        }
        return TypeAdapter(Record).validate_json(json.dumps(data))

    return make
