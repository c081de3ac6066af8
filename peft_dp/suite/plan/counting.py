"""What a step costs, counted without computing a value: the engine's own code runs on tensors that only have a shape.

Torch's meta device runs a model of any size in about a second, without its weights. Meanwhile torch's own formulas
count the FLOPs of matrix products, and a counter the bytes that are held at once. Not counted are elementwise
operations (activations, LayerNorms, the optimiser), sums over examples, and what a method does once per step.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from peft_dp import methods, registry, tasks
from peft_dp.models.backbone import Backbone, load
from peft_dp.models.batch import Batch, Encoded
from peft_dp.models.packing import rows
from peft_dp.models.source import Random
from peft_dp.privacy.gradients import factors, per_example_pass, zeros
from peft_dp.privacy.per_example import Each
from peft_dp.spec import Spec
from peft_dp.training.frozen_prefix import frozen_layers

aten = torch.ops.aten
_MIXED = (aten.index.Tensor, aten.index_put_.default, aten._to_copy.default, aten.copy_.default)
_DRAWS = (aten.randn.generator, aten.rand.generator)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one physical batch costs.

    Attributes:
        flops: Floating-point operations of its matrix products, two for each product of two values.
        operations: Number of tensors that it makes, each by about one launch of a kernel.
        low_flops: FLOPs of the forward pass through the layers that are computed once for all epochs.
        low_operations: Operations of that pass.
        peak: Bytes that are held at once beyond the weights.
    """

    flops: float
    operations: int
    low_flops: float
    low_operations: int
    peak: int


@dataclass(frozen=True, kw_only=True)
class PhaseSize:
    """The sizes of one phase of training.

    Attributes:
        epochs: Number of its epochs.
        layers: Number of lowest layers that are computed once, before the first epoch that leaves them out.
        trained: Number of values that have a gradient.
        updated: Number of values that the optimiser updates.
    """

    epochs: int
    layers: int
    trained: int
    updated: int


class Shapes:
    """A spec's backbone with its method installed, on the meta device.

    Args:
        spec: What trains; neither its weights nor its data are looked for.

    Attributes:
        trainable: Number of trained values, head included, in the first phase.

    Raises:
        ValueError: An unknown name, or a setting the method does not have.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.method = methods.make(spec.method, spec.config)
        backbone = registry.load("backbones", spec.backbone)
        with torch.device("meta"):
            self.backbone: Backbone = load(
                Random(spec.backbone),
                backbone.FAMILY,
                outputs=tasks.find(spec.task).outputs,
                head=spec.head,
                readout=spec.readout,
                dropout=spec.dropout,
                rng=torch.Generator(),
            )
        self.backbone.freeze()
        with Counter():
            self.method.install(self.backbone, torch.Generator().manual_seed(spec.seed))
        self.backbone.model.to("meta").train()  # without the masks, whose values say what trains
        self.trainable = self.backbone.count()

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the parameters and buffers."""
        model = self.backbone.model
        return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))

    def phases(self) -> Iterator[PhaseSize]:
        """Yield the phases of a run; until the next one is asked for, the parameters of this one train.

        Raises:
            ValueError: The phases do not add up to the spec's epochs.
        """
        spec = self.spec
        settled = self.method.settled(self.backbone)
        for epochs in self.method.phases(self.backbone, spec.epochs):
            layers = settled or frozen_layers(self.backbone)
            layers *= spec.reuse and not spec.dropout and (spec.epochs if settled else epochs) > 1
            trained, updated = (
                sum(parameter.numel() for parameter in found.values())
                for found in (self.backbone.trained(), self.backbone.updated())
            )
            yield PhaseSize(epochs=epochs, layers=layers, trained=trained, updated=updated)

    def count(self, lengths: Sequence[int], layers: int = 0) -> Pass:
        """Return what a physical batch of such examples costs in the present phase.

        Args:
            lengths: Number of tokens of each example.
            layers: Number of lowest layers whose forward pass is also counted on its own.
        """
        data, model = self._encoded(lengths), self.backbone.model
        batch = (data.packed if self.backbone.packs else data.batch)(range(len(data)), "meta")
        counter, low = Counter([*model.parameters(), *model.buffers()]), [(0.0, 0)]
        with ExitStack() as stack:
            if layers:
                layer = self.backbone.layers[layers - 1]
                hook = layer.register_forward_hook(lambda *_: low.append((counter.flops, counter.operations)))
                stack.callback(hook.remove)
            stack.enter_context(counter)
            self._gradients(batch)
        return Pass(
            flops=counter.flops,
            operations=counter.operations,
            low_flops=low[-1][0],
            low_operations=low[-1][1],
            peak=counter.peak,
        )

    def _encoded(self, lengths: Sequence[int]) -> Encoded:
        """Return examples of these lengths, whose tokens mean nothing."""
        tagged = self.spec.readout == "tokens"
        labels = torch.zeros(len(lengths), *[max(lengths)] * tagged, dtype=torch.int64)
        ids = [[0] * length for length in lengths]
        reads = [0] * len(lengths) if self.spec.readout == "mask" else None
        return Encoded(ids, ids, labels, 0, reads=reads)

    def _gradients(self, batch: Batch) -> None:
        """Sum the gradients of a physical batch, as `privacy.noised_sum` does."""

        def losses() -> Tensor:
            # A loss's own cost is nothing beside the model's.
            return self.backbone.logits(batch).flatten(1).sum(1)

        if self.spec.privacy is None:
            torch.autograd.grad(losses().sum(), list(self.backbone.trained().values()))
            return
        sums = zeros(self.backbone.model)
        # Not `PerExample.add_clipped`, which looks at values.
        found = per_example_pass(self.backbone.model, losses, len(batch), self._masks())
        weights = factors(found.norms, 1.0, self.spec.privacy.clipping)
        if found.formed_names:
            sums.add(found.formed_names, weights @ found.formed)
        for name, part in found.parts.items():
            if not isinstance(part, Each):
                part.add_to(sums[name], weights)

    def _masks(self) -> dict[str, Tensor]:
        """Return the masks; one whose values are not known, since a phase finds it by values, lets one value train."""
        found = dict(self.backbone.masks)
        for name, mask in found.items():
            if mask.is_meta:
                found[name] = torch.zeros(mask.shape, dtype=torch.bool)
                found[name].view(-1)[0] = True
        return found


def cuts(lengths: Sequence[int], packs: bool) -> list[int]:
    """Return the number of places of each physical batch of a logical one, cut as a run cuts it.

    Args:
        lengths: Number of tokens of each example.
        packs: Whether several examples share a row.
    """
    data = Encoded([[0] * length for length in lengths], [], torch.zeros(0), 0)
    if packs:
        return [places([lengths[i] for i in cut], packs) for cut in data.split(range(len(data)))]
    return [places([lengths[i] for i in cut], packs) for cut in data.cut(range(len(data)))]


def places(lengths: Sequence[int], packs: bool) -> int:
    """Return the number of padded tokens of a physical batch, or of places in its shared rows."""
    if not packs:
        return len(lengths) * max(lengths)
    held, width = rows(lengths)
    return len(held) * width


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count, within its block, the FLOPs of matrix products, the new tensors, and the bytes that live at once.

    Args:
        known: Tensors that were there before and are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0
        self.operations = self.live = self.peak = 0
        self._known = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in known)}
        self._held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count it.

        No number is drawn. Code that asks for a value gets 1, so a mask that is asked whether it lets all through
        does. A tensor with values that meets one without becomes one without, unless it is an index.
        """
        without = {value.is_meta for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        if without == {True} and func is aten._local_scalar_dense.default:
            return 1
        if without == {True, False} and func not in _MIXED:
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        out = torch.empty(*args, device="meta") if func in _DRAWS else func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._hold(value.untyped_storage())
        return out

    def _hold(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._held or key in self._known:
            return

        def free(_: Any) -> None:
            del self._held[key]
            self.live -= size

        self._held[key] = weakref.ref(storage, free)
        self.operations += 1
        self.live += size
        self.peak = max(self.peak, self.live)
