"""The tests are tested: an engine broken in any of these ways fails one of three families of checks.

    pytest tests/privacy/test_mutants.py -q -s

prints the kill matrix.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scipy import stats
from tabulate import tabulate
from torch import Tensor

from peft_dp import Places, Spec, rng
from peft_dp.models import batch as batching
from peft_dp.models import packing
from peft_dp.privacy import gradients, noised_sum, plan, sampling, taps
from peft_dp.privacy import per_example as parts
from peft_dp.spec import Privacy
from peft_dp.training import gradient, phase
from peft_dp.training import job as jobs

from .released import BATCHES, CHANCE, NOISE, TOLERANCE, made, noise_free, p_values, residuals

Make = Callable[..., Spec]

MODULES = (rng, packing, plan, sampling, parts, taps, gradients, batching, jobs, noised_sum, gradient, phase)
"""In the order of their imports: what is bound by name from a broken one must be bound anew."""


@dataclass(frozen=True)
class Mutant:
    """A broken engine.

    Attributes:
        name: What is wrong.
        edits: Module -> texts of its source, each there once, and what stands there instead.
        job: Which of `JOBS` the checks take.
    """

    name: str
    edits: Mapping[ModuleType, Mapping[str, str]]
    job: str = "full"


_SCALE = "plan.noise_multiplier * plan.clip"
_NOISE = "total += noise"
_NORMS = "return torch.stack(squares).sum(0).clamp(min=0).sqrt()"
_FACTORS = "factors(self.norms, clip, clipping)"
_ADD = "(part.without(lost) if some else part).add_to(sums[name], weights)"
_SQUARES = "torch.stack(squares)"
_ALONE = {
    "        if self.formed_names:\n            sums": "        if False:\n            sums",
    "            if not isinstance(part, Each):\n": "            if True:\n",
}
"""Each part is added by itself."""
_DRAW = "(rng.chances(source, plan.examples) < plan.sample_rate).nonzero().flatten().tolist()"
_PARTS = {"[sums.flat] if isinstance(source, torch.Generator) else [*sums.values()]": "[*sums.values()]"}
_NAMED = {**_PARTS, "for total, noise in zip(like": "for (name, total), noise in zip(sums.items()"}
_START = "masks = masks or {}\n"
_CUTS = "    for cut in cuts:\n"
_LISTED = {_CUTS: f"    cuts = list(cuts)\n{_CUTS}"}


def _scaled(scale: str) -> dict[str, str]:
    return {_SCALE: scale}


MUTANTS = [
    # The noise.
    Mutant("no noise", {noised_sum: _scaled("0.0")}),
    Mutant("half the noise", {noised_sum: _scaled(f"0.5 * {_SCALE}")}),
    Mutant("90 % of the noise", {noised_sum: _scaled(f"0.9 * {_SCALE}")}),
    Mutant("95 % of the noise", {noised_sum: _scaled(f"0.95 * {_SCALE}")}),
    Mutant("noise without the clip as its unit", {noised_sum: _scaled("plan.noise_multiplier")}),
    Mutant("a mean's noise on the sum", {noised_sum: _scaled(f"{_SCALE} / plan.batch")}),
    Mutant("noise divided by the number of splits", {noised_sum: {**_LISTED, _SCALE: f"{_SCALE} / max(1, len(cuts))"}}),
    Mutant(
        "noise added at each split",
        {
            noised_sum: {
                **_LISTED,
                _NOISE: f"total += sum(next(rng.normal(source, [total], {_SCALE})) for _ in cuts or [()])",
            }
        },
    ),
    Mutant("no noise on an empty batch", {noised_sum: {**_LISTED, _SCALE: f"{_SCALE} * bool(cuts)"}}),
    Mutant("head without noise", {noised_sum: {**_NAMED, _NOISE: f"if not name.startswith('head'): {_NOISE}"}}),
    Mutant(
        "one bias without noise",
        {noised_sum: {**_NAMED, _NOISE: f"if not name.endswith('1.attention.self.key.bias'): {_NOISE}"}},
    ),
    Mutant(
        "a layer unfrozen later without noise",
        {noised_sum: {**_NAMED, _NOISE: f"if '.layer.0.' not in name: {_NOISE}"}},
        "gradual",
    ),
    Mutant("noise outside the mask", {noised_sum: {"total *= masks[name]": "pass"}}, "random_mask"),
    Mutant(
        "same noise at each step", {noised_sum: {_START: f"{_START}    source = torch.Generator().manual_seed(7)\n"}}
    ),
    Mutant(
        "same noise for each tensor",
        {
            noised_sum: {
                **_PARTS,
                _START: f"{_START}    again = int(torch.randint(2**62, (), generator=source))\n",
                _NOISE: f"total += next(rng.normal(torch.Generator().manual_seed(again), [total], {_SCALE}))",
            }
        },
    ),
    Mutant("same noise in each run", {rng: {'f"{run_seed}/{stream}"': 'f"{stream}"'}}),
    Mutant("one stream for batches and noise", {rng: {'f"{run_seed}/{stream}"': 'f"{run_seed}"'}}),
    Mutant("secure noise 5 % too small", {rng: {".mul_(std / 2)": ".mul_(0.95 * std / 2)"}}),
    Mutant(
        "uniform noise of the right variance",
        {
            rng: {
                "torch.normal(0.0, std, (min(left, BLOCK),), generator=source, device=tensor.device, dtype=dtype)": (
                    "(torch.rand(min(left, BLOCK), generator=source).to(dtype) - 0.5) * std * 12**0.5"
                )
            }
        },
    ),
    # The clip.
    Mutant(
        "no clip",
        {gradients: {_FACTORS: "factors(self.norms, math.inf, clipping)"}},
    ),
    Mutant("clip twice too large", {noised_sum: {"add_clipped(sums, plan.clip,": "add_clipped(sums, 2 * plan.clip,"}}),
    Mutant(
        "clip per tensor",
        {gradients: {**_ALONE, _ADD: f"weights = factors(part.square_norm().sqrt(), clip, clipping); {_ADD}"}},
    ),
    Mutant(
        "clip per physical batch",
        {gradients: {_NORMS: "return self.each().sum(0).norm().expand(len(self.losses))"}},
    ),
    Mutant(
        "clip over all but the head",
        {
            gradients: {
                _SQUARES: (
                    "torch.stack([p.square_norm() for name, p in self.parts.items() if not name.startswith('head')])"
                )
            }
        },
    ),
    Mutant(
        "a layer unfrozen later outside the norm",
        {
            gradients: {
                _SQUARES: "torch.stack([p.square_norm() for name, p in self.parts.items() if '.layer.0.' not in name])"
            }
        },
        "gradual",
    ),
    Mutant(
        "mask ignored in the norm",
        {taps: {"part.only(self._masks[name]) if name in self._masks else part": "part"}},
        "random_mask",
    ),
    Mutant(
        "automatic clipping without bound",
        {gradients: {"clip / (norms + GAMMA)": "clip / norms.sqrt()"}},
        "automatic",
    ),
    Mutant(
        "norm of a shared vector counted per layer",
        {
            taps: {
                "trained = trained_parameters(model)\n    if tied": (
                    "trained = dict(model.named_parameters(remove_duplicate=False))\n"
                    "    trained = {name: p for name, p in trained.items() if p.requires_grad}\n    if tied"
                )
            },
            gradients: {
                "[name for name in watched.trained if name in taps.parts]": (
                    "[name for name, _ in model.named_parameters(remove_duplicate=False) if name in taps.parts]"
                ),
                "for name, value in copies.items()}, ())": "for name, value in copies.items()}, (), tie_weights=False)",
                **_ALONE,
                "add_to(sums[name], weights)": "add_to(sums.get(name, next(iter(sums.values()))), weights)",
            },
        },
        "slash",
    ),
    Mutant(
        "ghost norm without products between positions",
        {
            parts: {
                "_gram_sum((self.a @ self.a.mT).mul_(self.g @ self.g.mT), terms, self.packing)": (
                    "_total((self.a.square().sum(2) * self.g.square().sum(2))[..., None], self.packing)[:, 0]"
                )
            }
        },
        "short",
    ),
    Mutant(
        "norm of a token looked up twice",
        {
            parts: {
                "_gram_sum((self.g @ self.g.mT).mul_(same), self.g.shape[2], self.packing)": (
                    "_total(self.g.square().sum(2, keepdim=True), self.packing)[:, 0]"
                )
            }
        },
    ),
    Mutant(
        "an example without finite gradient kept",
        {gradients: {"some = bool(lost.any())": "some = False"}},
        "hostile",
    ),
    # Rows that sentences share.
    Mutant("norm over what shares a row", {parts: {"products.mul_(packing.same)": "pass"}}),
    Mutant(
        "what shares a row with an infinite example lost",
        {gradients: {"if len(cut) == 1 or found": "if len(cut) < 99 or found"}},
        "hostile",
    ),
    # The step.
    Mutant(
        "loss averaged over the physical batch",
        {gradient: {"job.losses(job.batch(job.train, cut)),\n": "job.losses(job.batch(job.train, cut)) / len(cut),\n"}},
    ),
    Mutant(
        "divided by the drawn batch",
        {gradient: {'job.plan.batch if job.plan.sampling == "poisson" else len(indices)': "max(1, len(indices))"}},
    ),
    Mutant("last physical batch dropped", {noised_sum: {_CUTS: "    for cut in list(cuts)[:-1]:\n"}}),
    Mutant("weight decay", {phase: {"else optimiser.weight_decay\n": "else 0.01\n"}}),
    Mutant(
        "momentum left from the step before",
        {phase: {"torch.optim.SGD(groups,": "torch.optim.SGD(groups, momentum=0.5,"}},
    ),
    # Sampling and accounting.
    Mutant("sample rate 10 % too high", {sampling: {"< plan.sample_rate": "< 1.1 * plan.sample_rate"}}),
    Mutant(
        "batches of a fixed size",
        {sampling: {_DRAW: "rng.permutation(source, plan.examples)[: plan.batch].tolist()"}},
    ),
    Mutant("shuffled batches", {sampling: {'plan.sampling == "poisson"': "plan.sampling is None"}}),
    Mutant(
        "the same batch twice",
        {
            sampling: {
                f"yield {_DRAW}": f"yield from [{_DRAW}] * 2",
                "for _ in range(plan.steps_per_epoch)": "for _ in range(plan.steps_per_epoch // 2)",
            }
        },
    ),
    Mutant("empty batches left out", {sampling: {f"yield {_DRAW}": f"yield from filter(None, [{_DRAW}])"}}),
    Mutant(
        "one step more than planned",
        {sampling: {"for _ in range(plan.steps_per_epoch)": "for _ in range(plan.steps_per_epoch + 1)"}},
    ),
    Mutant(
        "noise found for fewer steps",
        {plan: {"privacy.accountant, rate, steps)": "privacy.accountant, rate, steps // 2)"}},
    ),
    Mutant(
        "noise found for a lower rate",
        {plan: {"privacy.accountant, rate, steps)": "privacy.accountant, 0.8 * rate, steps)"}},
    ),
    Mutant(
        "expected batch from the number of batches",
        {
            plan: {
                "        batch=batch,\n        steps=steps,\n": (
                    "        batch=examples // (examples // batch),\n        steps=steps,\n"
                )
            }
        },
    ),
    Mutant("accountant fed fewer steps", {plan: {"plan.sample_rate, steps)]": "plan.sample_rate, steps * 9 // 10)]"}}),
    Mutant("accountant fed a lower rate", {plan: {"plan.sample_rate, steps)]": "0.95 * plan.sample_rate, steps)]"}}),
    Mutant(
        "accountant by a central limit",
        {plan: {"create_accountant(mechanism=plan.accountant)": 'create_accountant(mechanism="gdp")'}},
    ),
]


def hostile(job: jobs.Job) -> jobs.Job:
    """The job with two examples of infinite loss."""
    labels = job.train.labels.clone()
    labels[[3, 9]] += 2

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return jobs.cross_entropy(logits, labels % 2) * torch.where(labels < 2, 1.0, math.inf)

    return replace(job, train=replace(job.train, labels=labels), loss=loss)


JOBS: dict[str, Callable[..., jobs.Job]] = {
    "full": lambda spec, places, **fields: made(spec, places, "full", **fields),
    "automatic": lambda spec, places, **fields: made(spec, places, "full", clipping="automatic", **fields),
    "gradual": lambda spec, places, **fields: made(spec, places, "gradual", **fields),
    "random_mask": lambda spec, places, **fields: made(spec, places, "random_mask", **fields),
    "slash": lambda spec, places, **fields: made(spec, places, "slash", **fields),
    "short": lambda spec, places, **fields: made(spec, places, "full", length=4, **fields),
    "hostile": lambda spec, places, **fields: hostile(made(spec, places, "full", **fields)),
}


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """The engine's modules made anew from their source, the mutant's edits made; as they were afterwards."""
    held = {module: dict(vars(module)) for module in MODULES}
    try:
        for module in MODULES:
            text = source(module)
            for before, after in mutant.edits.get(module, {}).items():
                text = text.replace(before, after)
            exec(compile(text, str(module.__file__), "exec", dont_inherit=True), vars(module))
        yield
    finally:
        for module, names in held.items():
            vars(module).clear()
            vars(module).update(names)


def source(module: ModuleType) -> str:
    """The text of a module."""
    return Path(str(module.__file__)).read_text()


@dataclass(frozen=True)
class Found:
    """What the families of checks give; None where the broken module cannot reach what they look at.

    Attributes:
        error: Largest relative error of the released change without noise.
        chance: Smallest p-value of the residual.
        laws: Names of the laws of sampling and accounting that do not hold.
    """

    error: float | None
    chance: float | None
    laws: list[str] | None

    @property
    def seen(self) -> list[bool]:
        """Whether each family sees something wrong; a value that is not a number is wrong."""
        tolerance = TOLERANCE[torch.float64]
        return [
            self.error is not None and not self.error <= tolerance,
            self.chance is not None and not self.chance >= CHANCE,
            bool(self.laws),
        ]

    def cells(self) -> list[str]:
        """What each family sees, a dash if nothing, blank if it was not run."""
        chance = "" if self.chance is None else f"{self.chance:.0e}" if self.chance > 1e-300 else "< 1e-300"
        shown = [f"{self.error:.1e}" if self.error is not None else "", chance, ", ".join(self.laws or [])]
        run = [value is not None for value in (self.error, self.chance, self.laws)]
        return [text if wrong else "-" if ran else "" for text, wrong, ran in zip(shown, self.seen, run, strict=True)]


def check(mutant: Mutant, spec: Make, places: Places) -> Found:
    """Runs the families of checks that the broken module can reach: what is released, the laws, or both."""
    with broken(mutant):
        error = chance = laws = None
        if not mutant.edits.keys() & {plan, sampling}:
            job = JOBS[mutant.job]
            error = noise_free(job(spec, places), (1, 3))
            noised = job(spec, places, dtype=torch.float32, noise=NOISE)
            found = [p_values(residual) for residual in residuals(noised, [*BATCHES, *[[]] * 3])]
            chance = min(min(values.values()) for values in found)
        if not mutant.edits or mutant.edits.keys() & {rng, plan, sampling}:
            laws = broken_laws()
        return Found(error, chance, laws)


def broken_laws() -> list[str]:
    """Names of the laws that the sampler, the plan, the ledger and the sources of noise do not keep."""
    drawn = _drawn()
    kept = {
        "rate": rate(drawn),
        "batch sizes": batch_sizes(drawn),
        "every example": every_example(drawn),
        "independent steps": independent_steps(drawn),
        "number of steps": number_of_steps(),
        "expected batch": expected_batch(),
        "budget": budget(),
        "ledger": ledger(),
        "streams": streams(),
        "secure noise": secure_noise(),
    }
    return [name for name, holds in kept.items() if not holds]


def _plan() -> plan.Plan:
    """A plan of 12 steps at a rate of 8 / 55."""
    return plan.private_plan(Privacy(epsilon=3.0, delta=1e-5, accountant="rdp"), 55, 8, 2)


def _drawn() -> Tensor:
    """Whether an example is in a batch, in 400 epochs [steps, 55]."""
    plan, generator = _plan(), rng.generator(0, "batches")
    batches = [batch for _ in range(400) for batch in sampling.epoch(plan, generator)]
    found = torch.zeros(len(batches), 55, dtype=torch.bool)
    for row, batch in zip(found, batches, strict=True):
        row[batch] = True
    return found


def rate(drawn: Tensor) -> bool:
    """An example is in a batch with chance batch / N."""
    return bool(stats.binomtest(int(drawn.sum()), drawn.numel(), 8 / 55).pvalue >= CHANCE)


def batch_sizes(drawn: Tensor) -> bool:
    """Batch sizes vary as a binomial's do."""
    sizes, variance = drawn.sum(1).double(), 8 * (1 - 8 / 55)
    # The variance of a sample variance is about 2 sigma^4 / n.
    gap = (sizes.var().item() / variance - 1) / math.sqrt(2 / len(sizes))
    return bool(2 * stats.norm.sf(abs(gap)) >= CHANCE)


def every_example(drawn: Tensor) -> bool:
    """No example is drawn more often than another."""
    return bool(stats.chisquare(drawn.sum(0).numpy()).pvalue >= CHANCE)


def independent_steps(drawn: Tensor) -> bool:
    """That an example was drawn says nothing about the next step."""
    both, chance = drawn[1:] & drawn[:-1], (8 / 55) ** 2
    # Pairs share a step, so their count spreads a little more than a binomial; twice is ample.
    spread = 2 * math.sqrt(chance * (1 - chance) / both.numel())
    return bool(abs(both.double().mean().item() - chance) < stats.norm.isf(CHANCE) * spread)


def number_of_steps() -> bool:
    """An epoch has floor(N / batch) steps, those that draw nobody included."""
    plan = _plan()
    epochs = [replace(plan, sample_rate=rate) for rate in (8 / 55, 0.01)]
    return [12, 6, 6] == [plan.steps, *(len(list(sampling.epoch(e, rng.generator(0, "batches")))) for e in epochs)]


def expected_batch() -> bool:
    """The divisor of the sum is the recipe's, which no quotient of N = 55 and its 6 batches is."""
    return _plan().batch == 8


def budget() -> bool:
    """By Google's accountant the planned noise at the recipe's rate and steps keeps the budget."""
    return pld(_plan().noise_multiplier, 8 / 55, 12, 1e-5) <= 3.0


def ledger() -> bool:
    """The ledger's epsilon is Google's to 1 %."""
    counts: dict[str, Any] = {"examples": 1000, "batch": 50, "steps": 100, "steps_per_epoch": 20, "sample_rate": 0.05}
    noise: dict[str, Any] = {"clip": 1.0, "noise_multiplier": 1.08, "delta": 1e-5, "accountant": "prv"}
    found = plan.ledger(plan.Plan(**counts, **noise, sampling="poisson"), 100, seeded=False)["epsilon"]
    return math.isclose(found, pld(1.08, 0.05, 100, 1e-5), rel_tol=0.01)


@cache
def pld(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon by Google's accountant."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    logging.getLogger("absl").setLevel(logging.ERROR)
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    return float(accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps)).get_epsilon(delta))


def streams() -> bool:
    """Two seeds, and two streams of one seed, are not correlated."""
    sources: list[tuple[int, rng.Stream]] = [(0, "noise"), (1, "noise"), (0, "batches"), (0, "dropout")]
    draws = torch.stack([torch.randn(10_000, generator=rng.generator(*source)) for source in sources])
    return torch.corrcoef(draws).triu(1).abs().max().item() < 0.06


def secure_noise() -> bool:
    """Noise from the operating system has the variance asked for."""
    values = next(rng.normal(rng.Entropy(), [torch.zeros(200_000)], 2.0)).double() / 2
    total = values.square().sum().item()
    return bool(2 * min(stats.chi2.cdf(total, 200_000), stats.chi2.sf(total, 200_000)) >= CHANCE)


@pytest.fixture(scope="module")
def matrix() -> Iterator[list[list[str]]]:
    """Rows of the kill matrix, printed at the end."""
    rows: list[list[str]] = []
    yield rows
    heads = ["mutant", "noise-free equality", "whitened residual", "law"]
    print("\n\n" + tabulate(rows, heads, tablefmt="github", disable_numparse=True))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_rot(mutant: Mutant) -> None:
    """Each text that a mutant changes is in the source once."""
    assert {1} == {source(module).count(before) for module, edits in mutant.edits.items() for before in edits}


def test_page() -> None:
    """The kill matrix of docs/privacy.md has every mutant, and no other."""
    page = (Path(rng.__file__).parents[1] / "docs" / "privacy.md").read_text()
    matrix = page.partition("## The kill matrix")[2].partition("\n## ")[0]
    names = {line.split("|")[1].strip() for line in matrix.splitlines() if line.startswith("| ")}

    assert {mutant.name for mutant in MUTANTS} == {name for name in names if not name.startswith("none ")} - {"mutant"}


@pytest.mark.parametrize("job", JOBS)
def test_correct(spec: Make, places: Places, matrix: list[list[str]], job: str) -> None:
    """The engine as it is passes all checks, made anew like a broken one."""
    pytest.importorskip("dp_accounting")
    found = check(Mutant("none", {}, job), spec, places)
    matrix.append([f"none ({job})", *found.cells()])

    assert not any(found.seen), found


@pytest.mark.filterwarnings("ignore:GDP accounting is experimental")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_killed(spec: Make, places: Places, matrix: list[list[str]], mutant: Mutant) -> None:
    """A broken engine fails a check."""
    pytest.importorskip("dp_accounting")
    found = check(mutant, spec, places)
    matrix.append([mutant.name, *found.cells()])

    assert any(found.seen), found
