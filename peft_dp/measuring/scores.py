"""Quantities of a trained job."""

from __future__ import annotations

from typing import Any

import torch

from peft_dp.measuring import metrics
from peft_dp.models.batch import IGNORED
from peft_dp.training.job import Job

KNOWN = ("noise_multiplier", "steps", "trainable")
"""Quantities that are known before training."""
TRAINED = ("above_majority", "answers", "score")
"""Quantities of a trained job and its predictions."""


def score(job: Job, predicted: list[float]) -> float:
    """The task's metric on the dev examples, times 100 as papers print it."""
    return 100 * metrics.score(job.task.metric, predicted, _labels(job))


def above_majority(job: Job, predicted: list[float]) -> float:
    """The score less that of always predicting the most frequent dev label (for a regression: the mean)."""
    return score(job, predicted) - 100 * metrics.majority(job.task.metric, _labels(job))


def answers(job: Job, predicted: list[float]) -> float:
    """Number of different predictions; 1 of a model that says the same of every example."""
    return float(len(set(predicted)))


def predictions(job: Job) -> list[float]:
    """Predicted class or score of each dev example, in order; for tags as `_joined` gives them."""
    found: dict[int, Any] = {}
    job.backbone.model.eval()
    with torch.inference_mode():
        for part in job.cut(job.dev, range(len(job.dev))):
            logits = job.logits(job.batch(job.dev, part))
            best = logits.squeeze(-1) if job.task.kind == "regression" else logits.argmax(-1)
            found |= dict(zip(part, best.tolist(), strict=True))
    ordered = [found[index] for index in range(len(job.dev))]
    return _joined(job, ordered) if job.task.kind == "tokens" else ordered


def _labels(job: Job) -> list[float]:
    labels: list[Any] = job.dev.labels.tolist()
    return _joined(job, labels) if job.task.kind == "tokens" else labels


def _joined(job: Job, rows: list[list[float]]) -> list[float]:
    """The tags of all tagged tokens in a row, with an O after each sentence so that no entity crosses its end."""
    known = job.dev.labels.tolist()
    kept = [[t for t, label in zip(*pair, strict=False) if label != IGNORED] for pair in zip(rows, known, strict=True)]
    return [tag for tags in kept for tag in (*tags, 0)]


def trainable(job: Job) -> int:
    """Number of trained values, head included."""
    return job.backbone.count()


def steps(job: Job) -> int:
    """Updates of the whole run."""
    return job.plan.steps


def noise_multiplier(job: Job) -> float:
    """Standard deviation of the noise over the clip; 0 without privacy."""
    return job.plan.noise_multiplier
