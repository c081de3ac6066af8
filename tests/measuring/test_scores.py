"""What is known of a job before training, and the scores of a trained one: predictions in order, without dropout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from peft_dp import Places, Spec
from peft_dp.measuring import scores
from peft_dp.spec import Privacy
from peft_dp.training.job import Job, build, find_sources

Make = Callable[..., Spec]


@pytest.fixture
def job(spec: Make, places: Places) -> Callable[..., Job]:
    """Builds a job of that task whose head, moved to the middle of its logits, tells examples apart."""

    def make(task: str) -> Job:
        made = build(spec(task=task, dev=40), find_sources(spec(task=task, dev=40), places))
        made.backbone.model.eval()
        with torch.no_grad():
            logits = made.backbone.logits(made.dev.batch(range(40), "cpu"))
            made.backbone.model.get_parameter("head.bias").sub_(logits.mean(0))
        return made

    return make


@pytest.mark.parametrize("task", ["sentiment", "inference"])
def test_order(job: Callable[..., Job], task: str) -> None:
    """Predicted classes stand in the dev set's order, as when each example is asked alone."""
    made = job(task)
    made.backbone.model.eval()
    alone = [made.backbone.logits(made.dev.batch([index], "cpu")).argmax().item() for index in range(40)]

    assert len(set(alone)) > 1
    assert alone == scores.predictions(made)


def test_order_of_scores(job: Callable[..., Job]) -> None:
    """So do predicted scores, which are the output itself."""
    made = job("similarity")
    made.backbone.model.eval()
    with torch.no_grad():
        alone = [made.backbone.logits(made.dev.batch([index], "cpu")).item() for index in range(40)]

    assert len(set(alone)) > 1
    assert alone == pytest.approx(scores.predictions(made), rel=1e-3, abs=1e-6)


def test_dropout_is_off(job: Callable[..., Job]) -> None:
    """A model that comes out of training is scored without dropout."""
    made = job("similarity")
    made.backbone.model.train()
    first = scores.predictions(made)
    made.backbone.model.train()

    assert first == scores.predictions(made)


def test_score(job: Callable[..., Job]) -> None:
    """The score is the metric times 100: here the share of right classes."""
    made = job("sentiment")
    predicted = scores.predictions(made)
    right = sum(guess == label for guess, label in zip(predicted, made.dev.labels.tolist(), strict=True))

    assert 100 * right / 40 == pytest.approx(scores.trained(made, predicted)["score"])


def test_above_majority(job: Callable[..., Job]) -> None:
    """A model that says the most frequent label each time is 0 above it; one that is always right is the rest above."""
    made = job("sentiment")
    labels: list[float] = made.dev.labels.tolist()
    frequent = max(0.0, 1.0, key=labels.count)

    assert scores.trained(made, [frequent] * 40)["above_majority"] == 0
    assert 100 * (1 - labels.count(frequent) / 40) == pytest.approx(scores.trained(made, labels)["above_majority"])


def test_known_before_training(spec: Make, places: Places) -> None:
    """Trained values are counted with the head; steps and noise are the plan's."""
    run = spec(method="head", task="inference", privacy=Privacy(epsilon=8.0, delta=1e-3, accountant="rdp"))
    job = build(run, find_sources(run, places))

    assert {
        "trainable": 17 * 3,
        "steps": 2 * 3,
        "noise_multiplier": job.plan.noise_multiplier,
    } == scores.known(job)
