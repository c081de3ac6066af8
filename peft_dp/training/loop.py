"""The one training loop: steps until none is left, a bar, and a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NoReturn, Protocol, Self, TextIO

from tqdm import tqdm

from peft_dp.training.checkpoint import Checkpoint, State
from peft_dp.training.fleet import Fleet
from peft_dp.training.job import Job
from peft_dp.training.run import Run, Trained


class Training(Protocol):
    """What the loop drives: a `Run`, or a `Fleet` of several in the same batches."""

    @property
    def title(self) -> str:
        """What the training is called."""

    @property
    def planned(self) -> int:
        """Number of steps of the whole training."""

    @property
    def steps(self) -> int:
        """Number of steps that were made."""

    @property
    def done(self) -> bool:
        """Whether no step is left."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def step(self) -> None:
        """Make one step."""

    def state(self) -> State:
        """Return the training between two steps."""

    def restore(self, state: State) -> None:
        """Go on from a state, instead of from the first step."""


def train(training: Training, progress: TextIO | None = None, checkpoint: Checkpoint | None = None) -> None:
    """Make all steps of a training, in place.

    Args:
        training: A run or a fleet that has made no step.
        progress: Where a bar is drawn once training takes over two seconds; None for none.
        checkpoint: Where the state is kept, and taken from if there is one; None for neither. It does not change the
            result.

    Raises:
        FloatingPointError: The loss of a run that is not private is not finite.
        Missing: One example alone does not fit into memory.
        Stopped: See `Checkpoint.keep`.
    """
    bar: tqdm[NoReturn] = tqdm(
        total=training.planned,
        desc=training.title,
        delay=2,
        leave=False,
        disable=progress is None,
        file=progress,
        unit="step",
    )
    with bar, training, checkpoint or nullcontext():
        if checkpoint and (state := checkpoint.load()):
            training.restore(state)
            bar.update(training.steps)
        while not training.done:
            training.step()
            bar.update()
            if checkpoint:
                checkpoint.keep(training.state)


def fit(job: Job, progress: TextIO | None = None, checkpoint: Checkpoint | None = None) -> Trained:
    """Train a job in place; see `train`."""
    (trained,) = fit_together([job], progress, checkpoint)
    return trained


def fit_together(
    jobs: Sequence[Job], progress: TextIO | None = None, checkpoint: Checkpoint | None = None
) -> list[Trained]:
    """Train jobs in place, several in the same batches; see `train`."""
    runs = [Run(job, share=1 / len(jobs)) for job in jobs]
    train(runs[0] if len(runs) == 1 else Fleet(runs), progress, checkpoint)
    return [run.result() for run in runs]
