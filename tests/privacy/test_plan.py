"""The plan: steps by convention, noise that just keeps the budget, and a second accountant's word on it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from scipy.stats import norm

from peft_dp import Spec
from peft_dp.privacy.plan import Plan, calibrate, spent
from peft_dp.spec import Privacy

Make = Callable[..., Spec]

# Examples, batch, epochs, epsilon, delta.
SETTINGS = [(960, 320, 3, 8.0, 1e-4), (2000, 100, 2, 1.0, 1e-5), (67349, 1024, 3, 3.0, 1e-6)]
NAMES = ["few large steps", "strict", "SST-2"]


def plan(spec: Make, setting: tuple[int, int, int, float, float], **privacy: Any) -> Plan:
    """The plan of one of the settings."""
    examples, batch, epochs, epsilon, delta = setting
    return calibrate(
        spec(batch=batch, epochs=epochs, privacy=Privacy(epsilon=epsilon, delta=delta, **privacy)), examples
    )


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_budget_is_kept_and_used(spec: Make, setting: tuple[int, int, int, float, float]) -> None:
    """The noise is such that the run spends its epsilon, at most 0.02 less, and never more."""
    made = plan(spec, setting)

    assert setting[3] - 0.02 <= spent(made, made.steps) <= setting[3]


def test_rdp(spec: Make) -> None:
    """The older accountant bounds the same run less tightly, so it asks for more noise."""
    tight, loose = (plan(spec, SETTINGS[1], accountant=name) for name in ("prv", "rdp"))

    assert loose.noise_multiplier > tight.noise_multiplier
    assert 1.0 - 0.02 <= spent(loose, loose.steps) <= 1.0


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_second_accountant(spec: Make, setting: tuple[int, int, int, float, float]) -> None:
    """Google's accountant by privacy loss distributions gives the same epsilon within 1 % or the other's own 0.01."""
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.pld import PLDAccountant

    made = plan(spec, setting)
    logging.getLogger("absl").setLevel(logging.ERROR)
    step = accounting.PoissonSampledDpEvent(made.sample_rate, accounting.GaussianDpEvent(made.noise_multiplier))
    theirs = PLDAccountant().compose(accounting.SelfComposedDpEvent(step, made.steps)).get_epsilon(made.delta)

    # Opacus gives the upper end of an interval whose half width is 0.01.
    assert spent(made, made.steps) == pytest.approx(theirs, rel=0.01, abs=0.011)


def test_spent_grows(spec: Make) -> None:
    """Each step costs: nothing before the first, then ever more."""
    made = plan(spec, SETTINGS[0])
    series = [spent(made, steps) for steps in (0, 1, 2, 5, 9, 20)]

    assert series[0] == 0
    assert all(earlier < later for earlier, later in pairwise(series))


def test_spent_without_privacy(spec: Make) -> None:
    """A run without noise has no bound from its first step on."""
    made = calibrate(spec(), 24)

    assert (0, math.inf) == (spent(made, 0), spent(made, 1))


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_closed_form(spec: Make, rate: float) -> None:
    """After one step the accountant's epsilon meets the exact delta of the subsampled Gaussian, from above."""
    made = replace(plan(spec, SETTINGS[1]), sample_rate=rate, noise_multiplier=1.5)

    def delta(epsilon: float) -> float:
        """Hockey-stick divergence of (1 - q) N(0, s^2) + q N(1, s^2) from N(0, s^2)."""
        # Where the ratio of the densities is e^epsilon.
        x = 1.5**2 * math.log((math.exp(epsilon) - 1 + rate) / rate) + 0.5
        return rate * norm.sf((x - 1) / 1.5) + (1 - rate - math.exp(epsilon)) * norm.sf(x / 1.5)

    epsilon = spent(made, 1)

    assert delta(epsilon) <= made.delta <= delta(epsilon - 0.021)


def test_half_the_budget_needs_more_noise(spec: Make) -> None:
    """Less epsilon over the same steps needs more noise."""
    examples, batch, epochs, epsilon, delta = SETTINGS[0]
    half = plan(spec, (examples, batch, epochs, epsilon / 2, delta))

    assert plan(spec, SETTINGS[0]).noise_multiplier < half.noise_multiplier


@pytest.mark.parametrize(("examples", "plain", "private"), [(24, 3, 3), (31, 4, 3)])
def test_steps(spec: Make, examples: int, plain: int, private: int) -> None:
    """Without privacy the smaller rest is a step too; with it an epoch is floor(N / batch) steps."""
    budget = Privacy(epsilon=8.0, delta=1e-3, accountant="rdp")
    first, second = (calibrate(spec(batch=8, epochs=2, privacy=p), examples) for p in (None, budget))

    assert (plain, 2 * plain) == (first.steps_per_epoch, first.steps)
    assert (private, 2 * private) == (second.steps_per_epoch, second.steps)


@pytest.mark.parametrize("privacy", [None, Privacy(epsilon=8.0, delta=1e-3)])
def test_batch_larger_than_data(spec: Make, privacy: Privacy | None) -> None:
    """A batch larger than the data is refused with both numbers and the remedy."""
    with pytest.raises(ValueError) as caught:
        calibrate(spec(batch=9, privacy=privacy), 8)

    assert "batch 9 is larger than the 8 training examples: choose a batch of at most 8" == str(caught.value)


def test_plain_plan(spec: Make) -> None:
    """Without privacy batches are shuffled, nothing is clipped, and there is no noise."""
    made = calibrate(spec(), 24)

    assert not made.private
    assert ("shuffle", math.inf, 0.0, 8 / 24) == (made.sampling, made.clip, made.noise_multiplier, made.sample_rate)


def test_private_plan(spec: Make) -> None:
    """With privacy the plan takes clip, delta, sampling and accountant from the budget."""
    made = plan(spec, SETTINGS[0], clip=0.25, accountant="rdp", sampling="shuffle")

    assert made.private
    assert (0.25, 1e-4, "shuffle", "rdp", 320 / 960) == (
        made.clip,
        made.delta,
        made.sampling,
        made.accountant,
        made.sample_rate,
    )
