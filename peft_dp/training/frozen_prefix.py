"""Frozen layers computed once: what leaves them is kept for each training example, as long as they stay frozen.

Below the lowest trained value of a model without dropout an example's states are
the same in every epoch. One pass computes and keeps them; the passes that follow
start from them and leave out the embeddings and the layers below. What trains
keeps its name, and gets the same gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from peft_dp.models.backbone import Backbone
from peft_dp.training.job import Job

LIMIT = 4 * 2**30
"""Bytes of states that are kept at most; where they would be more, every pass goes through all layers."""


@contextmanager
def without_frozen_layers(job: Job, epochs: int, most: int | None = None) -> Iterator[Job]:
    """The job for so many epochs, its lowest frozen layers left out where that is exact and saves a pass.

    Args:
        job: What is trained; where it has states already, it stays as it is.
        epochs: In which those layers stay frozen.
        most: Number of layers at most; None for all that are frozen now.
    """
    layers = frozen_layers(job.backbone) if most is None else min(most, frozen_layers(job.backbone))
    size = sum(job.train.lengths) * job.backbone.width * next(job.backbone.model.parameters()).element_size()
    kept = job.train.states is not None
    if kept or not job.spec.reuse or job.spec.dropout or epochs < 2 or layers == 0 or size > LIMIT:
        yield job
        return
    states = _states(job, layers)
    train = replace(job.train, states=states)
    if states[0].shape[0] < job.train.lengths[0]:  # only what is read: one place of an example is all there is
        ids, types = ([row[:1] for row in rows] for rows in (train.ids, train.types))
        train = replace(train, ids=ids, types=types, tokens=train.lengths)
        job = replace(job, packed=False)
    with _left_out(job.backbone, layers):
        yield replace(job, train=train)


def frozen_layers(backbone: Backbone) -> int:
    """Number of lowest layers that, like the embeddings before them, neither train nor are updated."""
    moving = {id(p) for p in (*backbone.trained().values(), *backbone.updated().values())}

    def moves(module: nn.Module) -> bool:
        return any(id(parameter) in moving for parameter in module.parameters())

    if moves(backbone.embeddings):
        return 0
    return next((at for at, layer in enumerate(backbone.layers) if moves(layer)), len(backbone.layers))


class _Reached(Exception):
    """Carries the states of the layer that a pass was for."""


@torch.no_grad()
def _states(job: Job, layers: int) -> list[Tensor]:
    """What leaves the layers, of each example [T, d]."""

    def stop(module: nn.Module, inputs: Any, output: Tensor) -> NoReturn:
        raise _Reached(output)

    found: dict[int, Tensor] = {}
    # Last of the layer's hooks, so that what a branch does to its output is in it.
    handle = job.backbone.layers[layers - 1].register_forward_hook(stop)
    try:
        for cut in job.cut(job.train, range(len(job.train))):
            batch = job.batch(job.train, cut)
            try:
                job.logits(batch)
            except _Reached as reached:
                output: Tensor = reached.args[0]
                if batch.packing and batch.packing.holds(output):
                    output = batch.packing.apart(output)
                # Copies, for a view would keep the padding.
                found |= {i: states[: job.train.lengths[i]].clone() for i, states in zip(cut, output, strict=True)}
    finally:
        handle.remove()
    return [found[i] for i in range(len(job.train))]


class _Given(nn.Module):
    """Stands in for the embeddings."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, *_: Any, **__: Any) -> Tensor | None:
        return self.backbone.given


class _Through(nn.Module):
    """Stands in for a layer."""

    def forward(self, states: Tensor, *_: Any, **__: Any) -> Tensor:
        return states


@contextmanager
def _left_out(backbone: Backbone, layers: int) -> Iterator[None]:
    """Has stand-ins for the embeddings and the lowest layers."""
    paths = [backbone.family.embeddings, *(f"{backbone.family.layers}.{at}" for at in range(layers))]
    own = [backbone.encoder.get_submodule(path) for path in paths]
    try:
        for path, stand_in in zip(paths, [_Given(backbone), *(_Through() for _ in range(layers))], strict=True):
            backbone.encoder.set_submodule(path, stand_in)
        yield
    finally:
        for path, module in zip(paths, own, strict=True):
            backbone.encoder.set_submodule(path, module)
