"""Putting a job together: every "no" comes before any work, in words."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_dp import Places, Spec, registry, tasks
from peft_dp.spec import Privacy
from peft_dp.training.job import build, cross_entropy, find_sources, square_error
from peft_dp.validate import Missing

Make = Callable[..., Spec]


def refusal(spec: Spec, places: Places, kind: type[Exception] = ValueError) -> str:
    """Words of the error that gathering ends in."""
    with pytest.raises(kind) as caught:
        find_sources(spec, places)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "known"),
    [
        ("method", registry.names("methods")),
        ("backbone", registry.names("backbones")),
        ("task", tasks.names()),
    ],
    ids=lambda value: value if isinstance(value, str) else "known",
)
def test_unknown_name(spec: Make, places: Places, field: str, known: list[str]) -> None:
    """An unknown method, backbone or task is answered with the list of those there are."""
    message = refusal(spec(**{field: "nothing"}), places)

    assert f"unknown {field} 'nothing'; known: {', '.join(known)}" == message


@pytest.mark.parametrize("method", registry.names("methods"))
def test_unknown_setting(spec: Make, places: Places, method: str) -> None:
    """A setting that the method does not have is named, with the method's file."""
    message = refusal(spec(method=method, config={"ranc": 4}), places)

    assert message.startswith(f"unknown setting of methods/{method}.py 'ranc'; known: ")


@pytest.mark.parametrize("privacy", [None, Privacy(epsilon=8.0, delta=1e-3)])
def test_batch_larger_than_data(spec: Make, places: Places, privacy: Privacy | None) -> None:
    """A batch larger than the data is refused with both numbers."""
    message = refusal(spec(batch=25, privacy=privacy), places)

    assert message == ("batch 25 is larger than the 24 training examples: choose a batch of at most 24")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_more_examples_than_there_are(spec: Make, places: Places, split: str) -> None:
    """Asking for more examples than the task has is refused with both numbers."""
    there = len(getattr(tasks.load("sentiment"), split))

    assert f"99999 {split} examples asked for, but the task has {there}" == refusal(spec(**{split: 99999}), places)


def test_no_backbone_folder(spec: Make, tmp_path: Path) -> None:
    """A backbone that is not there is a thing missing, named with the option that gives it."""
    message = refusal(spec(), Places(backbones=tmp_path, device="cpu"), Missing)

    assert message.startswith(f"{tmp_path / 'bert-base-cased'} is missing: --peft-backbones DIR ")


def test_no_weights(spec: Make, tmp_path: Path) -> None:
    """So is a folder without weights."""
    (tmp_path / "bert-base-cased").mkdir()
    message = refusal(spec(), Places(backbones=tmp_path, device="cpu"), Missing)

    assert message.startswith(f"{tmp_path / 'bert-base-cased'} holds no model.safetensors: put ")


def test_other_weights(spec: Make, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights whose hash is not the pinned one are wrong, not missing."""
    module = importlib.import_module("peft_dp.backbones.bert")
    monkeypatch.setattr(module, "SOURCE", replace(module.SOURCE, sha256="0" * 64))
    message = refusal(spec(), places)

    assert "model.safetensors has SHA-256 " in message
    assert f"at the pinned revision has {'0' * 16}" in message


def test_right_weights(spec: Make, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights whose hash is the pinned one are taken, and the hash is handed on."""
    module = importlib.import_module("peft_dp.backbones.bert")
    actual = find_sources(spec(), places).weights_sha256
    monkeypatch.setattr(module, "SOURCE", replace(module.SOURCE, sha256=actual))

    assert actual == find_sources(spec(), places).weights_sha256


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(
    ("budget", "device", "why"),
    [
        ("smoke", "cuda", "device 'cuda' was asked for"),
        ("paper", "cuda", "device 'cuda' was asked for"),
        ("paper", "auto", "the paper budget needs a GPU"),
    ],
)
def test_no_cuda(spec: Make, places: Places, budget: str, device: str, why: str) -> None:
    """A device that is not here is a thing missing, with torch's version and the remedy."""
    message = refusal(spec(budget=budget), replace(places, device=device), Missing)

    assert message.startswith(f"{why}, but torch {torch.__version__} sees no CUDA device")


@pytest.mark.parametrize("budget", ["smoke", "small", "paper"])
def test_cpu_on_request(spec: Make, places: Places, budget: str) -> None:
    """Any budget runs on the CPU if that is asked for."""
    assert find_sources(spec(budget=budget, weights="random"), replace(places, device="cpu")).device == "cpu"


@pytest.mark.parametrize(
    ("change", "kind"),
    [({"method": "nothing"}, ValueError), ({"task": "nothing"}, ValueError), ({"batch": 25}, ValueError)],
    ids=["method", "task", "batch"],
)
def test_wrong_before_missing(spec: Make, tmp_path: Path, change: dict[str, Any], kind: type[Exception]) -> None:
    """Wrong input is said first, on a machine that lacks the weights too."""
    with pytest.raises(kind):
        find_sources(spec(**change), Places(backbones=tmp_path, device="cpu"))


def test_plan_counts_the_subset(spec: Make, places: Places) -> None:
    """The plan is made from the examples that train, not from those the task has."""
    sources = find_sources(spec(train=21, dev=9, batch=4, epochs=2), places)

    train, dev = sources.examples.encoded()

    assert (21, 21, 9, 21, 12) == (
        sources.examples.train,
        len(train),
        len(dev),
        sources.plan.examples,
        sources.plan.steps,
    )


@pytest.mark.parametrize(
    ("task", "loss", "outputs"),
    [("sentiment", cross_entropy, 2), ("inference", cross_entropy, 3), ("similarity", square_error, 1)],
)
def test_head_fits_the_task(spec: Make, places: Places, task: str, loss: Callable[..., object], outputs: int) -> None:
    """The head has one output a class, or one for a score, and the loss goes with it."""
    built = build(spec(task=task), find_sources(spec(task=task), places))
    batch = built.dev.batch(range(3), "cpu")
    logits = built.backbone.logits(batch)

    assert built.loss is loss
    assert (3, outputs) == tuple(logits.shape)
    assert (3,) == tuple(built.loss(logits, batch.labels).shape)


def test_tokenised_once(spec: Make, places: Places) -> None:
    """Jobs of one task hold the same tokens, whatever their method and seed; another length is tokenised anew."""
    first, same, other = (
        build(s, find_sources(s, places)) for s in (spec(), spec(method="head", seed=1), spec(max_length=12))
    )

    assert first.train is same.train
    assert first.dev is same.dev
    assert max(other.train.lengths) == 12
