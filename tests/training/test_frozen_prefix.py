"""Frozen layers left out: the same training, fewer passes, and a model that is whole again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_dp import Spec, methods, registry
from peft_dp.spec import Privacy
from peft_dp.training import frozen_prefix
from peft_dp.training.job import Job
from peft_dp.training.loop import fit

Make = Callable[..., Spec]
METHODS = registry.names("methods")
PRIVACY = Privacy(epsilon=8.0, delta=1e-3, accountant="rdp")


def trained(job: Job) -> dict[str, Tensor]:
    """Copies of all values after training."""
    fit(job)
    return {name: p.detach().clone() for name, p in job.backbone.model.named_parameters()}


def passes(job: Job, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often each layer is passed while the job trains."""
    counts = [0] * len(job.backbone.layers)
    for at, layer in enumerate(job.backbone.layers):

        def count(module: Any, inputs: Any, output: Tensor, at: int = at) -> None:
            counts[at] += 1

        layer.register_forward_hook(count)
    fit(job)
    return counts


@pytest.mark.parametrize("privacy", [None, PRIVACY], ids=["plain", "private"])
@pytest.mark.parametrize("method", METHODS)
def test_same_training(job: Callable[..., Job], method: str, privacy: Privacy | None) -> None:
    """Every method trains to the same values, to 1e-10, whether frozen layers are left out or not."""
    config = methods.load(method).EXAMPLE.model_dump(mode="json")
    first, second = (trained(job(method=method, config=config, privacy=privacy, reuse=on)) for on in (False, True))

    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-10)


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "head": ({"method": "head"}, 2),
    "stock head": ({"method": "head", "head": "stock"}, 2),
    "one frozen layer": (
        {"method": "spafit", "config": {"frozen": 0, "bias": 0, "variant": "I", "rank": 2, "alpha": 4.0}},
        1,
    ),
    "upper biases": ({"method": "bitfit", "config": {"biases": ["output"]}}, 0),
    "all": ({"method": "full"}, 0),
    "prompt": ({"method": "warp", "config": {"length": 2}}, 0),
    "carriers": ({"method": "rgp", "config": {"rank": 2}}, 0),
}


@pytest.mark.parametrize(("fields", "layers"), CASES.values(), ids=CASES)
def test_frozen(job: Callable[..., Job], fields: dict[str, Any], layers: int) -> None:
    """The layers that can be left out are those below the lowest value that moves."""
    assert layers == frozen_prefix.frozen_layers(job(**fields).backbone)


def test_passes(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of all examples through what is frozen, and none beyond; without reuse each step is one."""
    made = [job(method="head", epochs=4, reuse=on) for on in (True, False)]
    with_, without = (passes(one, monkeypatch) for one in made)

    assert [1, 1] == with_
    assert [made[1].plan.steps] * 2 == without


def test_kept_through_phases(job: Callable[..., Job]) -> None:
    """States kept for several phases, of no more layers than asked for, are those that each of them starts from."""
    made = job(method="head")
    with frozen_prefix.without_frozen_layers(made, 2, 1) as whole:
        assert whole.train.states is not None
        assert [len(states) for states in whole.train.states] == made.train.lengths
        with frozen_prefix.without_frozen_layers(whole, 1) as now:
            assert now is whole
    with frozen_prefix.without_frozen_layers(made, 2, 0) as none:
        assert none is made


@pytest.mark.parametrize(("stages", "layers"), [([[1, 1]], 1), ([[1, 1], [2, 3]], 0)])
def test_settled(job: Callable[..., Job], stages: list[list[int]], layers: int) -> None:
    """Gradual unfreezing's last stage tells which layers are never trained."""
    made = job(method="gradual", config={"stages": stages}, epochs=sum(epochs for _, epochs in stages))

    assert layers == made.method.settled(made.backbone)


@pytest.mark.parametrize(
    "fields", [{"epochs": 1}, {"dropout": True}, {"reuse": False}], ids=["one epoch", "dropout", "not wanted"]
)
def test_left_alone(job: Callable[..., Job], fields: dict[str, Any]) -> None:
    """Where nothing would be saved, where it is not exact, or not wanted, the job stays as it is."""
    made = job(method="head", **fields)
    with frozen_prefix.without_frozen_layers(made, made.spec.epochs) as now:
        assert now is made


def test_limit(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """States that are more than the limit are not kept; those that just fit are."""
    made = job(method="head")
    size = sum(made.train.lengths) * 16 * 8
    for limit, kept in ((size - 1, False), (size, True)):
        monkeypatch.setattr(frozen_prefix, "LIMIT", limit)
        with frozen_prefix.without_frozen_layers(made, 2) as now:
            assert kept == (now.train.states is not None)


def test_whole_again(job: Callable[..., Job]) -> None:
    """After the phase, also one that ended in an error, the model has its own modules and gives its own logits."""
    made = job(method="head")
    batch = made.train.batch([0, 1, 2], "cpu")
    before, modules = made.backbone.logits(batch), list(made.backbone.model.modules())
    with suppress(KeyboardInterrupt), frozen_prefix.without_frozen_layers(made, 2) as now:
        torch.testing.assert_close(now.backbone.logits(now.train.batch([0, 1, 2], "cpu")), before)
        raise KeyboardInterrupt

    assert modules == list(made.backbone.model.modules())
    assert torch.equal(before, made.backbone.logits(batch))
