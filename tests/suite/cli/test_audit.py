"""`peft-dp audit`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from peft_dp.privacy import gradients
from peft_dp.suite.cli.main import main

from .made_up import TABLE

PRIVATE = {"method": "full", "privacy": {"epsilon": 8.0, "delta": 0.01}}


def add_private(tables: Path) -> list[str]:
    """Adds a private row to the made-up table and gives the verb that audits it."""
    row = {"id": "private", "title": "A private row", "spec": PRIVATE, "cells": {"sentiment": {}}}
    (tables / "made" / "up.json").write_text(json.dumps(TABLE | {"rows": [*TABLE["rows"], row]}))
    return ["audit", "made/up/private/sentiment"]


def test_audit(
    tables: Path, here: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`audit` says first whether the claim stands, and how sure that is, with 0; with 1 that it does not."""
    verb = [*add_private(tables), *here[:2], "--device", "cpu", "--seed", "3", "--canaries", "1000"]
    code = main(verb)
    printed = capsys.readouterr().out
    monkeypatch.setattr(gradients, "factors", lambda norms, *_: torch.ones_like(norms))
    leaking = main(verb)

    assert (0, 1) == (code, leaking)
    assert printed.startswith("made/up/private/sentiment, seed 3: the claim of epsilon 1.99 is not refuted.\n")
    assert "above its claim in at most 1 audit of 1,000" in printed
    assert "claimed by the prv accountant" in printed
    assert "3 draws of 1,000 canaries" in printed
    assert "seed 3: the claim of epsilon 1.99 is REFUTED.\n" in capsys.readouterr().out


def test_audit_not_private(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell without privacy has no claim: exit code 2, its name and the remedy, before anything is loaded."""
    code = main(["audit", "made/up/right/sentiment", "--backbones", "nowhere"])
    said = capsys.readouterr()

    assert (2, "") == (code, said.out)
    assert said.err.startswith("peft-dp: made/up/right/sentiment trains without privacy, so it claims no epsilon")
    assert "`peft-dp list`" in said.err
    assert said.err.count("\n") == 1


def test_audit_too_few_canaries(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Too few canaries are bad input, with the least that is taken."""
    code = main([*add_private(tables), *here[:2], "--canaries", "5"])

    assert code == 2
    assert "canaries 5 are too few for 39 tensors that train: take at least 100" in capsys.readouterr().err


def test_audit_json(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`audit --json` gives the claim, the bounds and whether they refute it."""
    code = main([*add_private(tables), *here[:2], "--device", "cpu", "--canaries", "1000", "--json"])
    found = json.loads(capsys.readouterr().out)

    assert (0, False) == (code, found["alarms"])
    assert 0 < found["limit"] <= found["claimed"] <= 8
