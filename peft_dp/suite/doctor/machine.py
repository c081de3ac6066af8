"""The machine itself: Python, packages, GPU, hub, checkout, the folder of records, Chromium."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from peft_dp import hub
from peft_dp.measuring.environment import environment
from peft_dp.suite.doctor.check import Check


def machine(records: Path) -> Iterator[Check]:
    """Look at all that does not depend on which cells run.

    Args:
        records: The folder that runs would write to.
    """
    yield Check(kind="python", state="ok", says=f"{platform.python_version()} on {platform.platform()}")
    yield from packages()
    yield _gpu()
    yield from _float32_products()
    yield _hub()
    yield _revision()
    yield _records(records)
    yield _chromium()


def packages() -> Iterator[Check]:
    """Compare installed versions with those that pyproject.toml asks for."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in requires("peft-dp") or ()]
    except PackageNotFoundError:
        mend = "python -m pip install -c constraints.txt -e '.[embedded]'"
        yield Check(kind="packages", state="missing", says="peft-dp is not installed, only on the path", mend=mend)
        return
    kept = 0
    for need in asked:
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        found = _version(need.name)
        if found and need.specifier.contains(found, prereleases=True):
            kept += 1
        else:
            says = f"{found or 'not installed'}, but {need} is asked for"
            yield Check(kind="packages", name=need.name, state="missing", says=says, mend=f"pip install '{need}'")
    says = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "opacus"))
    yield Check(kind="packages", state="ok", says=f"{kept} as pyproject.toml asks: {says}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu() -> Check:
    import torch

    found, build = environment(), f"torch {torch.__version__}"
    if found["gpu"]:
        return Check(kind="GPU", state="ok", says=f"{found['gpu']}, CUDA {found['cuda']}, {build}")
    says = f"{build} sees no CUDA device; {found['cores']} cores, {found['threads']} threads"
    mend = "use a machine where nvidia-smi lists a GPU"
    if shutil.which("nvidia-smi"):
        mend = "see whether nvidia-smi works, then pip install --force-reinstall --no-deps torch (a CUDA build)"
    return Check(kind="GPU", state="missing", says=says, mend=mend)


def _float32_products() -> Iterator[Check]:
    if environment()["coarse_products"]:
        says = "products of float32 may be made in a coarser type such as TF32: private runs refuse that"
        yield Check(
            kind="float32", state="note", says=says, mend="unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE NVIDIA_TF32_OVERRIDE"
        )


def _hub() -> Check:
    from huggingface_hub import constants

    if not (fault := hub.fault()):
        return Check(kind="hub", state="ok", says=f"{constants.ENDPOINT} answers")
    mend = "where the hub is reached, make the `hf download` below and bring the folder here"
    return Check(kind="hub", state="note", says=f"{constants.ENDPOINT} {fault}", mend=mend)


def _revision() -> Check:
    found = environment()
    if found["revision"] is None:
        return Check(kind="revision", state="note", says="in no git checkout, so that records name no commit")
    says = f"{str(found['revision'])[:12]}, {'with changes' if found['dirty'] else 'as committed'}"
    return Check(kind="revision", state="ok", says=says)


def _records(folder: Path) -> Check:
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return Check(kind="records", state="ok", says=f"{folder.absolute()} can be written to")
    says, mend = f"{folder.absolute()} cannot be written to", "give another folder with --records DIR"
    return Check(kind="records", state="note", says=says, mend=mend)


def _chromium() -> Check:
    if found := shutil.which("chromium"):
        return Check(kind="chromium", state="ok", says=found)
    says = "not found: the tests of the report page are skipped"
    return Check(kind="chromium", state="note", says=says, mend="apt install chromium")
