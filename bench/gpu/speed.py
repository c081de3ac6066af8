"""Seconds on the device: steps beside Opacus, kernels and waits, the host, tokens per pass, seeds, processes."""

from __future__ import annotations

import re
import statistics
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from kit import (
    REAL,
    WIDE,
    A,
    clear,
    cut_at,
    example,
    fixed,
    job,
    ours,
    peak,
    privacy,
    put,
    quick_models,
    seconds,
    shrink,
    spec,
    sst2_lengths,
    step,
    sync,
)
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from peft_dp import implementations, rng
from peft_dp.implementations._base import Watch, one_step
from peft_dp.privacy.gradients import zeros
from peft_dp.training import fleet, loop

GRID = [  # backbone, precision, examples of 128 tokens, method: in order of value
    *(("roberta_large", p, 32, "bitfit") for p in ("bf16", "fp32")),
    *(("roberta", p, 32, "bitfit") for p in ("bf16", "fp32")),
    *(("roberta_large", p, 32, "lora") for p in ("bf16", "fp32")),
    *(("roberta_large", p, 8, "full") for p in ("bf16", "fp32")),
    *(("roberta_large", "bf16", b, "bitfit") for b in (8, 64)),
    *(("roberta", "bf16", b, "bitfit") for b in (8, 64)),
    *(("roberta_large", "fp32", b, "bitfit") for b in (8, 64)),
    ("roberta", "bf16", 32, "full"),
    ("roberta_large", "bf16", 32, "slash"),
    ("roberta", "bf16", 32, "lora"),
    *(("roberta", "fp32", b, "bitfit") for b in (8, 64)),
]


def flops(call) -> float:
    """FLOPs of the matrix products in a call, by torch's own formulas."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


class Unwatched(Watch):
    """Takes nothing down."""

    def passed(self, *_: object) -> None:
        """Take nothing."""

    given = stepped = epoch = passed


def through(name, made):
    """A step by a library."""
    library = implementations.load(name)

    def step(indices):
        one = one_step(made, indices)
        library.fit(one, Unwatched(one))

    return step


def steps() -> None:
    """A step without privacy, private, and by Opacus's hooks and ghost clipping: seconds and GB."""
    if A.tiny:
        shrink()
    quick_models()
    warnings.simplefilter("ignore")
    for backbone, precision, size, method in GRID[:2] if A.tiny else GRID:
        tokens = 16 if A.tiny else 128
        made = spec(
            backbone=backbone,
            method=method,
            config=REAL[method] if not A.tiny else example(method),
            precision=precision,
            train=64,
            batch=size,
            max_length=128,
        )
        line = {}
        for engine in ("plain", "private", "hooks", "ghost"):
            name = f"{backbone} {precision} {size}x{tokens} {method}"
            try:
                one = replace(
                    job(replace(made, privacy=None if engine == "plain" else privacy())), train=fixed(size, tokens)
                )
                one.backbone.model.train()
                run = ours(one) if engine in ("plain", "private") else through(f"opacus_{engine}", one)
                call = lambda run=run: run(list(range(size)))  # noqa: E731
                took = seconds(call, 3 if A.tiny else 5)
                line[engine] = {"ms": 1e3 * statistics.median(took), "spread": max(took) / min(took), **peak(call)}
                if engine == "plain":
                    work = flops(call)
                    line["tflop"] = work / 1e12
                del one, run, call
            except Exception as error:
                line[engine] = {"error": f"{type(error).__name__}: {str(error)[:100]}"}
            clear()
        base = line["plain"].get("ms")
        for engine in ("private", "hooks", "ghost"):
            if base and "ms" in line[engine]:
                line[engine]["over_plain"] = line[engine]["ms"] / base
        if base:
            line["plain_tflop_s"] = line["tflop"] / base * 1e3
        put("steps", name, None, **line)


GROUPS = {
    "gemm": r"gemm|nvjet|cutlass|xmma|gemv|splitK|sm80_|sm90_|ampere_|hopper",
    "attention": r"fmha|flash|attention",
    "index": r"index|scatter|gather",
    "norm": r"layer_norm|LayerNorm",
    "reduce": r"reduce",
    "fused optimiser": r"multi_tensor",
    "copy": r"Memcpy|Memset|copy|CatArray|FillFunctor",
    "draw": r"distribution|philox",
    "pointwise": r"elementwise|vectorized|gelu|Gelu",
}


def profiled(unit: str, name: str, call, trace: bool = False) -> None:
    """Kernels of a call by kind and name, the device's idle time, launches and waits."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (A.device == "cuda")
    call()
    sync()
    wall = statistics.median(seconds(call, 3, 0))
    with profile(activities=activities) as found:
        call()
        sync()
    if trace:
        kept = A.out / "trace.json.gz"
        found.export_chrome_trace(str(kept))
        if kept.stat().st_size > 15e6:
            kept.unlink()
    events = found.profiler.kineto_results.events()
    kernels = [
        e
        for e in events
        if e.device_type() == torch.autograd.DeviceType.CUDA
        and e.duration_ns() > 0
        and not e.is_user_annotation()
        and not e.name().startswith("[")
    ]
    kernels.sort(key=lambda e: e.start_ns())
    kinds, names, runtime = defaultdict(float), defaultdict(lambda: [0, 0.0]), Counter()
    busy, end, gaps = 0.0, 0, []
    for e in kernels:
        kind = next((k for k, pattern in GROUPS.items() if re.search(pattern, e.name())), "other")
        kinds[kind] += e.duration_ns() / 1e6
        names[e.name()[:110]][0] += 1
        names[e.name()[:110]][1] += e.duration_ns() / 1e6
        if end and e.start_ns() > end:
            gaps.append((e.start_ns() - end) / 1e3)
        busy += max(0, e.start_ns() + e.duration_ns() - max(end, e.start_ns())) / 1e6
        end = max(end, e.start_ns() + e.duration_ns())
    for e in events:
        if e.name().startswith(("cuda", "cu")) and e.device_type() == torch.autograd.DeviceType.CPU:
            runtime[e.name()] += 1
    top = sorted(((k, *v) for k, v in names.items()), key=lambda row: -row[2])[:25]
    own = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)[:15]
    put(
        unit,
        name,
        None,
        wall_ms=1e3 * wall,
        busy_ms=busy,
        busy_share=busy / (1e3 * wall),
        kernels=len(kernels),
        us_a_kernel=1e6 * wall / max(1, len(kernels)),
        kinds={k: round(v, 3) for k, v in sorted(kinds.items(), key=lambda r: -r[1])},
        gaps_ms=sum(gaps) / 1e3,
        gaps_over_20us_ms=sum(g for g in gaps if g > 20) / 1e3,
        runtime=dict(runtime.most_common(8)),
        top=top,
        table=[(e.key, e.count, round(e.self_cpu_time_total / 1e3, 3)) for e in own],
    )


def waits(unit: str, name: str, call) -> None:
    """Where a call makes the host wait for the device, by line."""
    if A.device != "cuda":
        return
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}" for w in found if "synchroniz" in str(w.message)
    )
    put(unit, name, None, waits=sum(places.values()), places=dict(places.most_common(12)))


def profile_unit() -> None:
    """The private BitFit step, and the step of eight sentences of which the papers' hours are made."""
    if A.tiny:
        shrink()
    quick_models()
    base = {"backbone": "roberta_large", "max_length": 128, "train": 512}
    size = 8 if A.tiny else 64
    for name, fields, data in (
        (
            "private bitfit bf16 64x128",
            {"method": "bitfit", "precision": "bf16", "privacy": privacy(), "batch": size},
            128,
        ),
        ("private bitfit fp32 64x128", {"method": "bitfit", "privacy": privacy(), "batch": size}, 128),
        ("plain bitfit bf16 64x128", {"method": "bitfit", "precision": "bf16", "batch": size}, 128),
        (
            "plain lora fp32 8 sentences of QNLI",
            {"method": "lora", "config": REAL["lora"], "batch": 8, "task": "qnli-lengths"},
            None,
        ),
        ("plain full fp32 8 sentences of QNLI", {"method": "full", "batch": 8, "task": "qnli-lengths"}, None),
        (
            "plain jr_warp fp32 8 sentences of QNLI",
            {"method": "jr_warp", "config": REAL["jr_warp"], "batch": 8, "task": "qnli-lengths"},
            None,
        ),
        (
            "private lora fp32 512 of SST-2",
            {"method": "lora", "config": REAL["lora"], "privacy": privacy(), "batch": 8 if A.tiny else 512},
            "sst2",
        ),
    ):
        with step("profile", name):
            made = job(spec(**(base | fields)))
            count = fields["batch"]
            if data:
                lengths = sst2_lengths(count) if data == "sst2" else (16 if A.tiny else data)
                made = replace(made, train=fixed(count, lengths))
            run = ours(made)
            call = lambda run=run, count=count: run(list(range(count)))  # noqa: E731
            profiled("profile", name, call, trace=name.startswith("private bitfit bf16"))
            waits("profile", f"waits of {name}", call)
            del made, run, call
        clear()


def host() -> None:
    """Seconds of the host alone: cutting and packing a logical batch, and the engine's own bookkeeping."""
    quick_models()
    if A.tiny:
        shrink()
    with step("host", "packing"):
        for name, lengths in (("2048 of SST-2", sst2_lengths(2048)), ("2048 x 128", 128)):
            data = fixed(2048, lengths)
            cuts = list(data.split(range(2048)))
            cutting = min(seconds(lambda d=data: list(d.split(range(2048))), 3))
            packing = min(seconds(lambda d=data, c=cuts: [d.packed(one, "cpu") for one in c], 3))
            moving = min(seconds(lambda d=data, c=cuts: [d.packed(one, A.device) for one in c], 3))
            put(
                "host",
                f"packing {name}",
                None,
                physical=len(cuts),
                cut_ms=1e3 * cutting,
                pack_ms=1e3 * packing,
                pack_and_move_ms=1e3 * moving,
                ms_a_batch=1e3 * moving / len(cuts),
            )
    with step("host", "bookkeeping"):
        made = job(spec(backbone="roberta_large", privacy=privacy(), train=32))
        sums = zeros(made.backbone.model)
        source = rng.generator(0, "noise", A.device)
        put(
            "host",
            "bookkeeping",
            None,
            tensors=len(sums),
            zeros_ms=1e3 * min(seconds(lambda: zeros(made.backbone.model), 5)),
            noise_ms=1e3 * min(seconds(lambda: [v.add_(next(rng.normal(source, [v], 1.0))) for v in sums.values()], 5)),
            divide_ms=1e3 * min(seconds(lambda: [v.div_(7) for v in sums.values()], 5)),
            foreach_divide_ms=1e3 * min(seconds(lambda: torch._foreach_div_(list(sums.values()), 7), 5)),
        )


def tokens_unit() -> None:
    """How long a logical batch takes, by the number of tokens that pass at once."""
    if A.tiny:
        shrink()
    quick_models()
    size = 32 if A.tiny else 512
    for precision, what in (("bf16", 128), ("bf16", "sst2"), ("fp32", 128), ("fp32", "sst2")):
        made = job(
            spec(
                backbone="roberta_large", precision=precision, privacy=privacy(), batch=size, train=512, max_length=128
            )
        )
        many = (size if what == 128 else 4 * size) // (1 if precision == "bf16" or A.tiny else 4)
        made = replace(made, train=fixed(many, (16 if A.tiny else 128) if what == 128 else sst2_lengths(many)))
        run, line = ours(made), {}
        real = sum(made.train.lengths)
        for tokens in (
            (512, 2048) if A.tiny else (2048, 4096, 8192, 16384, 32768) if precision == "bf16" else (2048, 8192)
        ):
            with step("tokens", f"{precision} {what} {tokens}"), cut_at(tokens):
                call = lambda: run(list(range(many)))  # noqa: E731
                took = statistics.median(seconds(call, 2, 1))
                line[tokens] = {
                    "ms": 1e3 * took,
                    "tokens_s": real / took,
                    "model_tflop_s": 4 * WIDE * real / took / 1e12,
                    "peak_gb": peak(call).get("peak_gb"),
                }
        put("tokens", f"private bitfit {precision} {many} of {what}", None, **{str(k): v for k, v in line.items()})
        clear()


def seeds_unit() -> None:
    """Five seeds in one batch over five alone."""
    if A.tiny:
        shrink()
    quick_models()
    for backbone, method, size in (
        ("roberta_large", "lora", 8),
        ("roberta_large", "slash", 8),
        ("roberta_large", "bitfit", 32),
    ):
        with step("seeds", f"{backbone} {method} {size}"):
            config = REAL[method] if not A.tiny else example(method)
            made = spec(
                backbone=backbone,
                method=method,
                config=config,
                task="qnli-lengths",
                train=8 * size,
                batch=size,
                epochs=1,
                max_length=128,
            )
            loop.fit(job(made))
            alone, both = [], []
            for _ in range(2):
                alone.append(sum(loop.fit(job(made.seeded(s))).epochs[0].seconds for s in range(5)))
                jobs = [job(made.seeded(s)) for s in range(5)]
                both.append(sum(t.epochs[0].seconds for t in loop.fit_together(jobs)))
                del jobs
            put(
                "seeds",
                f"{backbone} {method}, batches of {size}",
                None,
                alone_s=min(alone),
                together_s=min(both),
                ratio=min(both) / min(alone),
                possible=fleet.possible(job(made)),
            )
        clear()


def share(at: int, count: int) -> None:
    """Steps a second of small batches, beside as many other processes: what cells side by side on one card give."""
    if A.tiny:
        shrink()
    quick_models()
    made = job(
        spec(
            backbone="roberta_large",
            method="lora",
            config=REAL["lora"],
            batch=8,
            train=64,
            task="qnli-lengths",
            max_length=128,
        )
    )
    run = ours(made)
    for start in range(0, 64, 8):
        run(list(range(start, start + 8)))
    sync()
    begin = A.unit_start + (6 if A.tiny else 14)
    late = max(0.0, time.monotonic() - begin)
    time.sleep(max(0.0, begin - time.monotonic()))
    done, start = 0, time.monotonic()
    while time.monotonic() < begin + (8 if A.tiny else 20):
        run(list(range(done % 8 * 8, done % 8 * 8 + 8)))
        done += 1
        if done % 8 == 0:
            sync()
        if time.monotonic() - start > 5:
            break
    sync()
    put(f"share{count}", f"process {at}", None, steps_s=done / (time.monotonic() - start), late=late)
