"""The units in order of value, and how one runs: in processes of its own, until its time is up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress

import torch
from kit import A, put, say
from machine import environment, rates
from noise import noise, products
from proofs import proofs
from rows import bench, weights
from speed import host, profile_unit, seeds_unit, share, steps, tokens_unit
from training import determinism, memory, train_large, train_tiny
from whatif import whatif

UNITS = {  # name -> (most seconds, calls that run side by side)
    "environment": (30, [environment]),
    "proofs": (110, [lambda s=s: proofs(s, A.side) for s in range(64)]),
    "products": (60, [products]),
    "noise": (60, [noise]),
    "train_tiny": (75, [lambda s=s: train_tiny(s, A.side) for s in range(64)]),
    "rates": (30, [rates]),
    "train_large": (70, [lambda s=s: train_large(s, 3) for s in range(3)]),
    "bench": (115, [lambda: bench(min(A.left - 20, 95))]),
    "steps": (100, [steps]),
    "profile": (45, [profile_unit]),
    "whatif": (60, [whatif]),
    "determinism": (50, [lambda: determinism("default"), lambda: determinism("strict")]),
    "tokens": (40, [tokens_unit]),
    "memory": (30, [memory]),
    "host": (20, [host]),
    "seeds": (40, [seeds_unit]),
    "share1": (30, [lambda: share(0, 1)]),
    "share4": (40, [lambda s=s: share(s, 4) for s in range(4)]),
    "bench_rest": (600, [lambda: bench(A.left - 20)]),
    "weights": (600, [lambda: weights(A.left - 20)]),
}


def child(name: str, at: int) -> None:
    """One call of a unit, in a process of its own."""
    if name == "determinism" and at == 1:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    log = os.open(A.out / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 0
    try:
        if A.device == "cuda":
            try:
                torch.zeros(1, device="cuda")
            except Exception as error:
                print(f"no device in a child: {error}", flush=True)
                os._exit(77)
        UNITS[name][1][at]()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        put(name, f"part {at}", False, error=traceback.format_exc()[-300:])
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def started(name: str, at: int) -> int:
    """Starts a call: by a fork, which has all imports done, or anew."""
    if A.fork:
        if (process := os.fork()) == 0:
            os.setsid()
            child(name, at)
        return process
    words = [sys.executable, str(A.script), *sys.argv[1:], "--child", f"{name}:{at}"]
    for option in ("project", "out", "backbones", "data"):  # as they are from another folder
        words += [f"--{option}", str(getattr(A, option))] if getattr(A, option) else []
    env = os.environ | {"GPU_CHECK_LEFT": str(A.left), "GPU_CHECK_START": str(A.start)}
    return subprocess.Popen(words, start_new_session=True, env=env).pid


def run(name: str) -> None:
    """A unit, until its time or that of all is up."""
    most, calls = UNITS[name]
    calls = calls[: A.side] if name in ("proofs", "train_tiny") else calls
    A.left = A.minutes * 60 - (time.monotonic() - A.start)
    if A.left < 8:
        put(name, "not started", None, left=A.left)
        return
    limit, begin = min(most, A.left - 3), time.monotonic()
    A.unit_start = begin
    # Runs for bits are compared with none that runs beside them.
    groups = [[at] for at in range(len(calls))] if name == "determinism" else [list(range(len(calls)))]
    for group in groups:
        processes = {started(name, at): at for at in group}
        again = []
        while processes:
            done, status = os.waitpid(-1, os.WNOHANG)
            if done in processes:
                at = processes.pop(done)
                code = os.waitstatus_to_exitcode(status)
                if code == 77 and A.fork:
                    again.append(at)
                elif code:
                    put(name, f"part {at}", False, ended=code)
            elif time.monotonic() - begin > limit:
                for process in processes:
                    with suppress(ProcessLookupError):
                        os.killpg(process, signal.SIGKILL)
                put(name, "cut", None, after=time.monotonic() - begin, parts=list(processes.values()))
                for process in processes:
                    os.waitpid(process, 0)
                break
            else:
                time.sleep(0.05)
        if again:
            A.fork = False
            put(name, "fork", None, note="a forked process sees no device: starting processes anew")
            run(name)
            return
    say(f"---- {name}: {time.monotonic() - begin:.1f} s")
