"""Taps on modules that own trained parameters, and the rule by which each kind of module gives their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from peft_dp.models import packing
from peft_dp.models.backbone import trained_parameters
from peft_dp.models.packing import Packing
from peft_dp.privacy.per_example import Behind, Each, Part, Product, Rows, Whole

if TYPE_CHECKING:
    pass


class Call(nn.Module):
    """Losses as a module that has the model, so that its parameters can be exchanged for the call."""

    def __init__(self, model: nn.Module, losses: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.losses = losses

    def forward(self) -> Tensor:
        """Return the loss of each example [B]."""
        return self.losses()


@dataclass(frozen=True)
class Site:
    """A module that owns trained parameters for which there is a rule.

    Attributes:
        path: Where it is.
        module: The module.
        names: Name in the module -> name in the model, of those parameters.
        rule: What gives their gradients.
        dtype: Their type; under autocast that of the pass is another.
        looks: Whether the rule looks at the module's input.
    """

    path: str
    module: nn.Module
    names: Mapping[str, str]
    rule: Callable[..., Whole]
    dtype: torch.dtype
    looks: bool


class Watched:
    """What trains in a model, with hooks where its gradients come by, as long as no other parameter trains.

    The hooks are there within it as a context. Why longer than a pass: walking through the modules and making hooks
    takes as long as a small pass.

    Attributes:
        trained: Name of each trained parameter -> the parameter, in the model's order.
        sites: Path -> module that owns trained parameters for which there is a rule.
        expanded: Name -> parameter of those that no rule covers.
        taps: Those of the pass that is made; None between two passes.

    Raises:
        ValueError: A parameter has no rule, or two modules, or a type too coarse.
    """

    def __init__(self, model: nn.Module) -> None:
        self.trained = trained_parameters(model)
        self.sites: dict[str, Site] = {}
        for path, module in model.named_modules():
            if (rule := _rule(module)) and (own := _own(module)):
                names, dtype = {local: _join(path, local) for local in own}, module.get_parameter(own[0]).dtype
                self.sites[path] = Site(path, module, names, rule, dtype, any(local != "bias" for local in own))
        ruled = {name for site in self.sites.values() for name in site.names.values()}
        self.expanded = expanded(model, ruled)
        self.taps: Taps | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [
            site.module.register_forward_hook(partial(self._called, site), prepend=True, with_kwargs=True)
            for site in self.sites.values()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _called(
        self, site: Site, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        return self.taps.through(site, args[0] if args else kwargs["input"], output) if self.taps else None


class Taps:
    """Taps on every module that owns a trained parameter for which there is a rule, for one pass.

    Attributes:
        parts: What the backward pass has given so far.
        anchor: What the taps lead to, so that the backward pass reaches each and goes no further.
    """

    def __init__(self, watched: Watched, examples: int, masks: Mapping[str, Tensor]) -> None:
        self.parts: dict[str, Part] = {}
        # Where the outputs are: a copy for each tap would make a GPU wait each time.
        device = next((p.device for p in watched.trained.values()), None)
        self.anchor = torch.zeros((), requires_grad=True, device=device)
        self._examples = examples
        self._masks = masks
        self._watched = watched
        self._called: set[str] = set()

    def __enter__(self) -> None:
        self._watched.taps = self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._watched.taps = None
        if kind is None and (silent := self._watched.sites.keys() - self._called):
            raise ValueError(f"{min(silent)} has trained parameters, but is not called: freeze it, or call it")

    def put(self, name: str, part: Whole) -> None:
        """Takes what gives a parameter's gradients, its mask respected."""
        self.parts[name] = part.only(self._masks[name]) if name in self._masks else part

    def through(self, site: Site, given: Tensor, output: Tensor) -> Tensor:
        """Return a module's output as it is, its gradient to be taken when the backward pass comes by.

        Raises:
            ValueError: The module is called twice, or has not a row for each example.
        """
        if site.path in self._called:
            raise ValueError(f"{site.path} is called twice in one forward pass, which its rule does not cover")
        packed = packing.of(output)
        if packed is None and len(output) != self._examples:
            raise ValueError(
                f"{site.path} has {len(output)} rows for {self._examples} examples, so that one example's gradient "
                "cannot be told: give it a row for each (to positions and token types, pass them to the model)"
            )
        self._called.add(site.path)
        held = [given.detach() if site.looks else None]

        def take(gradient: Tensor) -> None:
            a, g = held.pop(), gradient  # freed here, not with the graph
            if g.dtype != site.dtype:
                g = g.to(site.dtype)
            if a is not None and a.is_floating_point() and a.dtype != site.dtype:
                a = a.to(site.dtype)
            for local, name in site.names.items():
                self.put(name, site.rule(site.module, local, a, g, packed))

        anchor = self.anchor if self.anchor.device == output.device else self.anchor.to(output.device)
        tapped: Tensor = _Tap.apply(output, anchor, take)  # type: ignore[no-untyped-call]
        return tapped


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


def expanded(model: nn.Module, ruled: set[str]) -> dict[str, nn.Parameter]:
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
            if any(type(each).__module__.startswith("peft.") for each in model.modules()):
                raise ValueError(
                    f"{name} trains, but one example's gradient cannot be told there: of peft's methods take LoRA "
                    "(rsLoRA too), prefix tuning or LN tuning"
                )
            raise ValueError(
                f"{name} trains, but there is no rule for {type(module).__name__}: freeze it, or let the module "
                "compute with a leading example axis, [B, ...] for [...], and say so by `example_axis = True`"
            )
    return found


def _join(path: str, local: str) -> str:
    return f"{path}.{local}" if path else local


def _rule(module: nn.Module) -> Callable[..., Whole] | None:
    """Return the rule for a module: by its class; of a linear layer whose weight is computed, by that before."""
    if isinstance(module, nn.Linear) and is_parametrized(module, "weight"):
        return _linear
    if rule := _RULES.get(type(module)):
        return rule
    # transformers has a class of its own for each family's RMSNorm, and Conv1D is not imported for other models.
    name = type(module).__name__
    return _scale if name.endswith("RMSNorm") else _conv1d if name == "Conv1D" else None


def _own(module: nn.Module) -> list[str]:
    """The module's own trained parameters and those behind its weight, not those of other modules below it."""
    return [
        name
        for name, p in module.named_parameters()
        if p.requires_grad and ("." not in name or name.startswith(_BEHIND))
    ]


_BEHIND = "parametrizations.weight."


def _linear(module: nn.Linear, name: str, a: Tensor, g: Tensor, packed: Packing | None) -> Whole:
    g = g if g.dim() == 3 else g.reshape(len(g), -1, g.shape[-1])
    if name == "bias":
        return _summed(g, packed)
    a = a.reshape(len(a), -1, a.shape[-1])
    product = Product(a, g, packed)
    if name != "weight":
        return Behind(product.apart(), _slope(module, name), module.get_parameter(name).shape)
    if packed:
        # A row's Gram matrices cost W^2 (in + out); forming the gradients of its S examples W S in out, twice as fast.
        forming = packed.asking.shape[1] * module.in_features * module.out_features
        few = forming <= 2 * a.shape[1] * (module.in_features + module.out_features)
        return Each(packed.products(g, a), packed) if few else product
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
    return _summed(g if packed else g.reshape(len(g), -1, *module.normalized_shape), packed)


def _conv1d(module: nn.Module, name: str, a: Tensor, g: Tensor, packed: Packing | None) -> Whole:
    """Give the gradients of transformers' Conv1D, a linear layer whose weight is [in, out]."""
    g = g.reshape(len(g), -1, g.shape[-1])
    return _summed(g, packed) if name == "bias" else Product(g, a.reshape(len(a), -1, a.shape[-1]), packed)


def _scale(module: nn.Module, name: str, a: Tensor, g: Tensor, packed: Packing | None) -> Whole:
    """Give the gradients of an RMSNorm's scale, in which its output is linear: its slope is f(1) - f(0)."""
    weight = module.get_parameter(name)
    one, zero = (functional_call(module, {name: fill(weight)}, (a,)) for fill in (torch.ones_like, torch.zeros_like))
    return _summed(g * (one - zero), packed)


def _summed(g: Tensor, packed: Packing | None) -> Each:
    """Return each example's sum over its tokens of g [B, T, ...] or, packed, [R, W, n]."""
    return Each(packed.by_slot(g), packed) if packed else Each(g.sum(1))


def _embedding(module: nn.Embedding, name: str, ids: Tensor, g: Tensor, packed: Packing | None) -> Whole:
    if module.padding_idx is not None:
        g = g.masked_fill((ids == module.padding_idx)[..., None], 0)
    return Rows(ids.reshape(len(ids), -1), g.reshape(len(g), -1, g.shape[-1]), module.weight.shape, packed)


_RULES: Mapping[type[nn.Module], Callable[..., Whole]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _norm,
    nn.Embedding: _embedding,
}
