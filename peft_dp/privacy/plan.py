"""What training and accounting share, so that they cannot disagree.

Why one value: in most published DP code the sampler, the noise and the
accountant each derive the rate and the steps for themselves, and differ.
Nothing here imports torch at import time, so listing cells stays instant.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

from peft_dp.spec import Privacy, Spec


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The only source of noise, clip, rate and steps. Without privacy clip is inf and the noise 0.

    Attributes:
        examples: Number of training examples N.
        batch: Logical batch: the expected number of examples a step, a constant of the recipe.
        steps: Number of updates of the whole run.
        steps_per_epoch: Updates of one epoch.
        sampling: "poisson" draws each example alone with chance `sample_rate`; "shuffle" cuts a permutation.
        sample_rate: Chance that an example is in a batch, batch / N.
        clip: L2 bound of one example's gradient over all trained parameters.
        clipping: "abadi" or "automatic", see `gradients.factors`.
        noise_multiplier: Standard deviation of the noise on the summed gradient, over `clip`.
        delta: Failure probability of the guarantee; 0 without privacy.
        accountant: Name of the accountant in Opacus; empty without privacy.
    """

    examples: int
    batch: int
    steps: int
    steps_per_epoch: int
    sampling: Literal["poisson", "shuffle"]
    sample_rate: float
    clip: float = math.inf
    clipping: Literal["abadi", "automatic"] = "abadi"
    noise_multiplier: float = 0.0
    delta: float = 0.0
    accountant: str = ""

    @property
    def private(self) -> bool:
        """Whether there is a bound on what one example does."""
        return self.clip < math.inf


def calibrate(spec: Spec, examples: int) -> Plan:
    """The plan of a run over `examples` training examples.

    With privacy an epoch is floor(N / batch) steps, the convention of SLaSh's
    released code; without, the last and smaller batch is trained on too.

    Raises:
        ValueError: The logical batch is larger than the data.
    """
    if spec.privacy is not None:
        return private_plan(spec.privacy, examples, spec.batch, spec.epochs)
    per_epoch = steps_per_epoch(examples, spec.batch, private=False)
    return Plan(
        examples=examples,
        batch=spec.batch,
        steps=spec.epochs * per_epoch,
        steps_per_epoch=per_epoch,
        sampling="shuffle",
        sample_rate=spec.batch / examples,
    )


def private_plan(privacy: Privacy, examples: int, batch: int, epochs: int) -> Plan:
    """The plan of `epochs` times floor(examples / batch) private steps; warns where delta is above 1 / examples.

    Raises:
        ValueError: The logical batch is larger than the data.
    """
    per_epoch = steps_per_epoch(examples, batch, private=True)
    if privacy.delta > 1 / examples:
        start = f"delta {privacy.delta:g} is above 1/{examples}: publishing a few examples whole would also satisfy it"
        warnings.warn(f"{start}; choose a delta well below {1 / examples:.1g}", stacklevel=2)
    steps, rate = epochs * per_epoch, batch / examples
    return Plan(
        examples=examples,
        batch=batch,
        steps=steps,
        steps_per_epoch=per_epoch,
        sampling=privacy.sampling,
        sample_rate=rate,
        clip=privacy.clip,
        clipping=privacy.clipping,
        noise_multiplier=_noise(privacy.epsilon, privacy.delta, privacy.accountant, rate, steps),
        delta=privacy.delta,
        accountant=privacy.accountant,
    )


def steps_per_epoch(examples: int, batch: int, *, private: bool) -> int:
    """Updates of one epoch, see `calibrate`.

    Raises:
        ValueError: The logical batch is larger than the data.
    """
    if batch > examples:
        raise ValueError(
            f"batch {batch} is larger than the {examples} training examples: choose a batch of at most {examples}"
        )
    return examples // batch if private else math.ceil(examples / batch)


@cache
def _noise(epsilon: float, delta: float, accountant: str, rate: float, steps: int) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    with quiet():
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant=accountant
            )
        )


@cache
def spent(plan: Plan, steps: int) -> float:
    """Epsilon after `steps` steps of the plan, by its accountant; inf without privacy, 0 before the first step."""
    if steps == 0:
        return 0.0
    if plan.noise_multiplier == 0:
        return math.inf
    from opacus.accountants import create_accountant

    accountant = create_accountant(mechanism=plan.accountant)
    accountant.history = [(plan.noise_multiplier, plan.sample_rate, steps)]
    with quiet():
        # An accountant's bound may lie below 0 where next to nothing is spent; epsilon itself never does.
        return max(float(accountant.get_epsilon(delta=plan.delta)), 0.0)


def ledger(plan: Plan, steps: int, *, seeded: bool) -> dict[str, Any]:
    """What `steps` private steps have spent, and all that it follows from; made of what was run, not planned."""
    return {
        "epsilon": spent(plan, steps),
        "delta": plan.delta,
        "accountant": plan.accountant,
        "accountant_version": f"opacus {version('opacus')}",
        "convention": _CONVENTIONS[plan.accountant],
        "covers": "one run: choosing among runs by their scores on private data is not counted",
        "neighbouring": "add or remove one example",
        "noise_multiplier": plan.noise_multiplier,
        "noise": "seeded: who knows the seed can take it away, so keep the weights" if seeded else "secure",
        "sampling": plan.sampling,
        "matches_accountant": plan.sampling == "poisson",
        "sample_rate": plan.sample_rate,
        "steps": steps,
        "clip": plan.clip,
        "clipping": plan.clipping,
        "examples": plan.examples,
        "logical_batch": plan.batch,
    }


_CONVENTIONS = {
    "prv": "upper end of the accountant's interval, whose half width is 0.01",
    "rdp": "least bound over the accountant's own orders",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what Opacus says of bounds it only starts from, and of log 0 where the rate is 1."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the (largest|smallest) alpha")
        warnings.filterwarnings("ignore", message="divide by zero encountered in log", category=RuntimeWarning)
        yield
