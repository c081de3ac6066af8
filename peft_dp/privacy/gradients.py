"""Per-example gradients and their clipped sum, at about the cost of an ordinary backward pass.

A forward hook passes the output of every module that owns a trained parameter
through a tap, an identity whose backward pass hands over the gradient. From it
and the module's input each example's gradient is formed on the spot where it is
small (a bias, a gamma, a narrow weight). Of a wide weight only the norm is
found, without the gradient (ghost norms: Goodfellow 2015, arXiv 1510.01799; Li
et al. 2022, arXiv 2110.05679), and input and gradient are kept for the clipped
sum, so that there is no second pass (book-keeping: Bu et al. 2023, arXiv
2210.00038). A bias keeps nothing from the forward pass, and no layer below the
lowest tap is passed back through.

A weight computed from parameters value by value (torch's parametrizations)
passes its gradient on to them, for each example.

A parameter of any other module is given a leading example axis instead: the
module computes with [B, ...] where it had [...], and the gradient of that
tensor is the per-example gradient. Such a module says so by `example_axis`.

Why not hooks on parameters: a parameter's gradient arrives summed over the
batch; what tells examples apart is only there at the outputs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peft_dp.models.backbone import trained_parameters
from peft_dp.privacy.per_example import Each, Part, together, zeroed
from peft_dp.privacy.taps import Call, Taps, Watched

if TYPE_CHECKING:
    pass


Losses = Callable[[list[int]], Tensor]
"""Example indices [B] -> losses [B]; calls the model."""


Found = TypeVar("Found")


GAMMA = 0.01
"""Of automatic clipping (Bu et al. 2022, arXiv 2206.07136, AUTO-S; the value of DP-BiTFiT's code)."""


class Sums(dict[str, Tensor]):
    """Name -> sum of the gradients of a trained parameter.

    Attributes:
        flat: All of them end to end, of which they are views, so that one operation serves all.
    """

    flat: Tensor

    @classmethod
    def like(cls, parameters: Mapping[str, Tensor]) -> Self:
        """Return zeros in the shapes of parameters, which have one type and device."""
        first = next(iter(parameters.values()))
        flat = torch.zeros(sum(p.numel() for p in parameters.values()), dtype=first.dtype, device=first.device)
        parts = torch.split(flat, [p.numel() for p in parameters.values()])
        sums = cls((name, part.view(p.shape)) for (name, p), part in zip(parameters.items(), parts, strict=True))
        sums.flat = flat
        return sums

    def add(self, names: Sequence[str], values: Tensor) -> None:
        """Add to sums of those names, in the order that they have here, values [P] that lie end to end."""
        runs: list[list[int]] = []  # start here and length, of those that lie end to end here too
        for name in names:
            start, size = int(self[name].storage_offset()), self[name].numel()
            if runs and sum(runs[-1]) == start:
                runs[-1][1] += size
            else:
                runs.append([start, size])
        at = 0
        for start, size in runs:
            self.flat[start : start + size] += values[at : at + size]
            at += size


def laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient in the layout of its parameter: fused optimisers walk through the memory of both."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


def zeros(model: nn.Module) -> Sums:
    """Name -> zeros in the shape of each trained parameter.

    Raises:
        ValueError: Trained parameters have different types or devices.
    """
    trained = trained_parameters(model)
    kinds = {(p.dtype, p.device): name for name, p in trained.items()}
    if len(kinds) > 1:
        (_, one), (_, other), *_ = kinds.items()
        raise ValueError(f"{one} and {other} train in different types or on different devices: bring them to one")
    return Sums.like(trained)


def factors(norms: Tensor, clip: float, clipping: str) -> Tensor:
    """What each gradient is multiplied with [B], given their norms [B].

    "abadi": min(1, clip / |g|) (Abadi et al. 2016); "automatic": clip / (|g| + 0.01), which leaves no norm to choose.
    Either way no product is longer than `clip`. An example whose norm is not finite gets 0.
    """
    found = clip / (norms + GAMMA) if clipping == "automatic" else (clip / norms).clamp(max=1.0)
    return torch.where(norms.isfinite(), found, 0.0)


@dataclass(frozen=True)
class PerExample:
    """What one forward and backward pass leaves.

    Attributes:
        parts: Name of each trained parameter -> what gives its gradient of each example.
        losses: Loss of each example [B].
    """

    parts: Mapping[str, Part]
    losses: Tensor

    @cached_property
    def norms(self) -> Tensor:
        """Norm of each example's gradient over all trained parameters [B]."""
        squares = [part.square_norm() for part in self.parts.values() if not isinstance(part, Each)]
        if self.formed_names:
            squares.append(self.formed.square().sum(1))
        return torch.stack(squares).sum(0).clamp(min=0).sqrt()

    @cached_property
    def formed_names(self) -> list[str]:
        """Names of the parameters whose gradients are formed."""
        return [name for name, part in self.parts.items() if isinstance(part, Each)]

    @cached_property
    def formed(self) -> Tensor:
        """The gradients that are formed, side by side [B, P]: a few operations for all in place of some for each."""
        return together([part for part in self.parts.values() if isinstance(part, Each)])

    def each(self) -> Tensor:
        """Gradients of each example [B, P], parameters flattened in the model's order."""
        return torch.cat([part.each().flatten(1) for part in self.parts.values()], dim=1)

    def add_clipped(self, sums: Sums, clip: float, clipping: str) -> Tensor:
        """Adds each example's clipped gradient to `sums`; gives the norms before clipping [B].

        An example without a finite gradient adds nothing: stopping because of it would tell of it.
        """
        weights, lost = factors(self.norms, clip, clipping), ~self.norms.isfinite()
        some = bool(lost.any())
        if self.formed_names:
            sums.add(self.formed_names, weights @ (zeroed(self.formed, lost) if some else self.formed))
        for name, part in self.parts.items():
            if not isinstance(part, Each):
                (part.without(lost) if some else part).add_to(sums[name], weights)
        return self.norms


def coarse_products() -> bool:
    """Return whether matrix products of float32 may be made in TF32 or bfloat16.

    NVIDIA_TF32_OVERRIDE has cuBLAS do so whatever torch says: on an H200 its products were off by 3e-4.
    """
    if os.environ.get("NVIDIA_TF32_OVERRIDE", "0") != "0":
        return True
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # a backend was set by name to another than the rest
        return True


def per_example_pass(
    model: nn.Module,
    losses: Callable[[], Tensor],
    examples: int,
    masks: Mapping[str, Tensor] | None = None,
    watched: Watched | None = None,
) -> PerExample:
    """One forward and backward pass.

    Args:
        model: Those of its parameters train that require a gradient.
        losses: Calls the model and gives the loss of each example [B]; none may depend on another example.
        examples: B.
        masks: Name of a parameter -> where it trains; without an entry, everywhere.
        watched: What trains, if that is known already.

    Raises:
        ValueError: The gradient of one example cannot be told: a parameter has no rule or two modules, a module
            is not called once, or has one row for many examples; or there is not one loss for each example.
            Or a parameter that trains is in half precision, or torch may make products of float32 in a coarser type.
    """
    if coarse_products():
        raise ValueError(
            "torch may make products of float32 in a coarser type such as TF32, and find norms too short: "
            "call torch.set_float32_matmul_precision('highest'), and leave TORCH_ALLOW_TF32_CUBLAS_OVERRIDE and "
            "NVIDIA_TF32_OVERRIDE unset"
        )
    if watched is None:
        with Watched(model) as watched:
            return per_example_pass(model, losses, examples, masks, watched)
    taps = Taps(watched, examples, masks or {})
    copies = {name: p.detach().expand(examples, *p.shape).requires_grad_() for name, p in watched.expanded.items()}
    with _in_place_named(model), taps:
        if copies:
            found = functional_call(Call(model, losses), {f"model.{name}": value for name, value in copies.items()}, ())
        else:
            found = losses()
    if found.shape != (examples,):
        raise ValueError(f"losses have shape {tuple(found.shape)}, but must be one for each of {examples} examples")
    if not found.requires_grad:
        raise ValueError("the losses depend on nothing that trains: let a parameter that they use require a gradient")
    with _in_place_named(model):
        _, *gradients = torch.autograd.grad(found.sum(), [taps.anchor, *copies.values()], allow_unused=True)
    for name, gradient in zip(copies, gradients, strict=True):
        if gradient is not None:
            taps.put(name, Each(gradient))
    order = [name for name in watched.trained if name in taps.parts]
    return PerExample({name: taps.parts[name] for name in order}, found.detach())


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def _in_place_named(model: nn.Module) -> Iterator[None]:
    """Turn torch's error about a tensor that was changed in place into one that says what to change.

    Raises:
        ValueError: The output of a module that trains is changed in place.
    """
    try:
        yield
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        named = [name for name, module in model.named_modules() if getattr(module, "inplace", False)]
        remedy = f"set inplace=False on {', '.join(named)}" if named else "write x = x + y in place of x += y"
        raise ValueError(
            f"the output of a module that trains is changed in place, so its gradient cannot be told: {remedy}"
        ) from error


def finite_passes(
    model: nn.Module,
    losses: Losses,
    cut: list[int],
    masks: Mapping[str, Tensor],
    per_example_pass: Callable[..., PerExample] = per_example_pass,
) -> Iterator[tuple[list[int], PerExample]]:
    """Yield a physical batch and what `per_example_pass` gives of it; its halves, where an example is not finite.

    Such an example may have spoilt those that share a row with it, and what they add must not depend on it.
    """

    def whole(cut: list[int]) -> PerExample | None:
        found = per_example_pass(model, lambda: losses(cut), len(cut), masks)
        if len(cut) == 1 or found.norms.isfinite().all():
            return found
        return None

    return halved(whole, cut)


def halved(attempt: Callable[[list[int]], Found | None], cut: list[int]) -> Iterator[tuple[list[int], Found]]:
    """What `attempt` gives of a physical batch; of its halves, and these again, if it gives None or is out of memory.

    No example is left out, for its absence would tell of it.

    Raises:
        torch.OutOfMemoryError: One example alone is too large.
    """
    try:
        found = attempt(cut)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        if len(cut) == 1:
            raise torch.OutOfMemoryError(str(error)) from error
        found = None  # and on behind the handler, which holds what the attempt had made
    if found is not None:
        yield cut, found
        return
    for half in (cut[: len(cut) // 2], cut[len(cut) // 2 :]):
        yield from halved(attempt, half)


def _out_of_memory(error: RuntimeError) -> bool:
    """Return whether a device had no memory left, for torch or for cuBLAS, whose error is an ordinary one."""
    return isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def check_independent(model: nn.Module, losses: Callable[[], Tensor]) -> None:
    """Checks on two examples that their gradients can be told apart, and are all there is.

    Where one example's loss has a gradient at another, no clip bounds what one example does. What the check sees
    does not depend on whether the examples are finite: stopping because of one would tell of it.

    Args:
        model: As in `per_example_pass`.
        losses: Likewise, of two examples.

    Raises:
        ValueError: A module mixes examples, changes weights without noise, or is used beside its call; or as
            `per_example_pass`.
    """
    for name, module in model.named_modules():
        if module.training and isinstance(module, BATCH_NORMS):
            raise ValueError(f"{name} is a batch norm, which mixes examples: call its eval(), or exchange it")
        if getattr(module, "max_norm", None) is not None:
            raise ValueError(f"{name} has a max_norm, so a look-up changes its weights without noise: leave it out")

    def first() -> Tensor:
        found = losses()
        return found * found.new_tensor([1.0, 0.0]) if found.shape == (2,) else found

    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        for name, part in per_example_pass(model, first, 2).parts.items():
            if part.square_norm()[1] > 0:
                raise ValueError(
                    f"the loss of one example has a gradient at another, seen at {name}: a module mixes examples, "
                    "or has its batch axis elsewhere than first"
                )
    sums = zeros(model)
    with torch.random.fork_rng(devices=devices):
        norms = per_example_pass(model, losses, 2).add_clipped(sums, math.inf, "abadi")
    with torch.random.fork_rng(devices=devices):
        trained = list(trained_parameters(model).values())
        whole = torch.autograd.grad(losses().sum(), trained, allow_unused=True, materialize_grads=True)
    for (name, found), gradient in zip(sums.items(), whole, strict=True):
        # Passes in bfloat16 differ by a percent of each gradient, and their sum may all but cancel.
        if (found - gradient).norm() > 0.05 * norms.sum():
            raise ValueError(f"{name} is used beside the call of its module, which its rule does not see: freeze it")
