"""Quantities of a job: those known before training, and the scores of a trained model."""

from __future__ import annotations

from typing import Any

import torch

from peft_dp.measuring import metrics
from peft_dp.models.batch import IGNORED
from peft_dp.training.job import Job

KNOWN = ("noise_multiplier", "steps", "trainable")
"""Names of what `known` returns."""
TRAINED = ("above_majority", "answers", "score")
"""Names of what `trained` returns."""


def known(job: Job) -> dict[str, float]:
    """Return what is known before training.

    Keys: `trainable`, the number of trained values, head included; `steps`, the updates of the whole run;
    `noise_multiplier`, the standard deviation of the noise over the clip, 0 without privacy.
    """
    return {
        "noise_multiplier": job.plan.noise_multiplier,
        "steps": job.plan.steps,
        "trainable": job.backbone.count(),
    }


def trained(job: Job, predicted: list[float]) -> dict[str, float]:
    """Return how a trained model does on the dev examples, given its `predictions`.

    Keys: `score`, the task's metric times 100, as papers print it; `above_majority`, the score less that of always
    predicting the most frequent label (for a regression: the mean); `answers`, the number of different predictions, 1
    of a model that says the same of every example.
    """
    labels = _labels(job)
    score = 100 * metrics.score(job.task.metric, predicted, labels)
    return {
        "above_majority": score - 100 * metrics.majority(job.task.metric, labels),
        "answers": float(len(set(predicted))),
        "score": score,
    }


def answers(job: Job, predicted: list[float]) -> str | list[float]:
    """Return the `predictions` as a record keeps them: classes and tags as digits, scores to seven of them."""
    if job.task.kind == "regression":
        return [float(f"{value:.7g}") for value in predicted]
    return "".join(map(str, predicted))


def predictions(job: Job) -> list[float]:
    """Return the predicted class or score of each dev example, in order; of tags, those that `_joined` returns."""
    ordered = by_example(job)
    return _joined(job, ordered) if job.task.kind == "tokens" else ordered


def by_example(job: Job) -> list[Any]:
    """Return the predicted class or score of each dev example, in order; of tags, one per token, padding included."""
    found: dict[int, Any] = {}
    job.backbone.model.eval()
    with torch.inference_mode():
        for part in job.cut(job.dev, range(len(job.dev))):
            logits = job.logits(job.batch(job.dev, part))
            best = logits.squeeze(-1) if job.task.kind == "regression" else logits.argmax(-1)
            found |= dict(zip(part, best.tolist(), strict=True))
    return [found[index] for index in range(len(job.dev))]


def _labels(job: Job) -> list[float]:
    labels: list[Any] = job.dev.labels.tolist()
    return _joined(job, labels) if job.task.kind == "tokens" else labels


def _joined(job: Job, rows: list[list[float]]) -> list[float]:
    """Return the tags of all tagged tokens, with an O after each sentence so that no entity crosses its end."""
    labels = job.dev.labels.tolist()
    kept = [[t for t, label in zip(*pair, strict=False) if label != IGNORED] for pair in zip(rows, labels, strict=True)]
    return [tag for tags in kept for tag in (*tags, 0)]
