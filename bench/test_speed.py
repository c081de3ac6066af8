"""What privacy costs: a private step against an ordinary one, and other engines on the same work, in one run."""

from __future__ import annotations

import json
import statistics
import time
import warnings
from dataclasses import replace

import pytest
from tabulate import tabulate

from peft_dp import Privacy, cells

BATCH, REPEATS = 320, 5
NAMES = {"private": "private", "Opacus hooks": "hooks", "Opacus ghost": "ghost"}


def methods():
    """One cell of each method and config on MiniLM; two-phase training is in its first phase full fine-tuning."""
    found = {}
    for cell in cells("embedded/smoke"):
        if cell.task == "sentiment" and cell.spec.method != "two_phase":
            found.setdefault((cell.spec.method, json.dumps(cell.spec.config)), cell)
    return [pytest.param(cell.spec, id=cell.row.id) for cell in found.values()]


@pytest.fixture(scope="module")
def lines(at_end):
    """Collects lines, and has them printed as a table at the end."""
    lines = []
    yield lines
    headers = ["method", "trained", "s/step", "peak MB"]
    headers += [f"{name}\n{what}" for name in NAMES.values() for what in ("time", "(range)", "memory")]
    at_end(tabulate(lines, headers, stralign="right", disable_numparse=True))
    at_end(
        f"A step of {BATCH} sentences on MiniLM; s/step and peak MB (weights and step) are those of the ordinary step, "
        "the others\nratios to it, by this project and by Opacus's hooks and ghost clipping on the same physical "
        f"batches: median and range of\n{REPEATS} interleaved repeats. - where Opacus cannot run the method."
    )


@pytest.mark.speed
@pytest.mark.parametrize("spec", methods())
def test_privacy(spec, lines, request):
    """Time and peak memory of a step, private over ordinary, interleaved."""
    import torch

    from peft_dp import rng
    from peft_dp.job import build, gather
    from peft_dp.measuring import cost, peers
    from peft_dp.places import Places
    from peft_dp.training.loop import Phase, Tally, noised_mean

    options = request.config.option
    places = Places(backbones=options.peft_backbones, device=options.peft_device)

    def job(private):
        privacy = Privacy(epsilon=8.0, delta=1e-4, accountant="rdp") if private else None
        made = replace(spec, batch=BATCH, train=2 * BATCH, privacy=privacy)
        return build(made, gather(made, places))

    def ours(private):
        made = job(private)
        noise, phase = rng.generator(0, "noise", made.device), Phase(made, 0)
        return lambda indices: phase.step(noised_mean(made, indices, noise, Tally(made.device)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus's own
        steps, seconds, peaks = {"not private": ours(False), "private": ours(True)}, {}, {}
        for name, peer in (("Opacus hooks", peers.hooks), ("Opacus ghost", peers.ghost)):
            made = job(True)
            made.backbone.model.train()
            try:
                step = peer(made)
                step(range(4))
            except Exception as error:
                print(f"{name}: {str(error)[:100]}")
            else:
                steps[name] = step
        indices = list(range(BATCH))
        for name, step in steps.items():
            peaks[name] = cost.peak_bytes(lambda step=step: step(indices), made.device) + cost.weight_bytes(made)
        for _ in range(REPEATS):
            for name, step in steps.items():
                start = time.perf_counter()
                step(indices)
                if made.device == "cuda":
                    torch.cuda.synchronize()
                seconds.setdefault(name, []).append(time.perf_counter() - start)
    ordinary = f"{statistics.median(seconds['not private']):.2f}", f"{peaks['not private'] / 1e6:.0f}"
    line = [request.node.callspec.id, f"{made.backbone.count():,}", *ordinary]
    for name in NAMES:
        ratios = [a / b for a, b in zip(seconds.get(name, []), seconds["not private"], strict=False)]
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else "-"
        memory = peaks[name] / peaks["not private"] if ratios else 0
        line += [f"{statistics.median(ratios):.3f}", spread, f"{memory:.3f}"] if ratios else ["-"] * 3
    lines.append(line)
