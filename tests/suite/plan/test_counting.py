"""What is counted of a run against other counters, real runs and figures by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from peft_dp import Places, Spec, registry
from peft_dp.measuring import cost
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.plan import calibrate
from peft_dp.rng import generator
from peft_dp.spec import Privacy
from peft_dp.suite.plan.costs import costs
from peft_dp.suite.plan.counting import Shapes
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit

Make = Callable[..., Spec]

TINY = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
PRIVACY = Privacy(epsilon=8.0, delta=1e-3, accountant="rdp")
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
COUNTED = [
    ("full", {}),
    ("head", {}),
    ("bitfit", {}),
    ("lora", {"rank": 2, "alpha": 4.0}),
    ("adapter", {"bottleneck": 4}),
    ("compacter", {"n": 2, "bottleneck": 4}),
    ("slash", {"size": 8}),
    ("warp", {"length": 3}),
    ("jr_warp", {"size": 8}),
    ("random_mask", {"kind": "bias", "budget": 100}),
    ("gradual", {"stages": [[1, 1], [2, 1]]}),
]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, spec: Make) -> Make:
    """Makes a spec of a random backbone that is small in every way; arguments replace its fields."""
    monkeypatch.setattr(registry.load("backbones", "bert"), "CONFIG", TINY)
    return lambda **fields: spec(**({"weights": "random", "dropout": False, "method": "bitfit"} | fields))


def profiled(job: Job, cut: Sequence[int]) -> float:
    """FLOPs of the matrix products of a physical batch's gradient, as torch's profiler counts them in a real run.

    Attention is by plain products, for of fused ones the profiler knows nothing.
    """
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True, acc_events=True
        ) as profile,
    ):
        noised_sum(
            job.backbone.model,
            lambda cut: job.losses(job.batch(job.train, cut)),
            [list(cut)],
            replace(job.plan, noise_multiplier=0.0),
            generator(0, "noise"),
            masks=job.backbone.masks,
        )
    return float(sum(event.flops for event in profile.events() if event.name in PRODUCTS))


@pytest.mark.parametrize("private", [False, True], ids=["public", "private"])
@pytest.mark.parametrize(("method", "config"), COUNTED, ids=[method for method, _ in COUNTED])
def test_flops(tiny: Make, places: Places, method: str, config: dict[str, Any], private: bool) -> None:
    """FLOPs of a physical batch are exactly those that the profiler counts in a real step, as are trained values."""
    made = tiny(method=method, config=config, privacy=PRIVACY if private else None)
    job = build(made, find_sources(made, places))
    cut = next(job.cut(job.train, range(8)))
    job.backbone.model.train()
    shapes = Shapes(made)
    next(shapes.phases())

    assert profiled(job, cut) == shapes.count([job.train.lengths[i] for i in cut]).flops > 0
    assert shapes.trainable == job.backbone.count()
    assert shapes.weight_bytes == cost.weight_bytes(job)


def test_flops_of_minilm(places: Places, spec: Make) -> None:
    """The same holds of a backbone of real size, with examples of many lengths in shared rows."""
    made = spec(backbone="minilm", weights="random", dropout=False, task="sst2-lengths", batch=24, readout="mean")
    job = build(made, find_sources(made, places))
    cut = next(job.cut(job.train, range(24)))

    assert profiled(job, cut) == Shapes(made).count([job.train.lengths[i] for i in cut]).flops


BY_HAND = {"head": (2, 4, 4), "bitfit": (4, 12, 6), "full": (6, 12, 6)}
"""Method -> how often the weights, the attention's products and the head's weights count.

Two operations a product forward, as many for the gradient of an input and of a weight; attention's two products have
two gradients each.
"""


@pytest.mark.parametrize("method", BY_HAND)
def test_flops_by_hand(spec: Make, method: str) -> None:
    """FLOPs of MiniLM are what its sizes give: 4 d d + 2 d f weights and attention over W places in a layer."""
    width, inner, layers, count, length = 384, 1536, 6, 8, 32  # 8 examples of 32 tokens: rows of 32 places
    weights, attention, head = BY_HAND[method]
    made = spec(backbone="minilm", dropout=False, method=method, readout="mean")
    found = Shapes(made).count([length] * count)
    per_place = weights * (4 * width**2 + 2 * width * inner) + attention * length * width

    assert found.flops == layers * count * length * per_place + head * count * width * 2


@pytest.mark.parametrize("method", ["head", "bitfit", "gradual"])
def test_flops_of_a_run(spec: Make, places: Places, method: str) -> None:
    """Steps of a whole run are exact, FLOPs and tokens near, where layers are computed once too."""
    config = {"stages": [[1, 1], [2, 1]]} if method == "gradual" else {}
    own = {"backbone": "minilm", "weights": "random", "dropout": False, "method": method, "config": config}
    made = spec(**own, task="qqp-lengths", train=64, batch=16, max_length=64, readout="mean")
    job = build(made, find_sources(made, places))
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True, acc_events=True
        ) as profile,
    ):
        trained = fit(job)
    predicted = costs(made)

    assert predicted.steps == sum(epoch.steps for epoch in trained.epochs)
    assert predicted.tokens == pytest.approx(sum(epoch.tokens for epoch in trained.epochs), rel=0.05)
    measured = sum(event.flops for event in profile.events() if event.name in PRODUCTS)
    assert predicted.flops == pytest.approx(measured, rel=0.07)


@pytest.mark.parametrize(
    ("method", "private"), [("full", False), ("full", True), ("head", False), ("bitfit", False), ("bitfit", True)]
)
def test_memory(places: Places, spec: Make, method: str, private: bool) -> None:
    """Peak memory is within a tenth of what a run of that size measures."""
    made = spec(
        backbone="minilm",
        weights="random",
        dropout=False,
        task="sst2-lengths",
        train=512,
        batch=128 if private else 16,
        max_length=64,
        readout="mean",
        method=method,
        privacy=PRIVACY if private else None,
    )
    job = build(made, find_sources(made, places))
    state = 8 * sum(parameter.numel() for parameter in job.backbone.updated().values())

    assert costs(made).peak_bytes == pytest.approx(cost.weight_bytes(job) + state + cost.step_bytes(job), rel=0.1)


@pytest.mark.parametrize("private", [False, True], ids=["public", "private"])
def test_steps(spec: Make, private: bool) -> None:
    """Steps are those of the run's own plan, whose last batch may be smaller."""
    made = spec(train=30, batch=8, privacy=PRIVACY if private else None)

    assert costs(made).steps == calibrate(made, 30).steps == (6 if private else 8)
