"""Training on the device: every method, the same bits twice, and memory."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace

import torch
from kit import (
    REAL,
    A,
    clear,
    example,
    fixed,
    job,
    methods,
    peak,
    privacy,
    put,
    quick_models,
    seconds,
    shrink,
    spec,
    step,
    sync,
)
from torch.nn import functional

from peft_dp import registry, rng
from peft_dp.measuring import cost
from peft_dp.measuring.scores import predictions
from peft_dp.privacy.plan import spent
from peft_dp.training.gradient import noised_mean
from peft_dp.training.loop import fit
from peft_dp.training.tally import Tally


def train_tiny(shard: int, shards: int) -> None:
    """Every method trains, private and not, in float32 and bfloat16, on a small model; the spent epsilon is right."""
    shrink()
    _train("train_tiny", [(m, example(m)) for m in methods()], shard, shards, backbone="roberta")


def train_large(shard: int, shards: int) -> None:
    """Every method trains at RoBERTa-large's shape."""
    if A.tiny:
        shrink()
    quick_models()
    _train(
        "train_large",
        [(m, REAL.get(m, example(m))) for m in methods()],
        shard,
        shards,
        backbone="roberta_large",
        task="qnli-lengths",
        train=32,
        dev=16,
        max_length=128,
    )


def _train(unit: str, named, shard: int, shards: int, **fields) -> None:

    torch.set_num_threads(1)
    if A.tiny:
        named = [(m, c) for m, c in named if m in ("bitfit", "gradual", "diff_pruning", "warp", "spafit")]
        if any(m == "spafit" for m, _ in named):
            named = [(m, example(m) if m == "spafit" else c) for m, c in named]
    every = list(itertools.product(named, (None, privacy()), ("fp32", "bf16")))[shard::shards]
    for (method, config), private, precision in every:
        name = f"{method}{'-dp' if private else ''} {precision}"
        with step(unit, name):
            made = job(spec(method=method, config=config, privacy=private, precision=precision, **fields))
            before = {n: p.detach().clone() for n, p in made.backbone.updated().items()}
            start = time.perf_counter()
            found = []
            used = peak(lambda made=made, found=found: found.append(fit(made)))
            took = time.perf_counter() - start
            now = dict(made.backbone.model.named_parameters())
            moved = sum(not torch.equal(now[n], v) for n, v in before.items() if n in now)
            trail = found[0].epochs
            finite = all(e.loss is not None for e in trail)
            there = {p.device.type for p in made.backbone.model.parameters()} == {A.device}
            epsilon = spent(made.plan, sum(e.steps for e in trail)) if private else 0.0
            # The noise seen in what was released, over the clip, beside the plan's: never less.
            seen = trail[-1].noise / made.plan.noise_multiplier if private else 1.0
            right = finite and there and moved > 0 and epsilon <= 8.0 * 1.001 and seen > 0.9
            right = right and len(predictions(made)) == len(made.dev)
            put(
                unit,
                name,
                right,
                seconds=took,
                step_ms=1e3 * trail[-1].seconds / trail[-1].steps,
                peak_gb=used.get("peak_gb", 0.0),
                moved=f"{moved}/{len(before)}",
                epsilon=epsilon,
                noise_seen=seen,
                loss=trail[-1].loss,
            )
            del made, before, now, found
        clear()
    if shard == 0 and unit == "train_tiny":
        with step(unit, "bitfit-dp tokens"):
            made = job(spec(task="entities", readout="tokens", privacy=privacy()))
            fit(made)
            put(unit, "bitfit-dp tokens", len(predictions(made)) >= len(made.dev), dev=len(made.dev))


def memory() -> None:
    """The peak that a record states beside the allocator's over a whole training; a step with too little memory."""
    if A.device != "cuda":
        return
    quick_models()
    for method, private in (
        ("full", None),
        ("full", privacy()),
        ("bitfit", None),
        ("lora", privacy()),
        ("gradual", None),
    ):
        name = f"{method}{'-dp' if private else ''}"
        with step("memory", name):
            made = job(
                spec(
                    backbone="roberta_large",
                    method=method,
                    config=REAL[method],
                    privacy=private,
                    task="qnli-lengths",
                    train=64,
                    batch=8 if private is None else 32,
                    max_length=128,
                )
            )
            clear()
            other = torch.cuda.memory_allocated() - cost.weight_bytes(made)
            found = cost.step_bytes(made)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = fit(made).optimiser_bytes
            real = torch.cuda.max_memory_allocated() - other
            stated = cost.weight_bytes(made) + held + found
            put("memory", name, None, stated_gb=stated / 1e9, real_gb=real / 1e9, stated_over_real=stated / real)
            del made
        clear()
    with step("memory", "too little"):
        made = job(spec(backbone="roberta_large", privacy=privacy(), batch=64, train=256, max_length=128))
        made = replace(made, train=fixed(128, 128))

        made.backbone.model.train()

        def mean():
            found = noised_mean(made, list(range(128)), rng.of_steps(0, "cuda"), Tally("cuda"))
            return torch.cat([v.flatten() for v in found.values()])

        whole = mean()
        clear()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 6e9) / total)
        start = time.perf_counter()
        cut = mean()
        sync()
        took = time.perf_counter() - start
        torch.cuda.set_per_process_memory_fraction(1.0)
        gap_ = ((whole - cut).norm() / whole.norm()).item()
        put("memory", "too little", gap_ < 1e-4, gap=gap_, seconds=took, retries=torch.cuda.memory_stats()["num_ooms"])


def determinism(mode: str) -> None:
    """Whether two runs of one seed end in the same bits; with `mode` "strict" where torch is told to see to that."""
    if mode == "strict":
        torch.use_deterministic_algorithms(True)
    if A.tiny:
        shrink()
    else:
        registry.load("backbones", "roberta").CONFIG.update(num_hidden_layers=4)
    quick_models()
    unit = f"determinism {mode}"
    if mode == "default":
        _atoms(unit)
    fields = {
        "task": "qnli-lengths",
        "train": 64 if A.tiny else 256,
        "batch": 16 if A.tiny else 64,
        "epochs": 2,
        "max_length": 128,
    }
    named = ("bitfit", "lora", "slash", "full", "warp") if not A.tiny else ("bitfit", "slash")
    for private, precision, method in itertools.product((privacy(), None), ("fp32", "bf16"), named):
        name = f"{method}{'-dp' if private else ''} {precision}"
        with step(unit, name):
            ends, took = [], []
            for _ in range(2):
                config = REAL[method] if not A.tiny else example(method)
                made = job(spec(method=method, config=config, privacy=private, precision=precision, **fields))
                start = time.perf_counter()
                trail = fit(made).epochs
                took.append(time.perf_counter() - start)
                ends.append(
                    ({n: p.detach().clone() for n, p in made.backbone.updated().items()}, [e.loss for e in trail])
                )
            (one, losses), (two, again) = ends
            same = [torch.equal(one[n], two[n]) for n in one]
            far = max(((one[n] - two[n]).norm() / one[n].norm().clamp(min=1e-12)).item() for n in one)
            put(
                unit,
                name,
                None,
                same_bits=all(same),
                tensors=f"{sum(same)}/{len(same)}",
                largest=far,
                losses=losses == again,
                seconds=min(took),
            )
        clear()


def _atoms(unit: str) -> None:
    """Single operations of the engine, ten times over."""
    draw = torch.Generator(A.device).manual_seed(0)

    def rand(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=draw, device=A.device).to(dtype)

    owner = torch.randint(0, 17, (2048,), generator=draw, device=A.device)
    values, table = rand(2048, 1024), rand(1000, 1024)
    ids = torch.randint(0, 1000, (2048,), generator=draw, device=A.device)
    vectors = rand(17, 1024).requires_grad_()
    mask = (owner.view(16, 128)[:, :, None] == owner.view(16, 128)[:, None, :])[:, None]

    def attention(dtype):
        q, k, v = (rand(16, 16, 128, 64, dtype=dtype).requires_grad_() for _ in range(3))
        g = rand(16, 16, 128, 64, dtype=dtype)
        return lambda: torch.cat(
            [
                t.flatten()
                for t in torch.autograd.grad(functional.scaled_dot_product_attention(q, k, v, mask), (q, k, v), g)
            ]
        )

    looked = rand(1000, 1024).requires_grad_()
    for name, call in {
        "index_add, sums over examples": lambda: values.new_zeros(17, 1024).index_add_(0, owner, values),
        "index_add, embedding": lambda: torch.zeros_like(table).index_add_(0, ids, values),
        "index_select backward": lambda: torch.autograd.grad(vectors.index_select(0, owner), vectors, values)[0],
        "embedding backward": lambda: torch.autograd.grad(functional.embedding(ids, looked), looked, values)[0],
        "matmul": lambda: values.T @ values,
        "attention backward float32": attention(torch.float32),
        "attention backward bfloat16": attention(torch.bfloat16),
    }.items():
        with step(unit, name):
            found = [call() for _ in range(10)]
            took = statistics.median(seconds(call, 5))
            put(unit, name, None, same_bits=all(torch.equal(found[0], f) for f in found[1:]), us=1e6 * took)
