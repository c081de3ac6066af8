"""Sequences without meaning, as long as those of GLUE tasks: for time and memory, which do not depend on meaning.

An example is numbers, one token each for the tokenizer that goes with random
weights, with a label drawn at random. Lengths are log-normal. SST-2's mean is
counted, in tokens of BERT's uncased vocabulary without specials, and its deviation
fits its 95th and 99th percentile (31 and 42). The others' means are the
characters of an example, from the sizes that the hub states of nyu-mll/glue
(QNLI 225, MNLI 171, QQP 120), times the 0.212 tokens per character of SST-2 and
MRPC; their deviation is assumed, between those counted of MRPC (0.28) and RTE (0.55).

There are only as many examples as a share of an epoch needs.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

from peft_dp.tasks import Data, Example, Task, glue

LENGTHS = {
    "sst2-lengths": ("sst2", 11.3, 0.75),
    "qqp-lengths": ("qqp-accuracy", 25.4, 0.45),
    "mnli-lengths": ("mnli", 36.2, 0.45),
    "qnli-lengths": ("qnli", 47.6, 0.45),
    "256-tokens": ("sst2", 254.0, 0.0),
}
"""Task -> GLUE task whose form it has, mean number of words, and standard deviation of the number's logarithm."""
TRAIN, DEV = 4096, 256
WORDS = 20000
"""Different words; every backbone has more."""

TASKS = {
    name: replace(
        glue.TASKS[form],
        name=name,
        title=f"{glue.TASKS[form].title}'s form, {mean:g} words on average",
        train=TRAIN,
        dev=DEV,
        tokens=mean + 2 + glue.TASKS[form].pair,  # with the special tokens
        log_deviation=deviation,
        hub=None,
    )
    for name, (form, mean, deviation) in LENGTHS.items()
}


def load(task: Task, folder: Path | None) -> Data:
    """Return the examples of a task, the same in every call; no file of `folder` is read."""
    draw = random.Random(task.name)
    return Data(*([_example(task, draw) for _ in range(count)] for count in (TRAIN, DEV)))


def _example(task: Task, draw: random.Random) -> Example:
    _, mean, deviation = LENGTHS[task.name]
    height = NormalDist().inv_cdf(draw.random())
    # At least one word for each sentence.
    count = max(1 + task.pair, round(mean * math.exp(deviation * height - deviation**2 / 2)))
    words = [str(int(draw.random() * WORDS)) for _ in range(count)]
    cut = count // 2 if task.pair else count
    return Example(
        " ".join(words[:cut]),
        " ".join(words[cut:]) if task.pair else None,
        int(draw.random() * len(task.labels)),
    )
