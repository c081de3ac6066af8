"""The plan: steps by convention, noise that just keeps the budget, and a second accountant's word on it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from scipy.stats import norm

import peft_dp
from peft_dp import Places, Spec
from peft_dp.privacy.plan import Plan, calibrate, ledger, spent
from peft_dp.spec import Privacy

Make = Callable[..., Spec]

# Examples, batch, epochs, epsilon, delta.
SETTINGS = [(960, 320, 3, 8.0, 1e-4), (2000, 100, 2, 1.0, 1e-5), (67349, 1024, 3, 3.0, 1e-6)]
NAMES = ["few large steps", "strict", "SST-2"]

QUICK = Privacy(epsilon=1.0, delta=1e-3, accountant="rdp")
"""A budget whose noise is found quickly, where the accountant does not matter."""

# Sample rate, steps, noise multiplier, delta; their epsilon lies between 0.3 and 10, but for the smallest.
MECHANISMS = [
    (1.0, 1, 8.0, 1e-5),
    (1.0, 10, 3.0, 1e-4),
    (1.0, 100, 10.0, 1e-8),
    (1.0, 20000, 200.0, 1e-6),
    (0.5, 20, 3.0, 1e-6),
    (0.5, 200, 20.0, 1e-4),
    (0.3, 5, 1.5, 1e-7),
    (0.2, 30, 4.0, 1e-5),
    (0.1, 1, 1.0, 1e-4),
    (0.1, 50, 1.0, 1e-5),
    (0.1, 500, 2.0, 1e-6),
    (0.1, 2000, 8.0, 1e-8),
    (0.05, 200, 2.0, 1e-7),
    (0.05, 1000, 1.2, 1e-5),
    (0.02, 1500, 1.0, 1e-7),
    (0.01, 1900, 0.8, 1e-6),
    (0.01, 10000, 4.0, 1e-8),
    (0.005, 5000, 1.0, 1e-4),
    (0.005, 20000, 1.0, 1e-6),
    (0.001, 5000, 1.0, 1e-5),
    (0.001, 20000, 0.7, 1e-8),
    (0.001, 20000, 2.0, 1e-5),
]

# SLaSh, table 6: examples, printed noise, epsilon by Google's accountant and by Renyi's (the paper aimed at 6.7).
SLASH = {
    "mnli": (392702, 0.643, 6.588, 7.50),
    "qqp": (363846, 0.651, 6.584, 7.49),
    "qnli": (104743, 0.831, 6.593, 7.30),
    "sst2": (67349, 0.925, 6.592, 7.25),
}


@cache
def mechanism(rate: float, steps: int, noise: float, delta: float, accountant: str = "prv") -> Plan:
    """A plan of this noise, rate and number of steps; the number of its examples has no part in epsilon."""
    return Plan(
        examples=10**6,
        batch=round(rate * 10**6),
        steps=steps,
        steps_per_epoch=steps,
        sampling="poisson",
        sample_rate=rate,
        clip=1.0,
        noise_multiplier=noise,
        delta=delta,
        accountant=accountant,
    )


@cache
def charged(rate: float, steps: int, noise: float, delta: float, accountant: str = "prv") -> float:
    """What the ledger says such a plan has spent at its end."""
    found: float = ledger(mechanism(rate, steps, noise, delta, accountant), steps, seeded=False)["epsilon"]
    return found


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


@pytest.mark.parametrize("setting", MECHANISMS, ids=str)
def test_second_accountant(setting: tuple[float, int, float, float]) -> None:
    """The ledger's epsilon is never below that of Google's accountant, and above by at most 1 % or its own 0.011."""
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.pld import PLDAccountant

    rate, steps, noise, delta = setting
    logging.getLogger("absl").setLevel(logging.ERROR)
    step = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(noise))
    # A grid's error grows with the steps; where they are few, a coarser one does, in a tenth of the time.
    grid = PLDAccountant(value_discretization_interval=1e-3 if steps < 2000 else 1e-4)
    theirs = grid.compose(accounting.SelfComposedDpEvent(step, steps)).get_epsilon(delta)

    # Opacus gives the upper end of an interval whose half width is 0.01.
    assert theirs <= charged(*setting) <= theirs + max(0.01 * theirs, 0.011)


@pytest.mark.parametrize("setting", MECHANISMS, ids=str)
def test_rdp_is_looser(setting: tuple[float, int, float, float]) -> None:
    """Epsilon by Renyi is never below the numerical one."""
    assert charged(*setting) <= charged(*setting, "rdp")


@pytest.mark.parametrize(("examples", "noise", "tight", "renyi"), SLASH.values(), ids=SLASH)
def test_slash(examples: int, noise: float, tight: float, renyi: float) -> None:
    """SLaSh's printed noise over 20 epochs of floor(N / 2048) steps spends what independent accountants say."""
    setting = 2048 / examples, 20 * (examples // 2048), noise, 1e-6

    assert tight <= charged(*setting) <= tight + 0.012
    assert pytest.approx(renyi, abs=0.01) == charged(*setting, "rdp")


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_monotone(accountant: str) -> None:
    """Epsilon rises with the steps and with the sample rate, and falls with the noise."""
    steps = [charged(0.01, steps, 1.0, 1e-5, accountant) for steps in (1, 10, 100, 1000)]
    rates = [charged(rate, 10, 2.0, 1e-5, accountant) for rate in (0.001, 0.01, 0.1, 0.5, 1.0)]
    noises = [charged(0.05, 100, noise, 1e-5, accountant) for noise in (8.0, 2.0, 1.0, 0.8)]
    for series in (steps, rates, noises):
        assert all(earlier < later for earlier, later in pairwise(series))


def test_spent_grows(spec: Make) -> None:
    """Each step costs: nothing before the first, then ever more."""
    made = plan(spec, SETTINGS[1])
    series = [spent(made, steps) for steps in (0, 1, 2, 5, 9, 20)]

    assert series[0] == 0
    assert all(earlier < later for earlier, later in pairwise(series))


def test_spent_without_privacy(spec: Make) -> None:
    """A run without noise, clipped or not, has no bound from its first step on."""
    for made in (calibrate(spec(), 24), mechanism(0.1, 5, 0.0, 1e-5), mechanism(0.1, 5, 0.0, 1e-5, "rdp")):
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
    examples, batch, epochs, epsilon, delta = SETTINGS[1]
    half = plan(spec, (examples, batch, epochs, epsilon / 2, delta), accountant="rdp")

    assert plan(spec, SETTINGS[1], accountant="rdp").noise_multiplier < half.noise_multiplier


@pytest.mark.parametrize(("examples", "plain", "private"), [(24, 3, 3), (31, 4, 3)])
def test_steps(spec: Make, examples: int, plain: int, private: int) -> None:
    """Without privacy the smaller rest is a step too; with it an epoch is floor(N / batch) steps."""
    first, second = (calibrate(spec(batch=8, epochs=2, privacy=p), examples) for p in (None, QUICK))

    assert (plain, 2 * plain) == (first.steps_per_epoch, first.steps)
    assert (private, 2 * private) == (second.steps_per_epoch, second.steps)


def test_steps_are_declared(spec: Make) -> None:
    """Steps come from the numbers of examples, not from 1 / rate, which as a float falls short of 93."""
    made = calibrate(spec(batch=1, epochs=2, privacy=QUICK), 93)

    assert 92 == int(1 / made.sample_rate)
    assert (93, 186) == (made.steps_per_epoch, made.steps)


def test_batch_is_declared(spec: Make) -> None:
    """What sums are divided by is the recipe's 8, not floor(31 / 3); one example less changes the rate alone."""
    made = [calibrate(spec(batch=8, privacy=QUICK), examples) for examples in (31, 30)]

    assert [8, 8] == [each.batch for each in made]
    assert [8 / 31, 8 / 30] == [each.sample_rate for each in made]


def test_gdp_is_refused() -> None:
    """The accountant by the central limit, which says 13 to 23 % too little, cannot be asked for."""
    with pytest.raises(ValueError, match="'prv' or 'rdp'"):
        Privacy(epsilon=8.0, delta=1e-5, accountant="gdp")  # type: ignore[arg-type]


def test_large_delta(spec: Make) -> None:
    """A delta above 1/N warns with both numbers and the remedy."""
    with pytest.warns(UserWarning, match="^delta 0.05 is above 1/24: .* choose a delta well below 0.04$"):
        calibrate(spec(batch=24, privacy=replace(QUICK, delta=0.05)), 24)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("delta", [1 / 32, 0.01])
def test_small_delta(spec: Make, delta: float) -> None:
    """A delta of at most 1/N does not warn, and is the plan's."""
    assert delta == calibrate(spec(batch=32, privacy=replace(QUICK, delta=delta)), 32).delta


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
    made = plan(spec, SETTINGS[1], clip=0.25, accountant="rdp", sampling="shuffle")

    assert made.private
    assert (0.25, 1e-5, "shuffle", "rdp", 100 / 2000) == (
        made.clip,
        made.delta,
        made.sampling,
        made.accountant,
        made.sample_rate,
    )


@pytest.mark.parametrize("clipping", ["abadi", "automatic"])
def test_ledger_of_a_record(spec: Make, places: Places, clipping: Any) -> None:
    """A record's ledger holds epsilon and all that it follows from, the way of clipping too."""
    privacy = replace(QUICK, clip=0.5, clipping=clipping)
    found: dict[str, Any] = peft_dp.run(spec(privacy=privacy), places).ledger or {}
    again = mechanism(8 / 24, 6, found["noise_multiplier"], 1e-3, "rdp")

    assert found["epsilon"] == spent(again, 6)
    assert found["accountant_version"].startswith("opacus ")
    assert 2 == len(found["clipped"])
    assert found["physical_batch"] == "2048 tokens"
    assert {
        "delta": 1e-3,
        "accountant": "rdp",
        "sample_rate": 8 / 24,
        "steps": 6,
        "clip": 0.5,
        "clipping": clipping,
        "sampling": "poisson",
        "neighbouring": "add or remove one example",
        "logical_batch": 8,
    }.items() <= found.items()


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize("steps", [1, 100])
def test_never_below_zero(accountant: Any, steps: int) -> None:
    """Epsilon of next to nothing is 0, though an accountant's bound lies below."""
    made = Plan(
        examples=10_000,
        batch=1,
        steps=100,
        steps_per_epoch=100,
        sampling="poisson",
        sample_rate=1e-4,
        noise_multiplier=20.0,
        clip=1.0,
        delta=1e-2,
        accountant=accountant,
    )

    assert 0 <= spent(made, steps) < 0.1
