"""What holds for every task; a new file in `tasks/` is tested by being there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from peft_dp import tasks
from peft_dp.tasks import Data, Task
from peft_dp.validate import Missing

TASK = tasks.find("sentiment")


@pytest.fixture(params=[name for name in tasks.names() if not tasks.find(name).hub])
def task(request: pytest.FixtureRequest) -> Task:
    """Each task whose data is not fetched."""
    return tasks.find(request.param)


@pytest.fixture
def data(task: Task) -> Data:
    """Its examples."""
    try:
        return tasks.load(task.name)
    except Missing:
        pytest.skip("its data is not public")


def test_sizes(task: Task, data: Data) -> None:
    """A task has as many examples as it states."""
    assert (task.train, task.dev) == (len(data.train), len(data.dev))


def test_examples(task: Task, data: Data) -> None:
    """Every example has a second sentence if the task is one of pairs, and a label that the head can give."""
    for example in (*data.train, *data.dev):
        assert task.pair == (example.second is not None)
        if task.kind == "tokens":
            assert set(example.label) <= set(range(task.outputs))  # type: ignore[arg-type]
        elif task.kind == "classification":
            assert example.label in range(task.outputs)


def test_another_number_of_scored_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that gives another number of scored examples than its task states is refused."""
    monkeypatch.setitem(tasks.source("sentiment").TASKS, "sentiment", replace(TASK, dev=499))
    with pytest.raises(ValueError, match=r"task 'sentiment' states dev=499, but its source gave 500 scored examples"):
        tasks.load("sentiment")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"train": 0}, "train must be"),
        ({"dev": -1}, "dev must be"),
        ({"tokens": 0.0}, "tokens must be"),
        ({"positive": 1.0}, "positive must lie between 0 and 1"),
        ({"metric": "f1"}, "task 'sentiment': give positive, since the error of f1 depends on the share of class 1"),
    ],
    ids=str,
)
def test_refused(fields: dict[str, object], says: str) -> None:
    """What cannot be is refused at birth."""
    with pytest.raises(ValueError, match=says):
        replace(TASK, **fields)  # type: ignore[arg-type]


def test_name_in_two_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources of one task are named, and neither is taken."""
    monkeypatch.setitem(tasks.source("entities").TASKS, "sentiment", TASK)
    with pytest.raises(ValueError, match=r"task 'sentiment' is in peft_dp\.tasks\.generated and in "):
        tasks.find("sentiment")
