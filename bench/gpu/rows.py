"""The papers' rows of time and memory, and the embedded encoder's cells, as pytest runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from kit import A, put, step

BENCH = [  # node ids, in order of value
    "bench/test_slash.py::test_table5[base-slash-d5000-qnli]",
    "bench/test_slash.py::test_table5[base-lora-r1-qnli]",
    "bench/test_slash.py::test_table5[base-bitfit-qnli]",
    "bench/test_slash.py::test_table5[base-adapter-m1-qnli]",
    "bench/test_dp_bitfit.py::test_efficiency[bitfit-dp-sst2]",
    "bench/test_dp_bitfit.py::test_efficiency[full-dp-sst2]",
    "bench/test_dp_bitfit.py::test_efficiency[bitfit-sst2]",
    "bench/test_dp_bitfit.py::test_efficiency[full-sst2]",
    "bench/test_slash.py::test_table5[base-finetuning-qnli]",
    "bench/test_slash.py::test_table5[base-warp-20-qnli]",
    "bench/test_khan.py::test_figure5[bitfit-sst2]",
    "bench/test_khan.py::test_figure5[bitfit-dp-sst2]",
    "bench/test_khan.py::test_figure5[adapter-sst2]",
    "bench/test_khan.py::test_figure5[adapter-dp-sst2]",
    "bench/test_khan.py::test_figure5[gradual-sst2]",
    "bench/test_khan.py::test_figure5[gradual-dp-sst2]",
    "bench/test_slash.py::test_table5[large-slash-d10000-qnli]",
    "bench/test_slash.py::test_table5[large-lora-r1-qnli]",
    "bench/test_slash.py::test_table5[large-bitfit-qnli]",
    "bench/test_slash.py::test_table5[large-adapter-m1-qnli]",
    "bench/test_slash.py::test_table5[large-warp-20-qnli]",
    "bench/test_slash.py::test_table5[large-finetuning-qnli]",
    "bench/test_khan.py::test_figure5[diff-pruning-sst2]",
    "bench/test_khan.py::test_figure5[diff-pruning-dp-sst2]",
    "bench/test_dp_bitfit.py::test_efficiency",
    "bench/test_khan.py::test_figure5",
]


ORDER = """
NAMES = {names!r}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((at for at, name in enumerate(NAMES) if item.nodeid.startswith(name)), 99))
"""


def pytest_run(unit: str, words: list[str], limit: float) -> None:
    """A pytest of the project's bench; its records are kept, and each is told of."""
    folder = Path(tempfile.gettempdir()) / f"gpu-check-{unit}-{os.getppid()}"
    listed = folder.with_suffix(".told")
    order = Path(tempfile.mkdtemp())
    (order / "gpu_check_order.py").write_text(ORDER.format(names=BENCH))
    plugins = ["-p", "pytest_benchmark.plugin", "-p", "gpu_check_order"]
    if "-n" in words:
        plugins += ["-p", "xdist.plugin"]
    command = [sys.executable, "-m", "pytest", *plugins, *words, "--peft-records", str(folder), "--tb=short", "-q"]
    command += ["--peft-device", A.device]
    # torch 2.11 says so at the first profile of a CPU's memory, and the project makes warnings errors.
    command += ["-W", "ignore::UserWarning"] * (A.device == "cpu")
    env = os.environ | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": f"{A.project}:{order}:{os.environ.get('PYTHONPATH', '')}",
    }
    started = time.monotonic()
    with (A.out / f"{unit}.txt").open("ab") as file:
        process = subprocess.Popen(
            command, cwd=A.project, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        told = set(listed.read_text().split()) if listed.is_file() else set()
        while True:
            ended = process.poll() is not None
            for path in sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime) if folder.is_dir() else ():
                if path.name not in told:
                    with step(unit, path.name):
                        held = json.loads(path.read_text())
                        told.add(path.name)
                        put(
                            unit,
                            f"{held['spec']['backbone']} {path.name[:-22]}",
                            None,
                            score=held["values"].get("score"),
                            **held["cost"],
                            clipped=[e.get("clipped") for e in held["trail"]][-1:],
                        )
            if ended or time.monotonic() - started > limit:
                break
            time.sleep(0.5)
        if not ended:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    last = (A.out / f"{unit}.txt").read_text(errors="replace").strip().splitlines()[-1:]
    listed.write_text("\n".join(told))
    put(unit, "pytest", None, records=len(told), code=process.returncode, seconds=time.monotonic() - started, last=last)
    with tarfile.open(A.out / f"{unit}.records.tgz", "w:gz") as tar:
        for path in folder.glob("*.json") if folder.is_dir() else ():
            tar.add(path, arcname=f"records-{unit}/{path.name}")


def bench(limit: float) -> None:
    """The papers' rows of time and memory, whose weights are random."""
    words = [*BENCH[:1], "-m", "gpu"] if A.tiny else [*BENCH, "-m", "gpu and not claims"]
    pytest_run("bench", words, limit)


def weights(limit: float) -> None:
    """The embedded encoder's cells, if its weights are here: several side by side, so that seconds say little."""
    if not (A.backbones and (A.backbones / "all-MiniLM-L6-v2" / "model.safetensors").is_file()):
        put("weights", "all-MiniLM-L6-v2", None, skipped="no folder with it: --backbones DIR")
        return
    workers = ["-n", str(max(1, min(8, len(os.sched_getaffinity(0)) - 1)))] if A.device == "cuda" else []
    words = ["bench/test_embedded.py", "--peft-backbones", str(A.backbones), *workers]
    few = ["-k", "head-sentiment"] if A.tiny else []
    pytest_run("weights", [*words, "-m", "smoke and not claims", *few], limit * (0.55 if A.data else 1.0))
    if A.data and not A.tiny:
        pytest_run("weights", [*words, "-m", "small and not claims", "--peft-data", str(A.data)], limit * 0.4)
