"""What changes of the engine would give, tried on it as it stands."""

from __future__ import annotations

import statistics
from contextlib import ExitStack, contextmanager
from dataclasses import replace

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
    step,
)
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from peft_dp.models import batch
from peft_dp.privacy import gradients, noised_sum
from peft_dp.privacy.gradients import per_example_pass, zeros
from peft_dp.privacy.per_example import Each


@contextmanager
def no_waits():
    """No look at the norms between physical batches (as if it came once a logical batch)."""
    own = noised_sum.finite_passes, gradients.PerExample.add_clipped

    def finite_passes(model, losses, cut, masks, per_example_pass=gradients.per_example_pass):
        yield cut, per_example_pass(model, lambda: losses(cut), len(cut), masks)

    def add_clipped(self, sums, clip, clipping):
        weights = gradients.factors(self.norms, clip, clipping)
        if self.formed_names:
            sums.add(self.formed_names, weights @ self.formed)
        for name, part in self.parts.items():
            if not isinstance(part, Each):
                part.add_to(sums[name], weights)
        return self.norms

    noised_sum.finite_passes, gradients.PerExample.add_clipped = finite_passes, add_clipped
    try:
        yield
    finally:
        noised_sum.finite_passes, gradients.PerExample.add_clipped = own


@contextmanager
def coarse_passes():
    """TF32 in all products of float32; only to see what it would give."""
    own = gradients.coarse_products
    gradients.coarse_products = lambda: False
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        gradients.coarse_products = own
        torch.set_float32_matmul_precision("highest")


@contextmanager
def larger(tokens: int = 32768):
    """Physical batches of more tokens."""
    with cut_at(tokens):
        yield


def halve(made) -> None:
    """Frozen linear weights in bfloat16, which autocast would make of them at each pass."""
    for module in made.backbone.encoder.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad:
            module.weight.data = module.weight.data.bfloat16()


def whatif() -> None:
    """What changes of the engine would give the private BitFit step at RoBERTa-large's shape."""
    if A.tiny:
        shrink()
    quick_models()
    tokens = 16 if A.tiny else 128

    def made(precision, size):
        one = job(
            spec(
                backbone="roberta_large", precision=precision, privacy=privacy(), batch=size, train=256, max_length=128
            )
        )
        return replace(one, train=fixed(size, tokens))

    for precision, size in (("bf16", 16 if A.tiny else 256), ("fp32", 16 if A.tiny else 64)):
        one, line = made(precision, size), {}
        run = ours(one)
        call = lambda run=run, size=size: run(list(range(size)))  # noqa: E731
        tries = {
            "as it is": (),
            "no waits": (no_waits,),
            "32,768 tokens": (larger,),
            "both": (no_waits, larger),
        }
        if precision == "fp32":
            tries = {name: tries[name] for name in ("as it is", "both")}
            tries |= {
                "TF32": (coarse_passes,),
                "TF32, both": (coarse_passes, no_waits, larger),
            }
        for name, changes in tries.items():
            with step("whatif", f"{precision} {name}"), ExitStack() as stack:
                for change in changes:
                    stack.enter_context(change())
                line[name] = 1e3 * statistics.median(seconds(call, 3, 1))
        if precision == "bf16":
            halve(one)
            with step("whatif", "bf16 weights"):
                line["weights in bf16"] = 1e3 * statistics.median(seconds(call, 3, 1))
            with step("whatif", "bf16 all"), no_waits(), larger():
                line["all three"] = 1e3 * statistics.median(seconds(call, 3, 1))
        model_tflop = 4 * WIDE * size * tokens / 1e12
        put(
            "whatif",
            f"private bitfit {precision} {size}x{tokens}, ms",
            None,
            **line,
            model_tflop=model_tflop,
            best_tflop_s=model_tflop / min(line.values()) * 1e3,
        )
        del run, one, call
        clear()
    if A.device == "cuda":
        for precision, tokens_at_once in (("bf16", 2048), ("bf16", 16384), ("fp32", 2048)):
            with step("whatif", f"graph {precision} {tokens_at_once}"), no_waits():
                one = made(precision, tokens_at_once // 128)
                if precision == "bf16":
                    halve(one)
                _graphed(one, precision, tokens_at_once)
            clear()
        with step("whatif", "attention"):
            _attention()
    with step("whatif", "optimiser"):
        _optimiser()
    with step("whatif", "parts"):
        _parts()


def _graphed(one, precision: str, tokens: int) -> None:
    """A physical batch's pass, norms and sums as a CUDA graph: the time that is left when nothing is launched."""
    count = tokens // 128
    batch = one.train.packed(list(range(count)), "cuda")
    model, sums = one.backbone.model.train(), zeros(one.backbone.model)

    def once():
        found = per_example_pass(model, lambda: one.losses(batch), count)
        found.add_clipped(sums, 1.0, "abadi")

    eager = statistics.median(seconds(once, 5))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    for value in sums.values():
        value.zero_()
    graph.replay()
    torch.cuda.synchronize()
    first = torch.cat([v.flatten() for v in sums.values()])
    for value in sums.values():
        value.zero_()
    once()
    second = torch.cat([v.flatten() for v in sums.values()])
    took = statistics.median(seconds(graph.replay, 10))
    put(
        "whatif",
        f"graph of a pass {precision} {tokens} tokens",
        None,
        eager_ms=1e3 * eager,
        graph_ms=1e3 * took,
        gap=((first - second).norm() / second.norm()).item(),
        model_tflop_s=4 * WIDE * tokens / took / 1e12,
    )


def _attention() -> None:
    """Attention within sentences: a dense mask, no mask, and variable lengths."""
    table = {}
    for rows, width, length in ((16, 128, 128), (16, 128, 16), (128, 128, 128), (128, 128, 16)):
        for dtype in (torch.bfloat16, torch.float32):
            q, k, v = (
                torch.randn(rows, 16, width, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)
            )
            owner = torch.arange(rows * width, device="cuda").view(rows, width) // length
            mask = (owner[:, :, None] == owner[:, None, :])[:, None]
            g = torch.randn_like(q)

            def run(call, inputs, g):
                torch.autograd.grad(call(), inputs, g)

            name = f"{rows}x{width} of {length} {str(dtype)[6:]}"
            table[f"{name} mask"] = 1e3 * statistics.median(
                seconds(lambda: run(lambda: functional.scaled_dot_product_attention(q, k, v, mask), (q, k, v), g), 5)
            )
            table[f"{name} none"] = 1e3 * statistics.median(
                seconds(lambda: run(lambda: functional.scaled_dot_product_attention(q, k, v), (q, k, v), g), 5)
            )
            if dtype == torch.bfloat16:
                try:
                    flat = [
                        t.detach().transpose(1, 2).reshape(-1, 16, 64).contiguous().requires_grad_() for t in (q, k, v)
                    ]
                    starts = torch.arange(0, rows * width + 1, length, device="cuda", dtype=torch.int32)
                    gf = torch.randn_like(flat[0])
                    table[f"{name} varlen"] = 1e3 * statistics.median(
                        seconds(lambda: run(lambda: varlen_attn(*flat, starts, starts, length, length), flat, gf), 5)
                    )
                except Exception as error:
                    table[f"{name} varlen"] = str(error)[:80]
    put("whatif", "attention, forward and backward, ms", None, **table)


def _parts() -> None:
    """A method whose sentences have rows of their own: few padded places in several passes, or one pass."""
    config = REAL["jr_warp"] if not A.tiny else example("jr_warp")
    made = job(
        spec(
            backbone="roberta_large",
            method="jr_warp",
            config=config,
            batch=8,
            train=64,
            task="qnli-lengths",
            max_length=128,
        )
    )
    cuda = batch.BUDGETS[made.device]
    run, line, own = ours(made), {}, cuda.part
    for part in (own, 512, 2048):
        cuda.part = part
        passes = [len(list(made.cut(made.train, range(at, at + 8)))) for at in range(0, 64, 8)]
        took = seconds(lambda: [run(list(range(at, at + 8))) for at in range(0, 64, 8)], 3, 1)
        line[f"PART {part}"] = {"ms_a_step": 1e3 * statistics.median(took) / 8, "passes": sum(passes) / 8}
    cuda.part = own
    put("whatif", "jr_warp, 8 sentences of QNLI", None, **line)


def _optimiser() -> None:
    """Full fine-tuning of RoBERTa-large's shape: what surrounds a step of few sentences."""
    made = job(spec(backbone="roberta_large", method="full", train=32))
    values = list(made.backbone.trained().values())
    for p in values:
        p.grad = torch.randn_like(p) * 1e-4
    line = {}
    for name, options in (("foreach", {"foreach": True}), ("fused", {"fused": True}), ("single", {"foreach": False})):
        optimiser = torch.optim.AdamW(values, lr=1e-5, **options)
        line[name] = 1e3 * statistics.median(seconds(optimiser.step, 5))
        line[f"{name}_gb"] = peak(optimiser.step).get("peak_gb")
        del optimiser
        clear()
    grads = [p.grad for p in values]

    def loop():
        sums = [torch.zeros_like(p) for p in values]
        for total, gradient in zip(sums, grads, strict=True):
            total += gradient
        for total in sums:
            total.div_(8)

    def foreach():
        torch._foreach_div_(grads, 8)

    line |= {
        "zeros_add_divide_ms": 1e3 * statistics.median(seconds(loop, 5)),
        "foreach_divide_ms": 1e3 * statistics.median(seconds(foreach, 5)),
    }
    put("whatif", "around a step of full fine-tuning, ms", None, tensors=len(values), **line)
