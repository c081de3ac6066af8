"""Differential privacy: the plan, the sampler, per-example gradients, the noised sum, and an audit of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["clipped_sum", "per_example_gradients"]

if TYPE_CHECKING:
    from peft_dp.privacy.gradients import clipped_sum, per_example_gradients


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that reading a plan does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'peft_dp.privacy' has no attribute {name!r}")
    from peft_dp.privacy import gradients

    return getattr(gradients, name)
