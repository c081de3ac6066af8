"""On what a record was made."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

from peft_dp import machine

PINS = ("torch", "transformers", "tokenizers", "opacus", "datasets", "numpy", "scipy", "scikit-learn", "safetensors")
ALSO = ("peft", "accelerate")
"""Packages that only runs through a library use, which have its hash in their key."""
LIBRARIES = ("torch", "transformers", "opacus", "peft", "accelerate")
"""Libraries whose source a run may go through."""


@cache
def environment() -> dict[str, object]:
    """Machine, threads, workers, versions and git revision, as plain JSON values."""
    import torch

    from peft_dp.privacy.gradients import coarse_products

    gpu = torch.cuda.is_available()
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "side_by_side": machine.worker_count(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "coarse_products": coarse_products(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "versions": versions() | versions(ALSO),
        "sources": library_sources(),
        **_git(Path(__file__).parents[1]),
    }


@cache
def library_sources() -> dict[str, str]:
    """Library -> hash of its Python files as they are installed, for an edited copy keeps its version.

    A library that was installed from a commit has that commit in front (PEP 610).
    """
    found = {}
    for name in LIBRARIES:
        spec = find_spec(name)
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            continue
        root, digest = Path(next(iter(folders))), hashlib.sha256()
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
        origin = json.loads(distribution(name).read_text("direct_url.json") or "{}")
        commit = origin.get("vcs_info", {}).get("commit_id", "")
        found[name] = f"{commit[:12]} {digest.hexdigest()[:16]}".strip()
    return found


@cache
def versions(packages: tuple[str, ...] = ()) -> dict[str, str | None]:
    """Package -> installed version; by default of all whose release may change a result of our own code."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {package: installed(package) for package in packages or PINS}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(folder: Path) -> dict[str, object]:
    """Revision and whether the tree has changes; None where the package is not in a checkout."""

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", folder, *words], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    changes = git("status", "--porcelain", "--", ".")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}
