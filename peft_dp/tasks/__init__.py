"""What is learnt: a task, its examples, and where they come from.

A source is a module with `TASKS` (name -> Task) and
`load(task, folder) -> Data`; `generated`, `generated_entities` and `lengths`
make their data from a seed, `glue` and `conll` read the real thing. Nothing here
imports torch.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Literal

from peft_dp import registry, validate

Kind = Literal["classification", "regression", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One data set with its metric.

    Attributes:
        name: Short lower-case name, as in cell ids.
        title: The name people know it by.
        kind: What the head predicts: a class, a score, or the tag of each word.
        labels: Class names in label order; empty for a regression; for tags O, then B- and I- of each type.
        metric: The function of `measuring.metrics` a row's score means.
        pair: Whether an example has two sentences.
    """

    name: str
    title: str
    kind: Kind
    labels: tuple[str, ...]
    metric: str
    pair: bool

    @property
    def outputs(self) -> int:
        """Width of the head: the number of classes, or 1 for a regression."""
        return len(self.labels) or 1


@dataclass(frozen=True)
class Example:
    """One labelled sentence or pair.

    Attributes:
        first: The sentence; where words have tags, the words with a space between them.
        second: The other sentence of a pair.
        label: Class index, score, or the index of each word's tag.
    """

    first: str
    second: str | None
    label: float | tuple[int, ...]


@dataclass(frozen=True)
class Data:
    """The examples of one task; `dev` is scored and never trained on."""

    train: Sequence[Example]
    dev: Sequence[Example]

    def __hash__(self) -> int:
        """Equal data have equal hashes."""
        return hash(self.sha256)

    def subset(self, train: int | None, dev: int | None) -> Data:
        """The first `train` and `dev` examples after a fixed shuffle (None: all, unshuffled).

        The shuffle has a seed of its own, so every run of a cell sees the same examples.

        Raises:
            ValueError: More examples asked for than there are.
        """
        return replace(self, train=_first(self.train, train, "train"), dev=_first(self.dev, dev, "dev"))

    @cached_property
    def sha256(self) -> str:
        """Hash of every example in order; enters the key of a record."""
        rows = [[(e.first, e.second, e.label) for e in split] for split in (self.train, self.dev)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _first(examples: Sequence[Example], count: int | None, split: str) -> Sequence[Example]:
    if count is None:
        return examples
    if count > len(examples):
        raise ValueError(f"{count} {split} examples asked for, but the task has {len(examples)}")
    return random.Random(0).sample(list(examples), count)


def _sources() -> dict[str, ModuleType]:
    """Return the source of each task, by the task's name."""
    sources = [registry.load("tasks", name) for name in registry.names("tasks")]
    return {name: source for source in sources for name in source.TASKS}


def source(name: str) -> ModuleType:
    """Return the file of `tasks/` that a task comes from.

    Raises:
        ValueError: No such task; the message lists those there are.
    """
    sources = _sources()
    validate.known("task", name, sources)
    return sources[name]


def names() -> list[str]:
    """Names of all tasks, sorted."""
    return sorted(_sources())


def find(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: No such task; the message lists those there are.
    """
    task: Task = source(name).TASKS[name]
    return task


def dev_size(name: str) -> int:
    """Number of scored examples of a task, of real data the official one, which is known without it.

    Raises:
        ValueError: No such task.
    """
    from peft_dp.tasks import conll, glue

    if name in glue.LAYOUTS:
        return glue.LAYOUTS[name].rows[1]
    return conll.scored(name) if name in conll.TASKS else len(load(name).dev)


def load(name: str, folder: Path | None = None) -> Data:
    """All examples of a task, from its generator, from `folder`, or from the hub.

    Raises:
        ValueError: No such task, or a file that is not what it should be.
        Missing: The data is neither in `folder` nor to be had from the hub.
    """
    data: Data = source(name).load(find(name), folder)
    return data
