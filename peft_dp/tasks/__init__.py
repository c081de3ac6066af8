"""What is learnt: a task, its examples, and where they come from.

The folder is a registry: every file without a leading underscore is a source, with `TASKS` (name -> `Task`) and
`load(task, folder) -> Data`; one that reads large files may tell which, `files(task, folder)`. All that a plan or a
verdict needs to know of a task without its data stands on the `Task`. `generated`, `generated_entities` and `lengths`
make their data from a seed, `glue` and `conll` read the real thing, `own` what a user has: a name with a colon in it is
an address of files, see there. Nothing here imports torch.
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
    """One data set with its metric, and what is known of it without its data.

    Attributes:
        name: Short lower-case name, as in cell ids.
        title: The name people know it by.
        kind: What the head predicts: a class, a score, or the tag of each word.
        labels: Class names in label order; empty for a regression; for tags O, then B- and I- of each type.
        metric: The function of `measuring.metrics` that gives a row's score.
        pair: Whether an example has two sentences.
        train: Number of training examples.
        dev: Number of scored examples.
        tokens: Mean number of tokens per training example in BERT's uncased vocabulary, specials included.
        log_deviation: Standard deviation of the natural logarithm of that number.
        positive: Share of class 1 among the scored examples, for the errors of F1 and of Matthews' correlation; None
            with another metric.
        hub: Repository and revision of the hub's data set that `load` fetches; None where nothing is fetched.
        public: Whether anyone may see the data. The record of a private run on other data keeps no trace, which is
            exact, so that it cannot be replayed.

    Raises:
        ValueError: A size or a share that cannot be, or no `positive` where the metric needs it.
    """

    name: str
    title: str
    kind: Kind
    labels: tuple[str, ...]
    metric: str
    pair: bool
    train: int
    dev: int
    tokens: float
    log_deviation: float
    positive: float | None = None
    hub: tuple[str, str] | None = None
    public: bool = False

    def __post_init__(self) -> None:
        validate.count(train=self.train, dev=self.dev)
        validate.positive(tokens=self.tokens)
        if self.positive is not None:
            validate.fraction(positive=self.positive)
        elif self.metric in ("f1", "mcc", "entity_f1"):
            raise ValueError(
                f"task {self.name!r}: give positive, since the error of {self.metric} depends on the share of class 1"
            )

    @property
    def outputs(self) -> int:
        """Return the width of the head: the number of classes, or 1 for a regression."""
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
    """The examples of one task; `dev` is scored, and no example of it is trained on."""

    train: Sequence[Example]
    dev: Sequence[Example]

    def __hash__(self) -> int:
        """Return a hash that equal data share."""
        return hash(self.sha256)

    def subset(self, train: int | None, dev: int | None) -> Data:
        """Return the first `train` and `dev` examples after a fixed shuffle; for None all, unshuffled.

        The shuffle has a seed of its own, so that every run of a cell sees the same examples.

        Raises:
            ValueError: More examples are asked for than there are.
        """
        return replace(self, train=_first(self.train, train, "train"), dev=_first(self.dev, dev, "dev"))

    @cached_property
    def sha256(self) -> str:
        """Return the hash of all examples in their order; it is part of a record's key."""
        rows = [[(e.first, e.second, e.label) for e in split] for split in (self.train, self.dev)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _first(examples: Sequence[Example], count: int | None, split: str) -> Sequence[Example]:
    if count is None:
        return examples
    if count > len(examples):
        raise ValueError(f"{count} {split} examples asked for, but the task has {len(examples)}")
    return random.Random(0).sample(list(examples), count)


def _sources() -> dict[str, ModuleType]:
    """Return the source of each task, by the task's name.

    Raises:
        ValueError: Two sources have a task of the same name.
    """
    found: dict[str, ModuleType] = {}
    for source in (registry.load("tasks", name) for name in registry.names("tasks")):
        for name in source.TASKS:
            if name in found:
                raise ValueError(f"task {name!r} is in {found[name].__name__} and in {source.__name__}: rename one")
            found[name] = source
    return found


def source(name: str) -> ModuleType:
    """Return the file of `tasks/` that a task comes from.

    Raises:
        ValueError: No such task; the message lists those there are.
    """
    if ":" in name:
        return registry.load("tasks", "own")
    sources = _sources()
    validate.known("task", name, sources)
    return sources[name]


def is_own(name: str) -> bool:
    """Return whether a task is one's own data, which may be other data the next time it is read."""
    return source(name) is registry.load("tasks", "own")


def names() -> list[str]:
    """Return the names of all tasks, sorted."""
    return sorted(_sources())


def find(name: str) -> Task:
    """Return the task of that name, or at that address of one's own data.

    Raises:
        ValueError: No such task; the message lists those there are. Or data that are none; it names file and line.
        Missing: One's own data are not there.
    """
    module = source(name)
    task: Task = module.read(name)[0] if ":" in name else module.TASKS[name]
    return task


def files(name: str, folder: Path | None = None) -> list[Path]:
    """Return the files that a task is read from, if its source tells them; their tokens are kept for later runs.

    Raises:
        ValueError: No such task.
        Missing: They are neither in `folder` nor to be had from the hub.
    """
    module = source(name)
    return list(module.files(module.TASKS[name], folder)) if hasattr(module, "files") else []


def load(name: str, folder: Path | None = None) -> Data:
    """Return all examples of a task, from its generator, from `folder`, or from the hub.

    Raises:
        ValueError: No such task, a file that is not what it should be, or another number of scored examples than the
            task states.
        Missing: The data is neither in `folder` nor to be had from the hub.
    """
    task = find(name)
    data: Data = source(name).load(task, folder)
    if len(data.dev) != task.dev:
        raise ValueError(
            f"task {name!r} states dev={task.dev}, but its source gave {len(data.dev)} scored examples: correct one"
        )
    return data
