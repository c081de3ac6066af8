"""A CUDA device that is not there: tensors that say they are on it, and refuse to meet others.

Each has its values in a tensor of the CPU. What is simulated is where a tensor is, what makes the CPU wait, and that a
backward pass runs in another thread; kernels, autocast's choice of types and memory are the CPU's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
CPU_GENERATOR, AUTOCAST, RUN = torch.Generator, torch.autocast, torch.autograd._engine_run_backward  # type: ignore[attr-defined]
INDEXING = {aten.index.Tensor, aten.index_put_.default}
LOOKS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}
waits: list[str] = []
"""What made the CPU wait for the device."""


class Generator(CPU_GENERATOR):  # type: ignore[misc, valid-type]
    """A generator that knows which device it was made for."""

    def __new__(cls, device: str = "cpu") -> Generator:
        """Draws as the CPU's does."""
        made = super().__new__(cls)
        made.place = torch.device(device).type
        return made

    def __init__(self, device: str = "cpu") -> None: ...


class There(Tensor):
    """A tensor on the device."""

    held: Tensor

    device = property(lambda self: torch.device("cuda"))  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: Any, held: Tensor) -> There:
        """Puts a tensor on the device."""
        shape: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made: There = Tensor._make_wrapper_subclass(cls, held.size(), **shape)  # type: ignore[attr-defined]
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Runs one operation on what the tensors hold."""
        tensors = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor)]
        if func in INDEXING:  # takes indices from the CPU, and waits for them and for a mask
            indices = [index for index in args[1] if index is not None]
            waits.extend(str(func) for index in indices if index.dtype == torch.bool or not isinstance(index, There))
            tensors = [args[0], *args[2:3]]
        here = [value for value in tensors if not isinstance(value, There)]
        scalars = func in INDEXING or torch.Tag.pointwise in func.tags
        if any(value.dim() > 0 or not scalars for value in here):
            raise RuntimeError(f"{func} of tensors on two devices, of shapes {[value.shape for value in tensors]}")
        waits.extend([str(func)] * (func in LOOKS))
        without = tree_map_only(There, lambda value: value.held, (args, kwargs or {}))
        out = func(*without[0], **without[1] | ({"device": "cpu"} if "device" in without[1] else {}))
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, There, out))


class Moved(torch.autograd.Function):
    """A copy on the other side."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """To the device from the CPU, or back."""
        ctx.set_materialize_grads(False)
        return value.held.clone() if isinstance(value, There) else There(value.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Tensor | None:
        """The other way."""
        return None if gradient is None else Moved.apply(gradient)


class Devices(TorchFunctionMode):
    """Makes and moves tensors as the device's name asks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one function of torch; the names of devices go no further."""
        kwargs, there = dict(kwargs or {}), bool(args) and isinstance(args[0], There)
        if func is Tensor.tolist and there:
            waits.append("tolist")
            return args[0].held.tolist()
        if func is Tensor.untyped_storage and there:
            return args[0].held.untyped_storage()
        # These two allocate without asking.
        if func is torch._C._nn.pad_sequence and isinstance(args[0][0], There):
            return There(func([value.held for value in args[0]], *args[1:], **kwargs))
        if func is Tensor.new_tensor and there:
            return There(func(args[0].held, *args[1:], **kwargs))
        if func in (Tensor.to, Tensor.cpu):
            rest = [value for value in args[1:] if value is not None]
            like = [rest.pop(0)] if rest and isinstance(rest[0], Tensor) else []
            target = (
                [rest.pop(0)] if rest and isinstance(rest[0], str | torch.device) else ["cpu"] * (func is Tensor.cpu)
            )
            target += [
                value for value in (kwargs.pop("device", None), *(one.device for one in like)) if value is not None
            ]
            blocks = not (kwargs.pop("non_blocking", False) or rest[1:2] == [True])
            types = [value for value in (*rest, *(one.dtype for one in like)) if isinstance(value, torch.dtype)]
            value = args[0].to(*types, **kwargs) if types or kwargs else args[0]
            if not target or (torch.device(target[0]).type == "cuda") == isinstance(value, There):
                return value
            waits.extend(["to"] * blocks)
            return Moved.apply(value)
        asked = there or torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if (generator := kwargs.get("generator")) and (getattr(generator, "place", "cpu") == "cuda") != asked:
            raise RuntimeError(f"{func} draws from another device's generator")
        if asked and not there:
            grad = kwargs.pop("requires_grad", False)
            return There(func(*args, **kwargs | {"device": "cpu"})).requires_grad_(grad)
        return func(*args, **kwargs)


def backward(*args: Any, **kwargs: Any) -> Any:
    """A backward pass in a thread of its own, as a GPU's."""
    found: list[Any] = []

    def run() -> None:
        with Devices():
            try:
                found.append(RUN(*args, **kwargs))
            except Exception as error:
                found.append(error)

    if threading.current_thread().name == "device":
        return RUN(*args, **kwargs)
    thread = threading.Thread(target=run, name="device")
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


@contextmanager
def cuda() -> Iterator[None]:
    """A machine with the device, within the block."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    changes: dict[Any, dict[str, Any]] = {
        torch.cuda: {
            "is_available": lambda: True,
            "current_device": lambda: 0,
            "default_generators": (torch.default_generator,),
        },
        torch.autograd: {"_engine_run_backward": backward},
        # It asks a driver whether a graph is being recorded.
        torch.optim.Optimizer: {
            name: lambda self: None for name in vars(torch.optim.Optimizer) if name.endswith("capture_health_check")
        },
        torch: {
            "Generator": Generator,
            "autocast": lambda device, *args, **kwargs: AUTOCAST("cpu", *args, **kwargs),
            "inference_mode": torch.no_grad,  # whose tensors no subclass can wrap
        },
    }
    try:
        with ExitStack() as stack:
            for module, names in changes.items():
                stack.enter_context(mock.patch.multiple(module, **names))
            stack.enter_context(Devices())
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
