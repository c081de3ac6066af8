"""Generated sequences: their lengths, their form, and that they repeat."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean, quantiles, stdev

import pytest

from peft_dp import registry, tasks
from peft_dp.models import source, weights
from peft_dp.suite import papers
from peft_dp.tasks import Example, glue, lengths

NAMES = sorted(lengths.TASKS)


def words(example: Example) -> int:
    """Number of words of both sentences."""
    return len(example.first.split()) + len((example.second or "").split())


@pytest.mark.parametrize("name", NAMES)
def test_lengths(name: str) -> None:
    """Mean and spread of the numbers of words are those that the table of tasks says, up to chance and rounding."""
    _, mean, spread = lengths.LENGTHS[name]
    found = [words(example) for example in tasks.load(name).train]
    error = mean * math.sqrt(math.expm1(spread**2) / len(found))

    assert fmean(found) == pytest.approx(mean, abs=4 * error + 1e-9)
    assert stdev(map(math.log, found)) == pytest.approx(spread, rel=0.05, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_form(name: str) -> None:
    """An example has the form of its GLUE task: as many sentences, none of them empty, and every label occurs."""
    form = glue.TASKS[lengths.LENGTHS[name][0]]
    data = tasks.load(name)

    assert (lengths.TRAIN, lengths.DEV) == (len(data.train), len(data.dev))
    for split in (data.train, data.dev):
        assert {form.pair} == {example.second is not None for example in split}
        assert all(example.first and example.second != "" for example in split)
        assert set(range(len(form.labels))) == {example.label for example in split}


@pytest.mark.parametrize("name", NAMES)
def test_repeats(name: str) -> None:
    """Another process makes the same examples."""
    code = f"from peft_dp import tasks; print(tasks.load({name!r}).sha256)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == tasks.load(name).sha256


def test_words_fit_the_backbones() -> None:
    """Every backbone that a cell trains on these tasks has a token for each word that occurs."""
    backbones = {cell.spec.backbone for cell in papers.cells() if cell.task in lengths.TASKS}

    assert lengths.WORDS < min(len(weights.tokenizer(source.Random(name))) for name in backbones) - 5


def test_sst2(glue_folder: Path) -> None:
    """Generated lengths of SST-2 have the mean of the real ones, and nearly their 95th and 99th percentile."""
    source = registry.load("backbones", "minilm").SOURCE
    tokenizer = weights.tokenizer(source.locate(None)[0])
    real = tokenizer([example.first for example in tasks.load("sst2", glue_folder).train], add_special_tokens=False)
    counted = [len(ids) for ids in real["input_ids"]]
    made = [words(example) for example in tasks.load("sst2-lengths").train]

    assert fmean(counted) == pytest.approx(lengths.LENGTHS["sst2-lengths"][1], abs=0.05)
    for percent in (95, 99):
        assert quantiles(made, n=100)[percent - 1] == pytest.approx(quantiles(counted, n=100)[percent - 1], rel=0.2)
