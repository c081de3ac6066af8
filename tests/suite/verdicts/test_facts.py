"""Tests of figures that need no training: noise multipliers that no paper prints but its settings imply."""

from __future__ import annotations

import pytest

from peft_dp import facts
from peft_dp.suite.verdicts.facts import noise_multiplier, size

KHAN = [(67349, 10523, 1.582), (67349, 2104, 0.947)]
BITFIT = [(67349, 1000, 202, 8.0, 0.544), (104743, 2000, 314, 8.0, 0.618)]


@pytest.mark.parametrize(("examples", "steps", "noise"), KHAN)
def test_khan(examples: int, steps: int, noise: float) -> None:
    """Khan's settings (batch 128, epsilon .5, delta 1e-5) need this noise over 20 epochs, and over 4."""
    found = noise_multiplier(examples=examples, batch=128, steps=steps, epsilon=0.5, delta=1e-5, slack=0.01, digits=3)

    assert pytest.approx(noise, abs=0.015) == found


@pytest.mark.parametrize(("examples", "batch", "steps", "epsilon", "noise"), BITFIT)
def test_bitfit(examples: int, batch: int, steps: int, epsilon: float, noise: float) -> None:
    """DP-BiTFiT's released defaults, delta 1/(2N), need this noise."""
    delta = 1 / (2 * examples)
    found = noise_multiplier(
        examples=examples, batch=batch, steps=steps, epsilon=epsilon, delta=delta, slack=0.01, digits=3
    )

    assert pytest.approx(noise, abs=0.005) == found


@pytest.mark.parametrize(
    ("backbone", "count"),
    [
        ("bert", 108310272),
        ("bert_large", 333579264),
        ("distilbert", 66362880),
        ("roberta", 124055040),
        ("roberta_large", 354310144),
        ("minilm", 22713216),
    ],
)
def test_size(backbone: str, count: int) -> None:
    """The papers' backbones have the sheets' sizes."""
    assert count == size(backbone)


def test_sixty() -> None:
    """At least sixty printed figures of the five papers are checked, each once."""
    every = [(fact.paper, fact.id) for fact in facts()]

    assert len(set(every)) == len(every) >= 60
    assert {"bitfit_plus", "dp_bitfit", "khan", "slash", "spafit"} == {paper for paper, _ in every}
