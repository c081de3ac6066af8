"""Proofs of what a step releases: its noise, what one example moves, and products that are exact."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace

import torch
from kit import (
    A,
    example,
    fixed,
    job,
    privacy,
    put,
    quick_models,
    shrink,
    spec,
    sst2_lengths,
    step,
)
from scipy import stats
from torch.nn.attention import SDPBackend, sdpa_kernel

from peft_dp import registry, rng
from peft_dp.privacy.gradients import coarse_products, per_example_pass, zeros
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.plan import Plan
from peft_dp.suite.audit.attack import audit


def noise() -> None:
    """What a step releases: its noise is normal, of the right size, fresh each time, once a logical batch."""
    shrink()
    made = job(spec(privacy=privacy(clip=0.5)))
    model = made.backbone.model
    plan = Plan(
        examples=64,
        batch=16,
        steps=4,
        steps_per_epoch=4,
        sampling="poisson",
        sample_rate=0.25,
        clip=0.5,
        noise_multiplier=0.7,
        delta=1e-4,
        accountant="rdp",
    )

    def losses(cut):
        return made.losses(made.batch(made.train, cut))

    for name, call in (("empty batch", _empty), ("once a logical batch", _once), ("streams", _streams)):
        with step("noise", name):
            call(model, losses, plan)
    with step("noise", "neighbours"):
        _neighbours()
    with step("noise", "large tensor"):
        like = torch.zeros(2**20 if A.tiny else 2**26, device=A.device)
        drawn = next(rng.normal(rng.generator(1, "noise", A.device), [like], 1.0)).double()
        std = drawn.std().item()
        few = drawn[: 2**20]
        put(
            "noise",
            "large tensor",
            abs(std - 1) < 5 / math.sqrt(2 * len(drawn)),
            std=std,
            doubles=len(few) - few.unique().numel(),
        )
    for method in ("bitfit", "lora") if not A.tiny else ("bitfit",):
        with step("noise", f"audit {method}"):
            found = audit(job(spec(method=method, config=example(method), privacy=privacy())), 300 if A.tiny else 4000)
            put("noise", f"audit {method}", not found.alarms, claimed=found.claimed, limit=found.limit, mu=found.mu)


def _flat(sums):
    return torch.cat([v.flatten() for v in sums.values()]).double()


def _empty(model, losses, plan) -> None:
    """Steps that drew nobody release normal noise of the plan's size, and of nothing else."""
    scale = plan.noise_multiplier * plan.clip
    source, count = rng.generator(3, "noise", A.device), 40 if A.tiny else 400
    values = torch.stack([_flat(noised_sum(model, losses, [], plan, source)) for _ in range(count)]) / scale
    n = values.numel()
    most = 5.0  # standard errors: a right engine is farther off once in 1.7 million
    mean, std = values.mean().item(), values.std().item()
    kurt = ((values - mean) ** 4).mean().item() / std**4
    rows = torch.corrcoef(values)[~torch.eye(count, dtype=torch.bool, device=values.device)].abs().max().item()
    kept = values[:, :: max(1, values.shape[1] // 500)]
    columns = torch.corrcoef(kept.T)
    columns = columns[~torch.eye(len(columns), dtype=torch.bool, device=values.device)].abs().max().item()
    ks = stats.kstest(values.flatten()[:: max(1, n // 200000)].cpu().numpy(), "norm").pvalue
    each = values.std(1)
    right = (
        abs(mean) < most / math.sqrt(n)
        and abs(std - 1) < most / math.sqrt(2 * n)
        and abs(kurt - 3) < most * math.sqrt(24 / n)
        and ks > 1e-6
        and ((each - 1).abs() < 6 / math.sqrt(2 * values.shape[1])).all().item()
        and rows < 7 / math.sqrt(values.shape[1])
        and columns < 7 / math.sqrt(count)
    )
    put(
        "noise",
        "empty batch",
        right,
        values=n,
        mean=mean,
        std=std,
        kurtosis=kurt,
        ks_p=ks,
        rows=rows,
        columns=columns,
        largest=values.abs().max().item(),
    )


def _once(model, losses, plan) -> None:
    """However a logical batch is cut, its noise is added once."""
    alone = zeros(model)
    per_example_pass(model, lambda: losses(list(range(12))), 12, {}).add_clipped(alone, plan.clip, "abadi")
    gaps = []
    for cuts in ([list(range(12))], [[0, 1, 2], [3], [4, 5, 6, 7, 8, 9, 10, 11]]):
        both = [noised_sum(model, losses, c, plan, rng.generator(5, "noise", A.device)) for c in (cuts, [])]
        gaps.append(((_flat(both[0]) - _flat(both[1]) - _flat(alone)).norm() / _flat(alone).norm()).item())
    put("noise", "once a logical batch", max(gaps) < 1e-4, gaps=gaps)


def _streams(model, losses, plan) -> None:
    """A seed gives its noise again, and noise is not what dropout draws."""
    scale = plan.noise_multiplier * plan.clip
    same = [_flat(noised_sum(model, losses, [], plan, rng.generator(7, "noise", A.device))) for _ in range(2)]
    torch.manual_seed(rng.seed(7, "dropout"))
    other = torch.randn(same[0].shape, device=A.device).double() * scale
    drawn = torch.normal(0.0, 1.0, same[0].shape, generator=rng.generator(7, "noise", A.device), device=A.device)
    again = abs(torch.corrcoef(torch.stack([same[0], other]))[0, 1].item())
    put(
        "noise",
        "streams",
        torch.equal(*same) and again < 6 / math.sqrt(len(other)),
        repeats=torch.equal(*same),
        with_dropout=again,
        first=drawn[:3].tolist(),
    )


def _neighbours() -> None:
    """How far a sum without noise moves when one of its examples leaves, over the clip.

    It may be 1 at most. More is rounding: in another batch the others' gradients may be rounded otherwise.
    """
    if not A.tiny:
        sizes = {"hidden_size": 768, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 3072}
        registry.load("backbones", "roberta").CONFIG.update(sizes)
    quick_models()
    plan = Plan(examples=512, batch=256, steps=4, steps_per_epoch=4, sampling="poisson", sample_rate=0.5, clip=1e-3)
    for method, precision in itertools.product(("bitfit", "lora"), ("fp32", "bf16")):
        made = job(spec(method=method, config=example(method), privacy=privacy(), precision=precision))
        count = 64 if A.tiny else 256
        made = replace(made, train=fixed(count, sst2_lengths(count)))
        made.backbone.model.train()
        with torch.no_grad():
            for p in made.backbone.trained().values():
                p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p)

        def total(indices, made=made):
            cuts = list(made.cut(made.train, indices))
            found = noised_sum(
                made.backbone.model, lambda cut: made.losses(made.batch(made.train, cut)), cuts, plan, None
            )
            return torch.cat([v.flatten() for v in found.values()]).double()

        whole = total(list(range(count)))
        again = (whole - total(list(range(count)))).norm().item() / plan.clip
        moved = [(whole - total([i for i in range(count) if i != out])).norm().item() / plan.clip for out in range(6)]
        put(
            "noise",
            f"neighbours {method} {precision}",
            max(moved) < 1 + 1e-4 if precision == "fp32" else None,
            largest=max(moved),
            all=moved,
            same_again=again,
            clipped=count,
        )


def products() -> None:
    """Whether float32 products are float32, and whether what lets them be coarser is refused."""
    a, b = (torch.randn(512, 512, device=A.device) for _ in range(2))
    exact = a.double() @ b.double()

    def error():
        return ((a @ b - exact).norm() / exact.norm()).item()

    with step("products", "matmul"):
        found = error()
        put("products", "matmul float32", found < 2e-6 and not coarse_products(), error=found)
    with step("products", "allowed"):
        torch.set_float32_matmul_precision("high")
        put("products", "matmul, TF32 allowed", coarse_products(), error=error(), refused=coarse_products())
        torch.set_float32_matmul_precision("highest")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch\n"
        "from peft_dp.privacy.gradients import coarse_products\n"
        "torch.manual_seed(0); a, b = (torch.randn(512, 512, device=sys.argv[2]) for _ in range(2))\n"
        "x = a.double() @ b.double(); print((((a @ b) - x).norm() / x.norm()).item(), int(coarse_products()))"
    )
    words = [sys.executable, "-c", code, str(A.project), A.device]
    probes = {
        name: subprocess.Popen(words, env=os.environ | {name: "1"}, stdout=subprocess.PIPE, text=True)
        for name in ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
    }
    for name, probe in probes.items():
        with step("products", name):
            found, refused = probe.communicate(timeout=60)[0].split()[-2:]
            # Wrong where products are coarse and nothing refuses them.
            put(
                "products",
                f"{name}=1",
                float(found) < 2e-6 or refused == "1",
                error=float(found),
                refused=refused == "1",
            )
    with step("products", "attention"):
        q, k, v = (torch.randn(4, 8, 128, 64, device=A.device) for _ in range(3))
        mask = torch.rand(4, 1, 128, 128, device=A.device) < 0.5
        mask |= torch.eye(128, dtype=torch.bool, device=A.device)
        call = torch.nn.functional.scaled_dot_product_attention
        with sdpa_kernel(SDPBackend.MATH):
            right = call(q.double(), k.double(), v.double(), mask)
        found = ((call(q, k, v, mask) - right).norm() / right.norm()).item()
        put("products", "attention float32", found < 5e-6, error=found)
