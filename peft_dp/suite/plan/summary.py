"""What `peft-dp plan` prints: the cost per table and paper, the cells that fit in a time, those that decide a claim."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from tabulate import tabulate

from peft_dp.suite import papers
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.claim import COUNT
from peft_dp.suite.papers.table import MARKERS
from peft_dp.suite.plan import workload
from peft_dp.suite.plan.clock import OPERATION, UTILISATION, Clock
from peft_dp.suite.plan.devices import CPU, limits
from peft_dp.suite.plan.estimate import Estimate
from peft_dp.suite.plan.schedule import dealt, makespan
from peft_dp.validate import short

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Return the seconds that "90s", "30m" or "8h" are.

    Raises:
        ValueError: Another text.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or not float(found[1]):
        raise ValueError(f"--within must be a time such as 90s, 30m or 8h, not {short(text)}")
    return float(found[1]) * UNITS[found[2]]


def deciding(claim: str) -> list[Cell]:
    """Return the cells whose runs decide a claim, from its address, such as "slash/claims/c1".

    Cited cells are none of them: they stand with their printed numbers.

    Raises:
        ValueError: No such claim, or none of its cells runs.
    """
    known = {each.address: each for each in papers.claims()}
    if claim not in known:
        raise ValueError(f"no claim {short(claim)}; `peft-dp list` shows all")
    needed = known[claim].needed
    if not needed:
        counts = "it is of counts" if known[claim].quantity == COUNT else "its numbers are all cited"
        why = "the paper's own numbers contradict it" if known[claim].differs else counts
        raise ValueError(f"claim {claim} is decided without a run: {why}; `peft-dp show {claim}` has them")
    return list({cell.id: cell for cell in needed}.values())


def within(found: Sequence[Estimate], time: float) -> tuple[list[Estimate], list[Estimate]]:
    """Return the cells that fit in so many seconds, one run after another and the cheapest first, and the others."""
    order = sorted(range(len(found)), key=lambda at: found[at].seconds)
    fits = set()
    for at in order:
        time -= found[at].seconds
        if time < 0:
            break
        fits.add(at)
    return [found[at] for at in sorted(fits)], [each for at, each in enumerate(found) if at not in fits]


def durations(found: Sequence[Estimate]) -> dict[str, float]:
    """Return the seconds of each cell by its pytest id, as pytest-split's `--durations-path` reads them."""
    return {each.cell.node: round(each.seconds, 3) for each in found}


def data(found: Sequence[Estimate], device: str, clocks: Mapping[str, Clock]) -> dict[str, Any]:
    """Return the plan as plain JSON values."""
    return {
        "device": device,
        "clocks": {name: asdict(clock) for name, clock in clocks.items()},
        "cells": [asdict(each) | {"cell": each.cell.id} for each in found],
    }


def render_plan(found: Sequence[Estimate], device: str, clocks: Mapping[str, Clock], *, verbose: bool = False) -> str:
    """Return one line per table, per paper and for all, or one line per cell; and where the times come from."""
    tables = {name: list(of) for name, of in groupby(found, lambda each: each.cell.table.address)}
    groups: list[tuple[str, Sequence[Estimate]]] = []
    for paper, names in groupby(tables, lambda name: name.partition("/")[0]):
        held = {name: tables[name] for name in names}
        for name, of in held.items():
            groups += [(each.cell.id, [each]) for each in of] if verbose else [(name, of)]
        if verbose or len(held) > 1:
            groups.append((f"{paper}, all", [each for of in held.values() for each in of]))
    if len({each.cell.table.paper for each in found}) > 1:
        groups.append(("all", found))
    hours = "hours" if device == CPU else "GPU-hours"
    heads = ["", "cells", "runs", "steps", "tokens", "FLOPs", hours, "peak GB", f"of {device}'s"]
    memory = limits(device).memory
    lines = [_line(name, of, memory) for name, of in groups]
    return tabulate(lines, headers=heads, disable_numparse=True, colalign=["left"] + ["right"] * 8) + (
        f"\n\n{_basis(found, device, clocks)}"
    )


def _line(name: str, found: Sequence[Estimate], memory: float) -> list[str]:
    def total(values: Iterable[float]) -> float:
        return sum(value * each.seeds for value, each in zip(values, found, strict=True))

    peak = max(each.peak_bytes for each in found)
    return [
        name,
        f"{len(found):,}",
        f"{sum(each.seeds for each in found):,}",
        f"{total(each.steps for each in found):,.0f}",
        f"{total(each.tokens for each in found):.3g}",
        f"{total(each.flops for each in found):.3g}",
        f"{sum(each.seconds for each in found) / 3600:,.3g}",
        f"{peak / 1e9:.3g}",
        f"{peak / memory:.0%}",
    ]


def _basis(found: Sequence[Estimate], device: str, clocks: Mapping[str, Clock]) -> str:
    """Say where the times come from."""
    says = []
    for precision in sorted({each.cell.spec.precision for each in found}):
        clock = clocks[precision]
        if clock.records:
            error = (
                "unknown (one cell)" if clock.error is None else f"{clock.error:.0%} at the median of cells left out"
            )
            says.append(f"{precision}: calibrated by {clock.records} records, error {error}.")
        else:
            assumed = f"{UTILISATION:.0%} of {device}'s peak and {OPERATION * 1e6:.0f} us an operation"
            says.append(f"{precision}: not calibrated, taken are {assumed}.")
    return " ".join([*says, "Times are of training, one run after another."])


def render_workers(found: Sequence[Estimate], workers: int) -> str:
    """Say how long so many devices take side by side, where cells go out in the order of `pytest -n`."""
    order = dealt(sorted(found, key=lambda each: -workload.flops(each.cell.spec) * each.seeds), workers)
    times = [each.seconds for each in order]
    whole, longest = makespan(times, workers), max(found, key=lambda each: each.seconds)
    return (
        f"On {workers} at once: {whole / 3600:.3g} hours, {sum(times) / (workers * whole):.0%} busy; the longest cell, "
        f"{longest.cell.id}, takes {longest.seconds / 3600:.3g}."
    )


def render_selection(fits: Sequence[Estimate], others: Sequence[Estimate], time: str, seeds: int | None) -> str:
    """Say what fits in a time, as a command with so many seeds, and what does not."""
    spent = sum(each.seconds for each in fits) / 3600
    lines = [f"{len(fits)} of {len(fits) + len(others)} cells fit in {time}, cheapest first: {spent:.3g} hours."]
    if fits:
        marks = " or ".join(sorted({MARKERS[each.cell.table.budget] for each in fits}))
        more = ["--peft-seeds", str(seeds)] if seeds else []
        lines.append(shlex.join(["pytest", "-m", marks, *more, *(each.cell.node for each in fits)]))
    for name, of in groupby(others, lambda each: each.cell.table.address):
        left = list(of)
        hours = sum(each.seconds for each in left) / 3600
        rest = ", ".join(str(each.cell) for each in left[:3]) + (", ..." if len(left) > 3 else "")
        lines.append(f"does not fit: {name}, {len(left)} cells, {hours:.3g} hours ({rest})")
    return "\n".join(lines)
