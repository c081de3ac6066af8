"""What every unit of the GPU check needs: findings written at once, models and jobs made, calls timed."""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import os
import random
import time
import traceback
from contextlib import contextmanager

import torch
from transformers import AutoConfig

from peft_dp import registry, rng
from peft_dp.machine import Places
from peft_dp.methods import load
from peft_dp.models import weights
from peft_dp.models.batch import BUDGETS, Encoded
from peft_dp.spec import Optimiser, Privacy, Spec
from peft_dp.training.gradient import noised_mean
from peft_dp.training.job import build, find_sources
from peft_dp.training.phase import Phase
from peft_dp.training.tally import Tally

A = argparse.Namespace(start=time.monotonic())
"""The options; `main` fills them in."""


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
SMALL_DISTILBERT = {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}
WIDE = 302.0e6  # values in the linear weights of RoBERTa-large's layers
REAL = {
    "adapter": {"placement": "houlsby", "bottleneck": 16, "activation": "swish"},
    "bitfit": {},
    "compacter": {"n": 8, "bottleneck": 96},
    "diff_pruning": {"gated_epochs": 1},
    "full": {},
    "gradual": {"stages": [[1, 1], [2, 1]]},
    "head": {},
    "jr_warp": {"size": 1024},
    "lora": {"rank": 1, "alpha": 8.0},
    "random_mask": {"kind": "uniform"},
    "rgp": {"rank": 1},
    "slash": {"size": 1024},
    "spafit": {"frozen": 3, "bias": 9, "variant": "I", "rank": 64, "alpha": 128},
    "two_phase": {"full_epochs": 1},
    "warp": {"length": 20},
}


def say(text: str) -> None:
    """A line of the summary, at once."""
    line = f"{time.monotonic() - A.start:6.1f}s {text}"
    with (A.out / "summary.txt").open("a") as file:
        file.write(line + "\n")
    os.write(A.terminal, (line + "\n").encode())


def put(unit: str, step: str, ok: bool | None = None, **values: object) -> None:
    """A finding, at once: all of it in results.jsonl, its numbers in the summary."""
    found = {"at": round(time.monotonic() - A.start, 2), "unit": unit, "step": step, "ok": ok, **values}
    with (A.out / "results.jsonl").open("a") as file:
        file.write(json.dumps(found, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())
    shown = "  ".join(f"{k}={short(v)}" for k, v in values.items() if k not in ("detail", "top", "table"))
    say(f"{ {None: '    ', True: 'ok  ', False: 'FAIL'}[ok] } {unit}/{step}: {shown}"[:300])


def short(value: object) -> str:
    """Few digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(short(v) for v in value) + "]"
    return str(value)


@contextmanager
def step(unit: str, name: str):
    """Reports an error of the block and goes on, unless the device is lost."""
    try:
        yield
    except Exception as error:
        kept = traceback.format_exc().splitlines()[-14:]
        put(unit, name, False, error=f"{type(error).__name__}: {str(error)[:160]}", detail=kept)
        if "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError":
            raise SystemExit(76) from error
    finally:
        gc.collect()


def sync() -> None:
    """Wait for the device."""
    if A.device == "cuda":
        torch.cuda.synchronize()


def methods() -> list[str]:
    """Names of the methods."""
    return registry.names("methods")


def example(name: str) -> dict:
    """A method's own example, as a spec has it."""
    return load(name).EXAMPLE.model_dump(mode="json")


def shrink(names=("roberta", "bert", "distilbert", "roberta_large")) -> None:
    """Makes the backbones' random models small, for this process."""
    for name in names:
        registry.load("backbones", name).CONFIG.update(SMALL_DISTILBERT if name == "distilbert" else SMALL)


def quick_models() -> None:
    """Random models drawn on the device and copied there: a large one in less than a second."""
    held = {}

    def model(files, kind, outputs=2, new=(), **options):
        at = (files.backbone, kind.__name__, outputs, tuple(options.items()))
        if at not in held:
            held.clear()
            torch.manual_seed(0)
            with torch.device(A.device):
                held[at] = kind.from_config(AutoConfig.for_model(**files.config, num_labels=outputs), **options)
        return copy.deepcopy(held[at])

    weights.model = model


def spec(**fields):
    """A spec of random weights and generated lengths."""
    base = {
        "budget": "smoke",
        "backbone": "roberta",
        "task": "sst2-lengths",
        "train": 64,
        "dev": 32,
        "method": "bitfit",
        "optimiser": Optimiser(rate=1e-3),
        "epochs": 2,
        "batch": 16,
        "max_length": 64,
        "dropout": False,
        "weights": "random",
    }
    return Spec(**(base | fields))


def privacy(**fields):
    """The privacy that private runs keep."""
    return Privacy(**({"epsilon": 8.0, "delta": 1e-4, "accountant": "rdp"} | fields))


def job(made):
    """The job of a spec."""
    return build(made, find_sources(made, Places(device=A.device)))


def fixed(count: int, tokens: int | list[int], seed: int = 0):
    """Examples of so many tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = [tokens] * count if isinstance(tokens, int) else tokens
    ids = [torch.randint(10, 20000, (length,), generator=draw).tolist() for length in lengths]
    return Encoded(ids, [[0] * length for length in lengths], torch.arange(count) % 2, 1)


def sst2_lengths(count: int) -> list[int]:
    """Lengths as SST-2's, specials included."""
    draw = random.Random(0)
    return [min(128, max(4, round(11.3 * math.exp(0.75 * draw.gauss(0, 1) - 0.28)) + 2)) for _ in range(count)]


def ours(made):
    """A whole step of the project's loop."""
    made.backbone.model.train()
    streams, phase = rng.of_steps(0, made.device), Phase(made, 0)
    return lambda indices: phase.step(noised_mean(made, list(indices), streams, Tally(made.device)))


def seconds(call, repeats: int, warm: int = 2) -> list[float]:
    """Seconds of each repeat of a call, the device's work included."""
    for _ in range(warm):
        call()
    found = []
    for _ in range(repeats):
        sync()
        start = time.perf_counter()
        call()
        sync()
        found.append(time.perf_counter() - start)
    return found


def peak(call) -> dict[str, float]:
    """GB that are allocated at most during a call, and what was there before; on a CPU the call alone."""
    if A.device != "cuda":
        call()
        return {}
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return {
        "held_gb": before / 1e9,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }


def clear() -> None:
    """Give back what is held of the device's memory."""
    gc.collect()
    if A.device == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def cut_at(tokens: int):
    """Physical batches of at most so many tokens."""
    budget = BUDGETS[A.device]
    own, budget.tokens = budget.tokens, tokens
    try:
        yield
    finally:
        budget.tokens = own
