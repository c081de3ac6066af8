"""One run as one object: it makes a step, tells its state between two steps, and goes on from such a state.

A method's phases share one privacy plan and one learning-rate schedule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor

from peft_dp import rng
from peft_dp.models.batch import BUDGETS
from peft_dp.privacy import sampling
from peft_dp.privacy.plan import Plan, ledger
from peft_dp.training.checkpoint import State
from peft_dp.training.frozen_prefix import without_frozen_layers
from peft_dp.training.gradient import noised_mean
from peft_dp.training.job import Job
from peft_dp.training.phase import Phase
from peft_dp.training.tally import Tally, clocks
from peft_dp.training.tracer import Tracer
from peft_dp.training.trail import Epoch, Trace

_TRACE = TypeAdapter(Trace)


@dataclass(frozen=True)
class Trained:
    """What a training gave beside the weights.

    Attributes:
        epochs: The trail, of all phases.
        optimiser_bytes: Most bytes that the optimiser of a phase holds.
        plan: The plan that the steps followed.
        trace: Where another run of the spec and seed could part from it.
        device: "cpu" or "cuda".
        secret: Whether noise and batches came from the operating system, and the exact course is not to be told.
    """

    epochs: list[Epoch]
    optimiser_bytes: int
    plan: Plan
    trace: Trace
    device: str
    secret: bool = False

    @property
    def ledger(self) -> dict[str, Any] | None:
        """What was spent, from the steps that were made and not from those planned; None without privacy."""
        if not self.plan.private:
            return None
        found = ledger(self.plan, sum(epoch.steps for epoch in self.epochs), seeded=not self.secret)
        found |= {"physical_batch": f"{BUDGETS[self.device].tokens} tokens"}
        return found if self.secret else found | {"clipped": [epoch.clipped for epoch in self.epochs]}


class Run:
    """A job and all that changes while it trains, in place.

    Steps are made within the run as a context: there the model is in training mode, the global generator is the run's
    stream of dropout, and frozen layers are left out where that is exact. Afterwards the model is whole again.

    Args:
        job: What trains.
        share: Share of the seconds that are the run's own, where others train in the same batches.

    Raises:
        ValueError: The method's phases do not fit the run's epochs; nothing was changed.
    """

    def __init__(self, job: Job, share: float = 1.0) -> None:
        self.job = job
        self._lengths: Iterator[int] = job.method.phases(job.backbone, job.spec.epochs)
        self._share = share
        self._trail: list[Epoch] = []
        self._optimiser_bytes = 0
        self._batches: rng.Source = rng.Entropy() if job.secret else rng.generator(job.spec.seed, "batches")
        self._streams: dict[str, rng.Source] = {
            **rng.of_steps(job.spec.seed, job.device),
            **({"noise": rng.Entropy()} if job.secret else {}),
            "dropout": _default_generator(job.device),
        }
        self.tracer = Tracer(job)
        self._moving: set[str] = set()  # names of all that trained or was updated in a phase so far
        self._note_moving()
        self._begun = 0  # phases, with the one that is open
        self._length = self._end = 0  # epochs of the phase begun last, and of the run up to its end
        self._phase: Phase | None = None
        self._indices: Iterator[list[int]]
        self._settled = self._current = job  # without the layers that are frozen in the run, and in the phase
        self._within_run, self._within_phase = ExitStack(), ExitStack()
        self._open_epoch()

    @property
    def title(self) -> str:
        """What the run is called."""
        return self.job.title

    @property
    def planned(self) -> int:
        """Number of steps of the whole run."""
        return self.job.plan.steps

    @property
    def steps(self) -> int:
        """Number of steps that the run has made."""
        return len(self._trail) * self.job.plan.steps_per_epoch + self.tally.steps

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return len(self._trail) == self.job.spec.epochs

    def __enter__(self) -> Self:
        job = self.job
        self._start = clocks()
        job.backbone.model.train()
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
            settled = job.method.settled(job.backbone)
            self._settled = stack.enter_context(without_frozen_layers(job, job.spec.epochs, settled))
            torch.manual_seed(rng.seed(job.spec.seed, "dropout"))
            self._within_run = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._within_phase.close()
        self._within_run.close()

    def step(self) -> None:
        """Make one step: the update by one logical batch.

        Raises:
            FloatingPointError: An epoch ends, the run is not private, and its loss is not finite.
            Missing: One example alone does not fit into memory.
        """
        indices = self.draw()
        assert self._phase
        mean = noised_mean(self._current, indices, self._streams, self.tally, self.tracer, self._phase.watched)
        self.update(mean)

    def draw(self) -> list[int]:
        """Return the next logical batch, as example indices; begins a phase where one begins."""
        if self._phase is None:
            self._arrange()
            self._open_phase()
        indices = next(self._indices)
        self.tracer.drawn(indices, self.tally)
        return indices

    def update(self, gradient: Mapping[str, Tensor]) -> None:
        """Update the model by the gradient of the logical batch drawn last; closes an epoch or a phase where one ends.

        Raises:
            FloatingPointError: An epoch ends, the run is not private, and its loss is not finite. (A private run goes
                on: stopping because of one example would tell of it.)
        """
        assert self._phase
        updated = self._current.backbone.updated()
        self.tracer.given(gradient, updated)
        self._phase.step(gradient)
        self.tracer.updated(updated, self.tally)
        self.tally.steps += 1
        if self.tally.steps == self.job.plan.steps_per_epoch:
            self._close_epoch()
        if len(self._trail) == self._end:
            self._close_phase()

    def result(self) -> Trained:
        """Return what the steps made so far gave."""
        job = self.job
        return Trained([*self._trail], self._optimiser_bytes, job.plan, self.tracer.trace(), job.device, job.secret)

    def state(self) -> State:
        """Return the run between two steps: what differs from a new one, and where its streams are.

        The stream of batches is told as the epoch found it, for the epoch draws from it as a whole.
        """
        named = self.job.backbone.tensors()
        changed = {
            name: value for name, value in named.items() if name in self._moving or not name.startswith("parameter/")
        }
        streams = {f"stream/{name}": stream.get_state() for name, stream in self._streams.items()}
        return State(
            changed | (self._phase.state() if self._phase else {}) | streams | {"stream/batches": self._batches_begin},
            {
                "phase": self._begun,
                "trail": [asdict(epoch) for epoch in self._trail],
                "tally": self.tally.counts(),
                "trace": asdict(self.tracer.trace()),
                "seconds": [now - start for now, start in zip(clocks(), self._start, strict=True)],
                "optimiser_bytes": self._optimiser_bytes,
            },
        )

    def restore(self, state: State) -> None:
        """Go on from a state of the same run, instead of from its first step."""
        tensors, values = state.tensors, state.values
        while self._begun < values["phase"]:  # what trains is arranged phase by phase; then the values are put there
            self._arrange()
        kinds = ("parameter/", "buffer/", "mask/")
        self.job.backbone.fill({name: value for name, value in tensors.items() if name.startswith(kinds)})
        self._trail = [Epoch(**epoch) for epoch in values["trail"]]
        self._optimiser_bytes = values["optimiser_bytes"]
        self.tracer.restore(_TRACE.validate_python(values["trace"]))
        self._batches.set_state(tensors["stream/batches"])
        self._open_epoch()
        self.tally.restore(values["tally"])
        self._indices = islice(self._indices, self.tally.steps, None)
        if len(self._trail) < self._end:
            self._open_phase().restore(tensors)
        for name, stream in self._streams.items():
            stream.set_state(tensors[f"stream/{name}"])
        wall, processor = clocks()
        self._start = wall - values["seconds"][0], processor - values["seconds"][1]

    def _arrange(self) -> None:
        """Have the parameters of the next phase train."""
        self._length = next(self._lengths)
        self._end += self._length
        self._begun += 1
        self._note_moving()

    def _note_moving(self) -> None:
        backbone = self.job.backbone
        self._moving |= {f"parameter/{name}" for name in backbone.trained().keys() | backbone.updated().keys()}

    def _open_phase(self) -> Phase:
        self._current = self._within_phase.enter_context(without_frozen_layers(self._settled, self._length))
        self._phase = Phase(self._current, self.steps)
        if self._phase.watched:
            self._within_phase.enter_context(self._phase.watched)
        return self._phase

    def _close_phase(self) -> None:
        assert self._phase
        self._optimiser_bytes = max(self._optimiser_bytes, self._phase.close())
        self._phase = None
        self._within_phase.close()

    def _open_epoch(self) -> None:
        self._start = clocks()
        self.tally = Tally(self.job.device, self.job.plan.clip)
        self._batches_begin = self._batches.get_state()
        self._indices = sampling.epoch(self.job.plan, self._batches)

    def _close_epoch(self) -> None:
        self._trail.append(self.tally.epoch(self.job, self._start, self._share))
        self._open_epoch()
        if not self.job.plan.private and self._trail[-1].loss is None:
            where = f"{self.title}: the training loss of epoch {len(self._trail)} is not finite"
            raise FloatingPointError(f"{where}: try a smaller optimiser.rate")


def _default_generator(device: str) -> torch.Generator:
    """Return the global generator, from which dropout draws."""
    cpu: torch.Generator = torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device()] if device == "cuda" else cpu
