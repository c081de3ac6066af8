"""Keeps the trace of a run: what its first steps gave, and the order of all its batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peft_dp import rng
from peft_dp.methods import Method
from peft_dp.training.job import Job
from peft_dp.training.tally import Tally
from peft_dp.training.trail import Sketch, Step, Trace

STEPS = 3
"""Steps that are traced. The third is the first to see both moments of Adam at work, and a rate after its warm-up."""

SMALL = 1e-2
"""Share of a gradient's root mean square: values with less move by whole steps of Adam through rounding alone."""


ROW = 1024
"""Values that a sketch adds up at a time in their own precision; an even number."""


def digest(*parts: object) -> str:
    """Return a short hash of some values, by how they print."""
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:16]


@torch.no_grad()
def sketch(tensors: Iterable[Tensor], times: float = 1.0) -> Sketch | None:
    """Return the norm of some tensors, times a factor, and their sum with alternating signs; None if not finite.

    Rows of values are added up as they are, the rows in float64, so that the order of adding up does not show.
    """
    square, signed = 0.0, 0.0
    for tensor in tensors:
        flat = tensor.reshape(-1)
        whole = flat.numel() // ROW * ROW
        signs = flat.new_ones(ROW)
        signs[1::2].neg_()
        now = 0.0
        for rows in (flat[:whole].view(-1, ROW), flat[whole:].view(1, -1)):
            square += float(torch.linalg.vector_norm(torch.linalg.vector_norm(rows, dim=1), dtype=torch.float64)) ** 2
            now += float((rows @ signs[: rows.shape[1]]).sum(dtype=torch.float64))
        signed = now - signed
    return (times * math.sqrt(square), times * signed) if math.isfinite(square) else None


def streams(job: Job) -> dict[str, str]:
    """Return the hash of the first integers of each stream that a run draws from.

    Noise, gates and dropout are drawn on the run's device, whose generator may be another than a CPU's.
    """
    used: dict[rng.Stream, str] = {"initialisation": "cpu", "batches": "cpu"}
    if job.plan.private:
        used["noise"] = job.device
    if type(job.method).begin_step is not Method.begin_step:
        used["gates"] = job.device
    if job.spec.dropout:
        used["dropout"] = job.device
    drawn = {
        name: torch.randint(2**31, (32,), generator=rng.generator(job.spec.seed, name, device), device=device)
        for name, device in used.items()
    }
    return {name: digest(values.tolist()) for name, values in drawn.items()}


class Tracer:
    """Takes down what the steps of a run give.

    Args:
        job: What trains; its values are those before the first step.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._streams = streams(job)
        self._initial = sketch(job.backbone.updated().values())
        self._order = ""
        self._steps: list[Step] = []
        self._now: dict[str, Any] = {}

    @property
    def looks(self) -> bool:
        """Whether the step that is made is traced."""
        return len(self._steps) < STEPS

    def drawn(self, indices: list[int], tally: Tally) -> None:
        """Take the logical batch of a step that begins."""
        batch = digest(indices)
        self._order = digest(self._order, batch)
        if self.looks:
            self._now = {"batch": batch, "before": tally.counts()}

    def summed(self, sums: Mapping[str, Tensor], times: float = 1.0) -> None:
        """Take the sum of the gradients, before any noise; it is still to be multiplied with `times`."""
        if self.looks:
            self._now["summed"] = sketch(sums.values(), times)

    def released(self, sums: Mapping[str, Tensor], times: float = 1.0) -> None:
        """Take the sum with its noise, likewise."""
        if self.looks:
            self._now["released"] = sketch(sums.values(), times)

    def given(self, gradient: Mapping[str, Tensor], updated: Mapping[str, nn.Parameter]) -> None:
        """Take what the optimiser is given, and the values that it will change."""
        if self.looks:
            self._now["given"] = given = sketch(gradient.values())
            self._now["values"] = {name: value.detach().clone() for name, value in updated.items()}
            values = sum(g.numel() for g in gradient.values())
            least = SMALL * given[0] / math.sqrt(max(1, values)) if given else math.inf
            self._now["felt"] = {name: g.abs() > least for name, g in gradient.items()}

    def updated(self, updated: Mapping[str, nn.Parameter], tally: Tally) -> None:
        """Close the step that the optimiser has made."""
        if not self.looks:
            return
        now, before, after = self._now, self._now["before"], tally.counts()
        examples = max(after["examples"] - before["examples"], 1)
        private = self._job.plan.private
        for name, value in now["values"].items():
            torch.sub(updated[name].detach(), value, out=value).mul_(now["felt"][name])
        self._steps.append(
            Step(
                batch=now["batch"],
                tokens=int(after["tokens"] - before["tokens"]),
                loss=_finite((after["loss"] - before["loss"]) / examples),
                norms=_finite((after["norms"] - before["norms"]) / examples) if private else None,
                clipped=int(after["clipped"] - before["clipped"]) if private else None,
                summed=now.get("summed"),
                released=now.get("released"),
                given=now["given"],
                update=sketch(now["values"].values()),
            )
        )
        self._now = {}

    def trace(self) -> Trace:
        """Return what was taken down."""
        return Trace(streams=self._streams, order=self._order, initial=self._initial, steps=[*self._steps])

    def restore(self, kept: Trace) -> None:
        """Take what `trace` returned of the same run."""
        self._initial, self._order, self._steps = kept.initial, kept.order, [*kept.steps]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
