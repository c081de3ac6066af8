"""What a machine offers: its GPUs, and the share of each worker."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from peft_dp import machine


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("3,5", ["3", "5"]),
        (" 0 , 1 ", ["0", "1"]),
        ("GPU-8f1c,MIG-2a", ["GPU-8f1c", "MIG-2a"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
    ],
)
def test_given_gpus(monkeypatch: pytest.MonkeyPatch, given: str, found: list[str]) -> None:
    """The caller's `CUDA_VISIBLE_DEVICES` is read as CUDA reads it: up to the first that names no GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)

    assert found == machine.visible_gpus()
    assert machine.default_workers() == len(found or os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("script", "found"), [("printf '0\\n1\\n'", ["0", "1"]), ("echo no driver; exit 9", []), (None, [])]
)
def test_listed_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, found: list[str]) -> None:
    """Left to itself a process may use all that nvidia-smi lists; none where it fails or is not there."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    assert found == machine.visible_gpus()


def environments(workers: int) -> Iterable[tuple[str | None, int]]:
    """Yield the GPU and the threads of each worker."""
    for index in range(workers):
        found = machine.worker_environment(index, workers)
        assert found["PEFT_DP_WORKERS"] == f"{workers}"
        yield found.get("CUDA_VISIBLE_DEVICES"), int(found["OMP_NUM_THREADS"])


def test_worker_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers share GPUs in turn and cores evenly, one at least, and no more threads than the caller allows."""
    monkeypatch.setattr(machine, "_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [("3", 2), ("5", 2), ("3", 2)] == list(environments(3))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [(None, 1)] * 9 == list(environments(9))
    assert [(None, 6)] == list(environments(1))

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [(None, 2)] == list(environments(1))
