"""What an implementation is, and how a library's training is taken down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar, TextIO

import torch
from torch import Tensor

from peft_dp.measuring import cost
from peft_dp.methods import Method
from peft_dp.spec import Spec
from peft_dp.training import fleet
from peft_dp.training.checkpoint import Checkpoint
from peft_dp.training.job import Job, Sources
from peft_dp.training.loop import fit_together
from peft_dp.training.run import Trained
from peft_dp.training.tally import Tally, clocks
from peft_dp.training.tracer import Tracer
from peft_dp.training.trail import Epoch
from peft_dp.validate import Missing, Unsupported


class Implementation:
    """Who makes a run. As it stands, this project's own code; a library overrides what it does itself."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages whose code makes the run."""

    def check(self, spec: Spec, method: Method) -> None:
        """Raise `Unsupported` for a spec that the library has no way to run; before any long work."""

    def method(self, method: Method) -> Method:
        """Return what puts the method on a backbone."""
        return method

    def together(self, job: Job) -> bool:
        """Return whether seeds of the job can train in the same batches."""
        return fleet.possible(job)

    def train(
        self, jobs: Sequence[Job], progress: TextIO | None = None, checkpoint: Checkpoint | None = None
    ) -> list[Trained]:
        """Train jobs in place, several in the same batches; see `training.loop.train`."""
        return fit_together(jobs, progress, checkpoint)

    def step_bytes(self, job: Job) -> int:
        """Return the peak bytes of one step beyond the weights; changes nothing."""
        return cost.step_bytes(job)

    def prepared(self, spec: Spec, sources: Sources) -> Sources:
        """Return what a spec names as this implementation takes it.

        Raises:
            Missing: A library is not installed.
            Unsupported: It cannot run the spec.
        """
        for library in self.libraries:
            try:
                version(library)
            except PackageNotFoundError:
                remedy = "pip install 'peft-dp[libraries]'"
                raise Missing(f"implementation {spec.implementation!r} needs the package {library}: {remedy}") from None
        self.check(spec, sources.method)
        return replace(sources, method=self.method(sources.method))


class Library(Implementation):
    """A library that makes the steps itself, a row for each sentence."""

    def fit(self, job: Job, watch: Watch) -> None:
        """Train a job in place by the library, and have `watch` take down what it does."""
        raise NotImplementedError

    def prepared(self, spec: Spec, sources: Sources) -> Sources:
        """Return what a spec names, as any implementation; a library's noise is fed from a seed, so never secret."""
        if sources.plan.private and (spec.secret or not sources.task.public):
            raise Unsupported(
                f"implementation {spec.implementation!r} is fed with seeded noise, and private runs on data that are "
                "not public take it from the operating system: use implementation 'own'"
            )
        return super().prepared(spec, sources)

    def together(self, job: Job) -> bool:
        """Return False: a library trains one seed at a time."""
        return False

    def train(
        self, jobs: Sequence[Job], progress: TextIO | None = None, checkpoint: Checkpoint | None = None
    ) -> list[Trained]:
        """Train jobs in place, one after the other; a run that is killed starts over."""
        return [self._trained(job) for job in jobs]

    def _trained(self, job: Job) -> Trained:
        watch = Watch(job)
        job.backbone.model.train()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            self.fit(job, watch)
        job.backbone.model.zero_grad()
        return Trained(watch.trail, 0, job.plan, watch.tracer.trace(), job.device)

    def step_bytes(self, job: Job) -> int:
        """Return the peak bytes of a training of one step on a copy of the job, its optimiser's state among them."""
        order = sorted(range(len(job.train)), key=lambda index: -job.train.lengths[index])
        one = replace(one_step(job, order[: job.plan.batch]), backbone=deepcopy(job.backbone))
        one.backbone.model.train()
        return cost.peak_bytes(lambda: self.fit(one, Watch(one)), job.device)


def one_step(job: Job, indices: Sequence[int]) -> Job:
    """Return a job on the same model whose training is one step, over these examples."""
    train = replace(
        job.train,
        ids=[job.train.ids[at] for at in indices],
        types=[job.train.types[at] for at in indices],
        labels=job.train.labels[list(indices)],
        reads=[job.train.reads[at] for at in indices] if job.train.reads else None,
    )
    number = len(indices)
    plan = replace(job.plan, examples=number, batch=number, steps=1, steps_per_epoch=1, sample_rate=1.0)
    return replace(job, plan=plan, train=train, spec=replace(job.spec, epochs=1))


class Watch:
    """Takes down what a library's training gives, as `training.run.Run` does of our own.

    Args:
        job: What trains; its values are those before the first step.
    """

    def __init__(self, job: Job) -> None:
        self.tracer = Tracer(job)
        self.trail: list[Epoch] = []
        self._job = job
        self._passes: list[tuple[list[int], Tensor, Tensor]] = []
        self._open()

    def passed(self, indices: list[int], losses: Tensor, norms: Callable[[], Tensor] | None = None) -> None:
        """Take a physical batch: its examples, their losses [B], and what gives their gradients' norms [B]."""
        losses = losses.detach()
        self._passes.append((indices, losses, norms().detach() if norms else losses.new_empty(0)))

    def given(
        self, gradient: Mapping[str, Tensor], summed: Sequence[Tensor], released: Sequence[Tensor] | None = None
    ) -> None:
        """Take what the optimiser is about to be given for all that passed since the step before.

        Args:
            gradient: Name of each updated parameter -> its gradient.
            summed: The sums that it was made of, without noise, in the same order.
            released: The same with the noise, if private.
        """
        names = list(gradient)
        self.tracer.drawn([index for indices, _, _ in self._passes for index in indices], self.tally)
        for indices, losses, norms in self._passes:
            self.tally.add(self._job.train.count(indices), losses, norms)
        self._passes = []
        self.tracer.summed(dict(zip(names, summed, strict=True)))
        if released is not None:
            sums = dict(zip(names, released, strict=True))
            self.tally.release(sums)
            self.tracer.released(sums)
        self.tracer.given(gradient, self._job.backbone.updated())

    def stepped(self) -> None:
        """Take the values that the optimiser has just changed."""
        self.tracer.updated(self._job.backbone.updated(), self.tally)
        self.tally.steps += 1

    def epoch(self) -> None:
        """Close an epoch."""
        self.trail.append(self.tally.epoch(self._job, self._start))
        self._open()

    def _open(self) -> None:
        self._start = clocks()
        self.tally = Tally(self._job.device, self._job.plan.clip)
