"""A made-up table, rows and claims to add to it, and what `show` prints of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peft_dp.suite.cli.main import main

TABLE: dict[str, Any] = {
    "paper": "made",
    "table": "up",
    "title": "Made up",
    "source": "a test",
    "budget": "smoke",
    "defaults": {
        "backbone": "bert",
        "train": 16,
        "dev": 8,
        "optimiser": {"rate": 0.01},
        "epochs": 1,
        "batch": 8,
        "max_length": 24,
        "method": "bitfit",
    },
    "tasks": {"sentiment": {}},
    "rows": [
        {
            "id": name,
            "title": "A row",
            "spec": {},
            "cells": {"sentiment": {"trainable": {"value": value, "within": 0, "why": "counted by hand"}}},
            "assumed": {"epochs": "not stated; one"},
        }
        for name, value in (("right", 338), ("wrong", 1))
    ],
}


def add(tables: Path, *, note: str = "", differs: str = "") -> None:
    """Adds to the made-up table a row with a printed spread, one that is the best of four, a cited one, and claims."""
    score = {"std": 2.0, "runs": 5}
    rows = [
        {"id": "spread", "title": "Spread", "cells": {"sentiment": {"score": {"value": 70.0} | score}}},
        {"id": "best", "title": "Best", "cells": {"sentiment": {"score": {"value": 80.5, "best_of": 4}}}},
        {"id": "cited", "title": "Cited", "cited": "Doe 2020", "cells": {"sentiment": {"score": {"value": 60}}}},
        {
            "id": "shown",
            "title": "Shown",
            "cells": {"sentiment": {"peak_bytes": {"value": 15600000000, "asserted": False, "why": "15.6 GB"}}},
        },
    ]
    table = TABLE | {"seeds": 3, "note": note, "rows": [*TABLE["rows"], *rows]}
    (tables / "made" / "up.json").write_text(json.dumps(table))
    claim = {"section": "2", "table": "up", "tasks": ["sentiment"], "over": "each", "quantity": "score"}
    claims: list[dict[str, Any]] = [
        {
            "id": "c1",
            "says": "Best beats.",
            "left": "best",
            "right": "cited",
            "relation": ">",
            "times": 1.5,
            "plus": -2,
        },
        {"id": "c2", "says": "Wide wins.", "left": "spread", "right": "best", "relation": ">=", "differs": differs},
        {
            "id": "c3",
            "says": "Few.",
            "left": "right",
            "right": None,
            "relation": "<",
            "quantity": "peak_bytes",
            "plus": 9,
        },
    ]
    text = json.dumps({"source": "a test", "claims": [claim | more for more in claims]})
    (tables / "made" / "claims.json").write_text(text)


def shown(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that `show` prints of an id, each with single spaces."""
    assert main(["show", name]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
