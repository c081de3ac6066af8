"""A run on a CUDA device, as far as a machine without one can tell."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_dp import Places, Spec, methods, registry, rng
from peft_dp.measuring.scores import predictions
from peft_dp.spec import Privacy
from peft_dp.training.gradient import noised_mean
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit
from peft_dp.training.tally import Tally
from peft_dp.validate import Missing

from .. import device

PRIVATE = {"privacy": Privacy(epsilon=8.0, delta=1e-3, accountant="rdp")}


@pytest.fixture(autouse=True)
def cuda() -> Iterator[None]:
    """Has a device that is not there."""
    with device.cuda():
        yield


@pytest.fixture
def job(spec: Callable[..., Spec], places: Places) -> Callable[..., Job]:
    """Builds a job of a method with its example; arguments replace the spec's fields."""

    def make(place: str, method: str, **fields: Any) -> Job:
        config = methods.load(method).EXAMPLE.model_dump(mode="json")
        made = spec(**({"method": method, "config": config, "dropout": False, "train": 16, "dev": 8} | fields))
        return build(made, find_sources(made, replace(places, device=place)))

    return make


@pytest.mark.parametrize("fields", [{}, PRIVATE | {"precision": "bf16"}], ids=["plain", "private"])
@pytest.mark.parametrize("method", registry.names("methods"))
def test_same_training(job: Callable[..., Job], method: str, fields: dict[str, Any]) -> None:
    """A whole run brings no two devices together, leaves all on its own, and trains as on the CPU."""
    there, here = (job(place, method, **fields) for place in ("cuda", "cpu"))
    found, expected = ([epoch.loss for epoch in fit(each).epochs] for each in (there, here))
    held = (*there.backbone.model.parameters(), *there.backbone.masks.values())

    assert {"cuda"} == {value.device.type for value in held}
    assert expected == pytest.approx(found, rel=1e-3)
    assert len(predictions(there)) == len(there.dev)


@pytest.mark.parametrize("fields", [{}, PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("method", ["bitfit", "full", "lora"])
def test_waits(job: Callable[..., Job], method: str, fields: dict[str, Any]) -> None:
    """A physical batch never waits for the device; a private one does so twice, for its norms."""
    made, streams, tally = job("cuda", method, **fields), rng.of_steps(0, "cuda"), Tally("cuda")
    device.waits.clear()
    noised_mean(made, [0, 1, 2, 3], streams, tally)

    assert ["aten._local_scalar_dense.default"] * (2 if fields else 0) == device.waits


def test_meeting() -> None:
    """The device that is not there takes no tensor, index or generator from where it is not."""
    there, here = torch.ones(2, device="cuda"), torch.ones(2)
    for wrong in (
        lambda: there + here,
        lambda: here[there.long()],
        lambda: there.normal_(generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError):
            wrong()
    assert [2.0, 2.0] == (there + torch.tensor(1.0)).tolist()


def test_frees_after_out_of_memory(job: Callable[..., Job]) -> None:
    """A run that is out of memory leaves nothing that its passes made to whoever keeps the error."""
    made, kept = job("cuda", "bitfit", **PRIVATE), []

    def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        large = output.detach().clone()
        kept.append(weakref.ref(large))
        raise torch.OutOfMemoryError

    made.backbone.model.get_submodule("head").register_forward_hook(forward)
    with pytest.raises(Missing, match="cuda is out of memory") as held:
        fit(made)

    assert held.value
    assert [None] == list({reference() for reference in kept})
