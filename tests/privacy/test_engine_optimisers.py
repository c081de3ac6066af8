"""Optimisers beside the engine: what they may move, and by which gradient."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

from peft_dp import PrivacyEngine

from .engine_cases import Case, engine, flat, small


def test_fused_optimiser() -> None:
    """A fused optimiser moves a parameter that lies transposed in memory by each value's own gradient."""
    moved = []
    for fused in (False, True):
        case = small()
        first: Any = case.model.get_submodule("0")
        first.weight = nn.Parameter(first.weight.detach().t().contiguous().t())
        private = engine(case.model)
        optimiser = torch.optim.SGD(case.model.parameters(), lr=0.5, fused=fused)
        for indices in private.batches():
            private.backward(case.losses, indices)
            optimiser.step()
        moved.append(flat([*case.trained().values()]).detach())

    torch.testing.assert_close(moved[0], moved[1], rtol=1e-12, atol=0)


def frozen_first() -> tuple[Case, PrivacyEngine, list[int]]:
    """A model whose first layer is frozen, its engine and a first batch."""
    case = small()
    case.model[0].requires_grad_(False)  # type: ignore[index]
    made = engine(case.model)
    return case, made, next(batch for batch in made.batches() if batch)


def test_second_optimiser() -> None:
    """An optimiser that would update the model by a gradient without noise is stopped before it does."""
    case, made, indices = frozen_first()
    made.backward(case.losses, indices)
    first = case.model[0]  # type: ignore[index]
    first.requires_grad_(True)
    first.weight.grad = torch.ones_like(first.weight)
    before = first.weight.detach().clone()
    with pytest.raises(ValueError, match=r"of 0\.weight is not the one that backward set, so it has no"):
        torch.optim.SGD(first.parameters(), lr=1.0).step()

    assert torch.equal(before, first.weight)


def test_plain_backward() -> None:
    """So is one that is to use what an ordinary backward pass made."""
    case, made, indices = frozen_first()
    made.backward(case.losses, indices)
    case.model.zero_grad()
    case.losses(indices).sum().backward()
    with pytest.raises(ValueError, match=r"2\.weight is not the one that backward set"):
        torch.optim.SGD(case.model.parameters(), lr=1.0).step()


def test_parameter_added_later() -> None:
    """A parameter that joins later is noised from the next step on; frozen again, it keeps no gradient to move by."""
    case = small()
    first = case.model[0]  # type: ignore[index]
    first.requires_grad_(False)
    made = engine(case.model)
    optimiser = torch.optim.SGD(case.model.parameters(), lr=1.0, weight_decay=0.1)
    moved = []
    for step, indices in enumerate(made.batches()):
        first.requires_grad_(step in (1, 2))
        before = first.weight.detach().clone()
        made.backward(case.losses, indices)
        optimiser.step()
        moved.append(not torch.equal(before, first.weight))

    assert moved == [False, True, True, False, False, False]


def test_optimisers_of_others() -> None:
    """Gradients may be changed in place; other models, and this one once its engine is gone, are left alone."""
    case, made, indices = frozen_first()
    made.backward(case.losses, indices)
    torch.nn.utils.clip_grad_norm_(case.model.parameters(), 0.1)
    torch.optim.SGD(case.model.parameters(), lr=1.0).step()
    for model in (small().model, case.model):
        if model is case.model:
            del made
            gc.collect()
        for parameter in model.parameters():
            parameter.requires_grad_(True).grad = torch.ones_like(parameter)
        torch.optim.SGD(model.parameters(), lr=1.0).step()
