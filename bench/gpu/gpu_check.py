#!/usr/bin/env python3
"""What a CUDA device says of peft-dp: proofs first, then speed, in one command of a few minutes.

gpu_check.sh starts this script and says how. Units run in order of value, each in processes of its own, so that a crash
or an end of time loses only what was not yet written. Every finding is a line of OUT/results.jsonl as soon as it is
known, and a shorter one of OUT/summary.txt; what processes print goes to OUT/log.txt. Nothing outside OUT and the
system's temporary folder is written.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from kit import A, put, say
from units import UNITS, child, run


def main() -> None:
    """Run the units that were asked for, each until its time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path.cwd(), help="a checkout of peft-dp")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu_check_out"))
    parser.add_argument("--minutes", type=float, default=8.6, help="after which nothing runs any more")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and few repeats, to try the script")
    parser.add_argument("--only", help="names of units, with commas")
    parser.add_argument("--skip", default="weights", help="names of units, with commas")
    parser.add_argument("--side", type=int, default=6, help="processes side by side in proofs and tiny training")
    parser.add_argument("--backbones", type=Path, help="folder that holds all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, help="folder of GLUE")
    parser.add_argument("--no-fork", dest="fork", action="store_false")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.parse_args(namespace=A)
    A.script, A.project, A.out = Path(__file__).resolve(), A.project.resolve(), A.out.resolve()
    for name in ("backbones", "data"):
        if getattr(A, name):
            setattr(A, name, getattr(A, name).resolve())
    A.out.mkdir(parents=True, exist_ok=True)
    A.terminal = os.dup(1)
    os.chdir(A.project)
    if A.child:
        A.left, A.start = float(os.environ["GPU_CHECK_LEFT"]), float(os.environ["GPU_CHECK_START"])
        A.unit_start = time.monotonic()
        name, at = A.child.split(":")
        child(name, int(at))
    names = A.only.split(",") if A.only else [name for name in UNITS if name not in A.skip.split(",")]
    put(
        "start",
        "imports",
        None,
        seconds=time.monotonic() - A.start,
        torch=torch.__version__,
        out=str(A.out),
        units=names,
    )
    for name in names:
        run(name)
    lines = [json.loads(line) for line in (A.out / "results.jsonl").read_text().splitlines()]
    wrong = [f"{line['unit']}/{line['step']}" for line in lines if line["ok"] is False]
    right = sum(line["ok"] is True for line in lines)
    named = f": {', '.join(wrong[:40])}" if wrong else ""
    say(f"==== {right} right, {len(wrong)} wrong{named}; {time.monotonic() - A.start:.0f} s")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
