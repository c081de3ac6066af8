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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from peft_dp import packing
from peft_dp.backbones import trained_parameters
from peft_dp.packing import Packing
from peft_dp.privacy.parts import Behind, Each, Part, Product, Rows, Whole

if TYPE_CHECKING:
    from peft_dp.job import Job
    from peft_dp.training.batching import Batch

Losses = Callable[[list[int]], Tensor]
"""Example indices [B] -> losses [B]; calls the model."""

Found = TypeVar("Found")

GAMMA = 0.01
"""Of automatic clipping (Bu et al. 2022, arXiv 2206.07136, AUTO-S; the value of DP-BiTFiT's code)."""


@dataclass(frozen=True)
class Clipped:
    """The clipped sum over one physical batch.

    Attributes:
        sums: Name -> sum over examples of the clipped gradient, in the parameter's shape.
        losses: Loss of each example [B].
        norms: Gradient norm of each example before clipping [B].
    """

    sums: dict[str, Tensor]
    losses: Tensor
    norms: Tensor


def clipped_sum(job: Job, batch: Batch, clip: float, clipping: str = "abadi") -> Clipped:
    """Sum over examples of g_i times its clipping factor, see `factors`; |g_i| is over all trained parameters.

    What shares a row with an example that is not finite may be lost with it; `passes` sees to that.
    """
    backbone = job.backbone
    recorded = record(backbone.model, lambda: job.losses(batch), len(batch), backbone.masks)
    sums = zeros(backbone.model)
    return Clipped(sums, recorded.losses, recorded.add_clipped(sums, clip, clipping))


def per_example_gradients(job: Job, batch: Batch) -> Tensor:
    """Gradients of each example [B, P], parameters flattened in the model's order; for tests and small models."""
    return record(job.backbone.model, lambda: job.losses(batch), len(batch), job.backbone.masks).each()


def zeros(model: nn.Module) -> dict[str, Tensor]:
    """Name -> zeros in the shape of each trained parameter, contiguous."""
    trained = trained_parameters(model)
    return {name: torch.zeros_like(p, memory_format=torch.contiguous_format) for name, p in trained.items()}


def factors(norms: Tensor, clip: float, clipping: str) -> Tensor:
    """What each gradient is multiplied with [B], given their norms [B].

    "abadi": min(1, clip / |g|) (Abadi et al. 2016); "automatic": clip / (|g| + 0.01), which leaves no norm to choose.
    Either way no product is longer than `clip`. An example whose norm is not finite gets 0.
    """
    found = clip / (norms + GAMMA) if clipping == "automatic" else (clip / norms).clamp(max=1.0)
    return torch.where(norms.isfinite(), found, 0.0)


@dataclass(frozen=True)
class Recorded:
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
        return torch.stack([part.square_norm() for part in self.parts.values()]).sum(0).clamp(min=0).sqrt()

    def each(self) -> Tensor:
        """Gradients of each example [B, P], parameters flattened in the model's order."""
        return torch.cat([part.each().flatten(1) for part in self.parts.values()], dim=1)

    def add_clipped(self, sums: dict[str, Tensor], clip: float, clipping: str) -> Tensor:
        """Adds each example's clipped gradient to `sums`; gives the norms before clipping [B].

        An example without a finite gradient adds nothing: stopping because of it would tell of it.
        """
        weights, lost = factors(self.norms, clip, clipping), ~self.norms.isfinite()
        some = bool(lost.any())
        for name, part in self.parts.items():
            (part.without(lost) if some else part).add_to(sums[name], weights)
        return self.norms


def coarse_products() -> bool:
    """Whether torch is allowed to make matrix products of float32 in TF32 or bfloat16."""
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # a backend was set by name to another than the rest
        return True


def record(
    model: nn.Module, losses: Callable[[], Tensor], examples: int, masks: Mapping[str, Tensor] | None = None
) -> Recorded:
    """One forward and backward pass.

    Args:
        model: Those of its parameters train that require a gradient.
        losses: Calls the model and gives the loss of each example [B]; none may depend on another example.
        examples: B.
        masks: Name of a parameter -> where it trains; without an entry, everywhere.

    Raises:
        ValueError: The gradient of one example cannot be told: a parameter has no rule or two modules, a module
            is not called once, or has one row for many examples; or there is not one loss for each example.
            Or a parameter that trains is in half precision, or torch may make products of float32 in a coarser type.
    """
    if coarse_products():
        raise ValueError(
            "torch may make products of float32 in a coarser type such as TF32, and find norms too short: "
            "call torch.set_float32_matmul_precision('highest'), and leave TORCH_ALLOW_TF32_CUBLAS_OVERRIDE unset"
        )
    taps = _Taps(model, examples, masks or {})
    expanded = {
        name: p.detach().expand(examples, *p.shape).requires_grad_() for name, p in _expanded(model, taps.names).items()
    }
    with taps:
        found = functional_call(_Call(model, losses), {f"model.{name}": value for name, value in expanded.items()}, ())
    if found.shape != (examples,):
        raise ValueError(f"losses have shape {tuple(found.shape)}, but must be one for each of {examples} examples")
    if not found.requires_grad:
        raise ValueError("the losses depend on nothing that trains: let a parameter that they use require a gradient")
    _, *gradients = torch.autograd.grad(found.sum(), [taps.anchor, *expanded.values()], allow_unused=True)
    for name, gradient in zip(expanded, gradients, strict=True):
        if gradient is not None:
            taps.put(name, Each(gradient))
    order = [name for name, p in model.named_parameters() if name in taps.parts]
    return Recorded({name: taps.parts[name] for name in order}, found.detach())


def passes(
    model: nn.Module,
    losses: Losses,
    cut: list[int],
    masks: Mapping[str, Tensor],
    record: Callable[..., Recorded] = record,
) -> Iterator[tuple[list[int], Recorded]]:
    """What `record` gives of a physical batch, in one pass; in halves, and these again, if an example is not finite.

    For it may have spoilt those that share a row with it, and what they add must not depend on it.
    """

    def whole(cut: list[int]) -> Recorded | None:
        found = record(model, lambda: losses(cut), len(cut), masks)
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
    except torch.OutOfMemoryError:
        if len(cut) == 1:
            raise
        found = None  # and on behind the handler, which holds what the attempt had made
    if found is not None:
        yield cut, found
        return
    for half in (cut[: len(cut) // 2], cut[len(cut) // 2 :]):
        yield from halved(attempt, half)


def check_independent(model: nn.Module, losses: Callable[[], Tensor]) -> None:
    """Checks on two examples that their gradients can be told apart, and are all there is.

    Where one example's loss has a gradient at another, no clip bounds what one example does. What the check sees
    does not depend on whether the examples are finite: stopping because of one would tell of it.

    Args:
        model: As in `record`.
        losses: Likewise, of two examples.

    Raises:
        ValueError: A module mixes examples, changes weights without noise, or is used beside its call; or as `record`.
    """
    for name, module in model.named_modules():
        if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"{name} is a batch norm, which mixes examples: call its eval(), or exchange it")
        if getattr(module, "max_norm", None) is not None:
            raise ValueError(f"{name} has a max_norm, so a look-up changes its weights without noise: leave it out")

    def first() -> Tensor:
        found = losses()
        return found * found.new_tensor([1.0, 0.0]) if found.shape == (2,) else found

    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        for name, part in record(model, first, 2).parts.items():
            if part.square_norm()[1] > 0:
                raise ValueError(
                    f"the loss of one example has a gradient at another, seen at {name}: a module mixes examples, "
                    "or has its batch axis elsewhere than first"
                )
    sums = zeros(model)
    with torch.random.fork_rng(devices=devices):
        norms = record(model, losses, 2).add_clipped(sums, math.inf, "abadi")
    with torch.random.fork_rng(devices=devices):
        trained = list(trained_parameters(model).values())
        whole = torch.autograd.grad(losses().sum(), trained, allow_unused=True, materialize_grads=True)
    for (name, found), gradient in zip(sums.items(), whole, strict=True):
        # Passes in bfloat16 differ by a percent of each gradient, and their sum may all but cancel.
        if (found - gradient).norm() > 0.05 * norms.sum():
            raise ValueError(f"{name} is used beside the call of its module, which its rule does not see: freeze it")


class _Call(nn.Module):
    """Losses as a module that has the model, so that its parameters can be exchanged for the call."""

    def __init__(self, model: nn.Module, losses: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.losses = losses

    def forward(self) -> Tensor:
        return self.losses()


class _Taps:
    """Taps on every module that owns a trained parameter for which there is a rule.

    Attributes:
        names: Those parameters.
        parts: What the backward pass has given so far.
        anchor: What the taps lead to, so that the backward pass reaches each and goes no further.
    """

    def __init__(self, model: nn.Module, examples: int, masks: Mapping[str, Tensor]) -> None:
        self.names: set[str] = set()
        self.parts: dict[str, Part] = {}
        # Where the outputs are: a copy for each tap would make a GPU wait each time.
        self.anchor = torch.zeros((), requires_grad=True, device=next(model.parameters()).device)
        self._examples = examples
        self._masks = masks
        self._watched: dict[str, tuple[nn.Module, list[str]]] = {}  # path -> module and its trained parameters
        for path, module in model.named_modules():
            if _kind(module) in _RULES and (locals_ := _own(module)):
                self._watched[path] = module, locals_
                self.names |= {_join(path, local) for local in locals_}

    def __enter__(self) -> None:
        self._called: set[str] = set()
        self._handles = [
            module.register_forward_hook(self._hook(path), prepend=True, with_kwargs=True)
            for path, (module, _) in self._watched.items()
        ]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        if kind is None and (silent := self._watched.keys() - self._called):
            raise ValueError(f"{min(silent)} has trained parameters, but is not called: freeze it, or call it")

    def put(self, name: str, part: Whole) -> None:
        """Takes what gives a parameter's gradients, its mask respected."""
        self.parts[name] = part.only(self._masks[name]) if name in self._masks else part

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], Tensor]:
        def tap(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if path in self._called:
                raise ValueError(f"{path} is called twice in one forward pass, which its rule does not cover")
            packed = packing.of(output)
            if packed is None and len(output) != self._examples:
                raise ValueError(
                    f"{path} has {len(output)} rows for {self._examples} examples, so that one example's gradient "
                    "cannot be told: give it a row for each (to positions and token types, pass them to the model)"
                )
            self._called.add(path)
            locals_ = self._watched[path][1]
            given: Tensor = args[0] if args else kwargs["input"]
            held = [given.detach()] if any(local != "bias" for local in locals_) else [None]

            def take(gradient: Tensor) -> None:
                a = held.pop()  # freed here, not with the graph
                dtype = module.get_parameter(locals_[0]).dtype  # under autocast not that of the pass
                a, g = a.to(dtype) if a is not None and a.is_floating_point() else a, gradient.to(dtype)
                for local in locals_:
                    self.put(_join(path, local), _RULES[_kind(module)](module, local, a, g, packed))

            tapped: Tensor = _Tap.apply(output, self.anchor.to(output.device), take)  # type: ignore[no-untyped-call]
            return tapped

        return tap


class _Tap(torch.autograd.Function):
    """The identity; its backward pass hands the gradient over before it goes on."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, take: Callable[[Tensor], None]) -> Tensor:
        ctx.take = take
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.take(gradient)
        return gradient, None, None


def _expanded(model: nn.Module, ruled: set[str]) -> dict[str, nn.Parameter]:
    """Trained parameters that no rule covers; each of their modules computes with a leading example axis."""
    trained = trained_parameters(model)
    if tied := ruled - trained.keys():
        raise ValueError(f"{min(tied)} is another module's parameter too, which its rule does not cover: freeze it")
    for name, p in trained.items():
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {p.dtype}, too coarse for norms and noise: train it in float32")
    found = {name: p for name, p in trained.items() if name not in ruled}
    for name in found:
        module = model.get_submodule(name.rpartition(".")[0])
        if not getattr(module, "example_axis", False):
            raise ValueError(
                f"{name} trains, but there is no rule for {type(module).__name__}: freeze it, or let the module "
                "compute with a leading example axis, [B, ...] for [...], and say so by `example_axis = True`"
            )
    return found


def _join(path: str, local: str) -> str:
    return f"{path}.{local}" if path else local


def _kind(module: nn.Module) -> type[nn.Module]:
    """The module's class; of a linear layer whose weight is computed, the one it was before."""
    return nn.Linear if isinstance(module, nn.Linear) and is_parametrized(module, "weight") else type(module)


def _own(module: nn.Module) -> list[str]:
    """The module's own trained parameters and those behind its weight, not those of other modules below it."""
    return [
        name
        for name, p in module.named_parameters()
        if p.requires_grad and ("." not in name or name.startswith(_BEHIND))
    ]


_BEHIND = "parametrizations.weight."


def _linear(module: nn.Linear, name: str, a: Tensor, g: Tensor, packed: Packing | None) -> Whole:
    g = g.reshape(len(g), -1, g.shape[-1])
    if name == "bias":
        return Each(packed.total(g) if packed else g.sum(1))
    a = a.reshape(len(a), -1, a.shape[-1])
    product = Product(a, g, packed)
    if name != "weight":
        return Behind(product.apart(), _slope(module, name), module.get_parameter(name).shape)
    if packed:
        # A row's Gram matrices cost W^2 (in + out); forming the gradients of its S examples W S in out, twice as fast.
        forming = packed.asking.shape[1] * module.in_features * module.out_features
        few = forming <= 2 * a.shape[1] * (module.in_features + module.out_features)
        return Each(packed.products(g, a)) if few else product
    # The Gram matrices cost T^2 (in + out), forming the gradient T in out.
    wide = module.in_features * module.out_features > a.shape[1] * (module.in_features + module.out_features)
    return product if wide else Each(product.each())


def _slope(module: nn.Linear, name: str) -> Tensor:
    """Derivative of the weight [out, in] by the parameter of this name, at the same place or the only one it has."""
    maker, local = module.get_submodule(_BEHIND.rstrip(".")), name.removeprefix(_BEHIND)
    for step in maker.children():
        if not getattr(step, "elementwise", False):
            raise ValueError(
                f"there is no rule for a weight computed by {type(step).__name__}: freeze it, or let each value follow "
                "from those at its own place, or from single ones, and say so by `elementwise = True`"
            )
    held = {n: p.detach() for n, p in maker.named_parameters()}
    value = held[local].requires_grad_()
    with torch.enable_grad():
        weight = functional_call(maker, held, ())
        ones = torch.ones_like(weight, requires_grad=True)
        # Linear in `ones`, so that its derivative by them is the slope at each place.
        (gradient,) = torch.autograd.grad((ones * weight).sum(), value, create_graph=True)
        (slope,) = torch.autograd.grad(gradient.sum(), ones)
    return slope


def _norm(module: nn.LayerNorm, name: str, a: Tensor, g: Tensor, packed: Packing | None) -> Whole:
    if name == "weight":
        g = g * functional.layer_norm(a, module.normalized_shape, eps=module.eps)
    return Each(packed.total(g) if packed else g.reshape(len(g), -1, *module.normalized_shape).sum(1))


def _embedding(module: nn.Embedding, name: str, ids: Tensor, g: Tensor, packed: Packing | None) -> Whole:
    if module.padding_idx is not None:
        g = g.masked_fill((ids == module.padding_idx)[..., None], 0)
    return Rows(ids.reshape(len(ids), -1), g.reshape(len(g), -1, g.shape[-1]), module.weight.shape, packed)


_RULES: Mapping[type[nn.Module], Callable[..., Whole]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _norm,
    nn.Embedding: _embedding,
}
