"""The released parameter change: the clipped sum of a loop of single examples, and noise of the right law."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from peft_dp import Places, Spec, methods, registry

from .released import BATCHES, CHANCE, NOISE, TOLERANCE, Residual, made, noise_free, p_values, residuals

Make = Callable[..., Spec]
METHODS = registry.names("methods")
PHASED = [name for name in METHODS if methods.load(name).Config.phases is not methods.Method.phases]


@pytest.mark.parametrize(("dtype", "length"), [(torch.float32, 24), (torch.float64, 24), (torch.float64, 7)])
@pytest.mark.parametrize("method", METHODS)
def test_noise_free(spec: Make, places: Places, method: str, dtype: torch.dtype, length: int) -> None:
    """Without noise the change is that of the loop, in each phase, under 1, 2 and 4 physical splits.

    At 7 tokens the norms of linear weights are ghost norms, at 24 they are formed.
    """
    assert noise_free(made(spec, places, method, dtype=dtype, length=length)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("method", METHODS)
def test_residual(spec: Make, places: Places, method: str) -> None:
    """In each phase what noise adds to the change is standard normal once scaled, and nothing frozen moves."""
    for residual in residuals(made(spec, places, method, dtype=torch.float32, noise=NOISE)):
        assert min(p_values(residual).values()) >= CHANCE, p_values(residual)


@pytest.mark.parametrize("method", PHASED)
def test_later_phase(spec: Make, places: Places, method: str) -> None:
    """What trains only from the second phase on is bit for bit as it was until then, and noised from then on."""
    job = made(spec, places, method, dtype=torch.float32, noise=NOISE)
    first, last = residuals(job, [*BATCHES, *[[]] * 20])
    joined = {name: value for name, value in last.values.items() if name not in first.values} or last.values
    found = p_values(Residual(joined, intact=first.intact and last.intact))

    assert min(found.values()) >= CHANCE, found


def test_variance(spec: Make, places: Places) -> None:
    """The noise's variance is right to 1 %, and it is independent across 160 steps and 5,000 coordinates."""
    (residual,) = residuals(made(spec, places, "full", dtype=torch.float32, noise=NOISE), [*BATCHES, *[[]] * 157])
    values = torch.cat(list(residual.values.values()), dim=1)

    assert values.numel() > 800_000
    assert abs(values.square().mean().item() - 1) < 0.01
    assert min(p_values(residual).values()) >= CHANCE, p_values(residual)


def test_physical(spec: Make, places: Places) -> None:
    """The noise is the same, value for value, whether examples pass through the model together or one by one."""
    expected, *others = (
        next(residuals(made(spec, places, "full", noise=NOISE), splits=(splits,))).values for splits in (1, 2, 4, 7)
    )
    for values in others:
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-9)


def test_seeds(spec: Make, places: Places) -> None:
    """Two runs under two seeds have independent noise."""
    runs = [next(residuals(made(spec, places, "full", noise=NOISE), seed=seed)).values for seed in (0, 1)]
    rows = {
        str(run): torch.cat([value.flatten() for value in values.values()])[None] for run, values in enumerate(runs)
    }

    assert p_values(Residual(rows, intact=True))["tensors of one size"] >= CHANCE
