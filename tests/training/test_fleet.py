"""Seeds in one batch: each trains to what it trains to alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from peft_dp import methods, registry
from peft_dp.spec import Optimiser, Privacy
from peft_dp.training import fleet
from peft_dp.training.job import Job
from peft_dp.training.loop import fit, fit_together

METHODS = registry.names("methods")
TOGETHER = ("adapter", "bitfit", "lora", "slash", "spafit")


FIELDS: dict[str, dict[str, Any]] = {
    "cls": {},
    "mean": {"readout": "mean"},
    "mask": {"readout": "mask"},
    "stock": {"head": "stock"},
    "tokens": {"task": "entities", "readout": "tokens"},
    "clipped": {"optimiser": Optimiser(rate=0.01, max_grad_norm=0.5, warmup=0.1, weight_decay=0.01)},
    "uneven": {"train": 23},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("method", TOGETHER)
def test_as_alone(job: Callable[..., Job], method: str, fields: dict[str, Any]) -> None:
    """Each seed trains to its own values, to 1e-9, and leaves the same trail."""
    config = methods.load(method).EXAMPLE.model_dump(mode="json")
    made, alone = ([job(method=method, config=config, seed=s, **fields) for s in (3, 4, 5)] for _ in range(2))
    found = fit_together(made)
    expected = [fit(one) for one in alone]

    for one, other, trained, as_alone in zip(made, alone, found, expected, strict=True):
        values = dict(other.backbone.model.named_parameters())
        for name, value in one.backbone.model.named_parameters():
            torch.testing.assert_close(value, values[name], rtol=0, atol=1e-9)
        for epoch, same in zip(trained.epochs, as_alone.epochs, strict=True):
            assert (epoch.examples, epoch.tokens, epoch.steps) == (same.examples, same.tokens, same.steps)
            assert epoch.loss == pytest.approx(same.loss, abs=1e-9)
        assert trained.optimiser_bytes == as_alone.optimiser_bytes


def test_which(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the methods as their examples have them, those whose seeds go together."""
    monkeypatch.setattr(fleet, "SHARE", 0.9)  # of the tiny model more trains
    found = set()
    for method in METHODS:
        config = methods.load(method).EXAMPLE.model_dump(mode="json")
        if fleet.possible(job(method=method, config=config)):
            found.add(method)

    assert set(TOGETHER) == found


@pytest.mark.parametrize(
    "fields", [{"dropout": True}, {"privacy": Privacy(epsilon=8.0, delta=1e-3)}], ids=["dropout", "private"]
)
def test_not_possible(job: Callable[..., Job], fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout a seed alone would draw otherwise, and private batches are large: these go alone."""
    monkeypatch.setattr(fleet, "SHARE", 0.9)

    assert fleet.possible(job())
    assert not fleet.possible(job(**fields))


def test_diverged(job: Callable[..., Job]) -> None:
    """A loss that is not finite ends the training, and the model is as it was."""
    made = [job(seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        made[1].backbone.head[0].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the training loss of epoch 1 is not finite"):
        fit_together(made)
    assert all("forward" not in vars(module) for module in made[0].backbone.model.modules())
