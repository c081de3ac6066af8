"""What the machine is, and what it gives: products, copies, launches."""

from __future__ import annotations

import platform
import subprocess

import torch
import transformers
from kit import A, put, seconds, step

from peft_dp.measuring.environment import environment as found


def environment() -> None:
    """Versions, card, driver, and what the project's own doctor knows."""
    env = found()
    if (kept := A.project / "REVISION").is_file():
        env["revision"] = kept.read_text().strip()
    put("environment", "project", None, **{k: v for k, v in env.items() if k != "versions"})
    put(
        "environment",
        "versions",
        None,
        python=platform.python_version(),
        transformers=transformers.__version__,
        **{k: v for k, v in env["versions"].items() if k != "transformers"},
    )
    if A.device == "cuda":
        about = torch.cuda.get_device_properties(0)
        query = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit,ecc.mode.current"
        smi = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
        )
        put(
            "environment",
            "card",
            None,
            name=about.name,
            memory_gb=about.total_memory / 1e9,
            processors=about.multi_processor_count,
            capability=f"{about.major}.{about.minor}",
            cudnn=torch.backends.cudnn.version(),
            smi=smi.stdout.strip(),
        )


def rates() -> None:
    """What the card gives: products of large and of the model's own sizes, copies, launches."""
    size = 512 if A.tiny else 8192
    table = {}
    for name, dtype, high in (
        ("bf16", torch.bfloat16, "highest"),
        ("tf32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):
        with step("rates", name):
            torch.set_float32_matmul_precision(high)
            shapes = [(size, size, size)] + (
                [] if A.tiny else [(m, 1024, n) for m in (512, 2048, 16384) for n in (1024, 4096)]
            )
            for m, k, n in shapes:
                a, b = torch.randn(m, k, device=A.device, dtype=dtype), torch.randn(n, k, device=A.device, dtype=dtype)
                inner = 1 if size == m else 20
                took = (
                    min(seconds(lambda a=a, b=b, i=inner: [torch.nn.functional.linear(a, b) for _ in range(i)], 5))
                    / inner
                )
                table[f"{name} {m}x{k}x{n}"] = 2 * m * k * n / took / 1e12
            torch.set_float32_matmul_precision("highest")
            put(
                "rates", f"matmul {name}", None, tflops={k: round(v, 1) for k, v in table.items() if k.startswith(name)}
            )
    with step("rates", "copy"):
        a = torch.randn(2**20 if A.tiny else 2**30, device=A.device)
        b = torch.empty_like(a)
        put("rates", "copy", None, tb_s=2 * a.nbytes / min(seconds(lambda: b.copy_(a), 5)) / 1e12)
    with step("rates", "launch"):
        a = torch.zeros(8, device=A.device)
        took = min(seconds(lambda: [a.add_(1) for _ in range(2000)], 3)) / 2000
        p = torch.nn.Parameter(torch.zeros(8, 8, device=A.device))
        x = torch.zeros(8, 8, device=A.device, requires_grad=True)

        def chain():
            y = x
            for _ in range(300):
                y = torch.nn.functional.linear(y, p)
            torch.autograd.grad(y.sum(), x)

        put("rates", "launch", None, add_us=1e6 * took, linear_forward_backward_us=1e6 * min(seconds(chain, 3)) / 300)
