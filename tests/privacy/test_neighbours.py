"""One training twice with one example replaced, all randomness frozen: what must not depend on an example does not.

Steps, drawn indices, noise, what is released (its names, shapes and types), the streams' states, the ledger and
exceptions are compared; the values released differ, and so may the physical cuts and how often a batch is passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_dp import Places, Privacy, PrivacyEngine, Spec, methods, registry, rng
from peft_dp.models.batch import Encoded
from peft_dp.privacy import gradients, noised_sum
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.run import Run
from peft_dp.training.tally import Tally

from .engine_cases import regression

METHODS = registry.names("methods")
PRIVACY = Privacy(epsilon=8.0, delta=1e-3, clip=0.1, accountant="rdp")
REPLACED = 0
"""The example that is replaced: one of the two on which independence is checked."""
SPOILT = 4
"""A token that no example has; its embedding is made infinite."""


@dataclass
class Trace:
    """What a private training lets be seen beside the values that it releases.

    Attributes:
        drawn: Indices of each logical batch.
        noise: Shape, scale and values of each draw of noise.
        released: Name, shape and type of each noised sum.
        rest: States of the streams at the end, the ledger, and the error if there was one.
    """

    drawn: list[list[int]] = field(default_factory=list)
    noise: list[tuple[Any, ...]] = field(default_factory=list)
    released: list[list[tuple[Any, ...]]] = field(default_factory=list)
    rest: list[Any] = field(default_factory=list)


@contextmanager
def traced() -> Iterator[Trace]:
    """Fill a trace with the draws of noise within the block, and the error that ends it."""
    trace, normal = Trace(), rng.normal

    def watched(source: rng.Source, like: Sequence[Tensor], std: float) -> Iterator[Tensor]:
        for values in normal(source, like, std):
            trace.noise.append((values.shape, values.dtype, std, values.flatten().tolist()))
            yield values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "normal", watched)
        try:
            yield trace
        except (ValueError, FloatingPointError) as error:
            trace.rest.append(str(error))


def shapes(values: dict[str, Tensor]) -> list[tuple[Any, ...]]:
    """Name, shape and type of each value."""
    return [(name, value.shape, value.dtype) for name, value in values.items()]


def training(job: Job) -> Trace:
    """The trace of a whole training by the project's loop."""
    draw, release = Run.draw, Tally.release
    with traced() as trace, pytest.MonkeyPatch.context() as patch:

        def watched_draw(run: Run) -> list[int]:
            trace.drawn.append(draw(run))
            return trace.drawn[-1]

        def watched_release(tally: Tally, sums: dict[str, Tensor], times: float) -> None:
            trace.released.append(shapes(sums))
            release(tally, sums, times)

        patch.setattr(Run, "draw", watched_draw)
        patch.setattr(Tally, "release", watched_release)
        with Run(job) as run:
            while not run.done:
                run.step()
            streams = {n: v.tolist() for n, v in run.state().tensors.items() if n.startswith("stream/")}
            ledger = run.result().ledger or {}
        trace.rest += [streams, ledger | {"clipped": None}]
    return trace


def exchanged(data: Encoded, ids: list[int]) -> Encoded:
    """The data with another example in one place: other tokens, another number of them, another label."""
    labels = data.labels.clone()
    labels[REPLACED] = 1 - labels[REPLACED]
    put = {REPLACED: ids}
    return replace(
        data,
        ids=[put.get(at, list(held)) for at, held in enumerate(data.ids)],
        types=[[0] * len(ids) if at in put else held for at, held in enumerate(data.types)],
        labels=labels,
    )


def neighbours(spec: Callable[..., Spec], places: Places, method: str) -> Iterator[Job]:
    """A private job, the same with a longer example in one place, and with one whose gradient is not finite."""
    config = methods.load(method).EXAMPLE.model_dump(mode="json")
    asked = spec(method=method, config=config, privacy=PRIVACY, dropout=False, epochs=2, seed=1)
    for kind in ("as it is", "longer", "not finite"):
        job = build(asked, find_sources(asked, places))
        embeddings = job.backbone.embeddings.get_submodule("word_embeddings")
        assert not any(SPOILT in ids for ids in job.train.ids)
        with torch.no_grad():
            embeddings.get_parameter("weight")[SPOILT] = torch.inf
        ids = list(job.train.ids[REPLACED])
        more = {"as it is": ids, "longer": [*ids[:-1], *ids[1:-1], *ids[1:]], "not finite": [ids[0], SPOILT, ids[-1]]}
        job = replace(job, train=exchanged(job.train, more[kind][:24])) if kind != "as it is" else job
        assert job.losses(job.batch(job.train, [REPLACED])).isfinite().all() == (kind != "not finite")
        yield job


@pytest.mark.parametrize("method", METHODS)
def test_methods(spec: Callable[..., Spec], places: Places, method: str) -> None:
    """No method's training shows by more than the values released which example it had."""
    one, *others = (training(job) for job in neighbours(spec, places, method))

    assert any(REPLACED in indices for indices in one.drawn)
    assert len(one.released) == len(one.drawn) == 6
    values = sum(len(values) for *_, values in one.noise)
    assert values == sum(shape.numel() for step in one.released for _, shape, _ in step)
    for other in others:
        assert other == one


def engine(kind: str, physical: int) -> Trace:
    """The trace of a loop of one's own, with an example as it is, exchanged, or with a loss that is not finite."""
    torch.manual_seed(0)
    case = regression(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double())
    factors = torch.ones(24, dtype=torch.float64)
    factors[REPLACED] = {"as it is": 1.0, "other": -40.0, "not finite": float("nan")}[kind]

    def losses(indices: list[int]) -> Tensor:
        return case.losses(indices) * factors[indices]

    with traced() as trace:
        made = PrivacyEngine(case.model, PRIVACY, examples=24, batch=8, epochs=3, physical=physical, seed=3)
        optimiser = torch.optim.SGD(case.model.parameters(), lr=0.1)
        for indices in made.batches():
            trace.drawn.append(indices)
            made.backward(losses, indices)
            trace.released.append(shapes(case.gradients()))
            optimiser.step()
        trace.rest.append(made.ledger())
    return trace


@pytest.mark.parametrize("physical", [2, 32])
def test_engine(physical: int) -> None:
    """Nor does a loop of one's own with `PrivacyEngine`."""
    one, *others = (engine(kind, physical) for kind in ("as it is", "other", "not finite"))

    assert any(REPLACED in indices for indices in one.drawn)
    assert len(one.released) == 9
    for other in others:
        assert other == one


def noise_by_norms(patch: pytest.MonkeyPatch) -> None:
    """Scale the noise by the norms that were seen."""
    whole = noised_sum.noised_sum

    def broken(model: Any, losses: Any, cuts: Any, plan: Any, *rest: Any, **more: Any) -> Any:
        seen = [1.0]

        def watch(cut: list[int], each: Tensor, norms: Tensor) -> None:
            seen.append(float(norms.nan_to_num(0.0).sum()))

        whole(model, losses, list(cuts), replace(plan, noise_multiplier=0.0), *rest, watch=watch)
        scaled = replace(plan, noise_multiplier=plan.noise_multiplier * sum(seen))
        return whole(model, losses, cuts, scaled, *rest, **more)

    from peft_dp.privacy import engine as own

    patch.setattr(own, "noised_sum", broken)


def refused(patch: pytest.MonkeyPatch) -> None:
    """Stop where an example is not finite."""
    factors = gradients.factors

    def broken(norms: Tensor, clip: float, clipping: str) -> Tensor:
        if not norms.isfinite().all():
            raise ValueError("an example is not finite")
        return factors(norms, clip, clipping)

    patch.setattr(gradients, "factors", broken)


@pytest.mark.parametrize("broken", [noise_by_norms, refused])
def test_it_is_seen(broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that depends on the examples, and an end because of one, make the traces differ."""
    broken(monkeypatch)
    one, other, lost = (engine(kind, 32) for kind in ("as it is", "other", "not finite"))

    assert not one == other == lost
