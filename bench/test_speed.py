"""What privacy costs, and what other engines need for the same work: ratios of interleaved steps, in one run."""

from __future__ import annotations

import json
import statistics
import time
import warnings
from dataclasses import replace

import pytest
from tabulate import tabulate

from peft_dp import Places, Privacy, cells

BATCH, REPEATS = 320, 5
LOGICAL, PEERS_REPEATS = 2048, 3
PRIVACY = Privacy(epsilon=8.0, delta=1e-4, accountant="rdp")
OPACUS = {"hooks": "Opacus hooks", "ghost": "Opacus ghost"}


def methods():
    """One cell of each method and config on MiniLM; two-phase training is in its first phase full fine-tuning."""
    found = {}
    for cell in cells("embedded/smoke"):
        if cell.task == "sentiment" and cell.spec.method != "two_phase":
            found.setdefault((cell.spec.method, json.dumps(cell.spec.config)), cell)
    return [pytest.param(cell.spec, id=cell.row.id) for cell in found.values()]


def table(at_end, headers, note):
    """Collects lines, and has them printed as a table with a note at the end."""
    lines = []
    yield lines
    if lines:
        at_end(tabulate(lines, headers, stralign="right", disable_numparse=True))
        at_end(note)


@pytest.fixture(scope="module")
def privacy_table(at_end):
    """The table of `test_privacy`."""
    headers = ["method", "trained", "s/step", "peak MB"]
    headers += [f"{name}\n{what}" for name in ("private", *OPACUS) for what in ("time", "(range)", "memory")]
    note = (
        f"A step of {BATCH} sentences on MiniLM; s/step and peak MB (weights and step) are those of the ordinary step, "
        "the others\nratios to it, by this project and by Opacus's hooks and ghost clipping on the same physical "
        f"batches: median and range of\n{REPEATS} interleaved repeats. - where Opacus cannot run the method."
    )
    yield from table(at_end, headers, note)


@pytest.fixture(scope="module")
def peers_table(at_end):
    """The table of `test_peers`."""
    headers = [
        "method",
        "s/step",
        "tokens\nprocessed",
        *(f"{name}\n{what}" for name in OPACUS for what in ("", "(range)")),
    ]
    note = (
        f"A private step of {LOGICAL} sentences on MiniLM; s/step is this project's, tokens processed are over those\n"
        "of the sentences. The others are Opacus's times over it, in physical batches of 32 in the order drawn,\n"
        f"padded to the longest: median and range of {PEERS_REPEATS} interleaved repeats. - where Opacus cannot run it."
    )
    yield from table(at_end, headers, note)


@pytest.fixture
def job(request):
    """Builds a job of a spec, by the options of the session; arguments replace the spec's fields."""
    from peft_dp.job import build, gather

    options = request.config.option
    places = Places(data=options.peft_data, backbones=options.peft_backbones, device=options.peft_device)

    def make(spec, **fields):
        made = replace(spec, **fields)
        return build(made, gather(made, places))

    return make


def ours(job):
    """A step of this project's loop."""
    from peft_dp import rng
    from peft_dp.training.loop import Phase, Tally, noised_mean

    noise, phase = rng.generator(0, "noise", job.device), Phase(job, 0)
    return lambda indices: phase.step(noised_mean(job, indices, noise, Tally(job.device)))


def opacus(make, cut):
    """Name -> a step by Opacus, where it can run the method."""
    from peft_dp.measuring import peers

    found = {}
    for name, title in OPACUS.items():
        made = make()
        made.backbone.model.train()
        try:
            step = getattr(peers, name)(made, cut or made.train.cut)
            step(range(4))
        except Exception as error:  # of many kinds; the table says that there was one
            print(f"{title}: {str(error)[:100]}")
        else:
            found[name] = step
    return found


def interleaved(steps, size, repeats, device):
    """Name -> seconds of each repeat of a step over the first `size` examples."""
    import torch

    seconds = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step(range(size))
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds, name, base):
    """Median and range of the ratios of two steps, repeat by repeat; dashes for a step that was not run."""
    if name not in seconds:
        return ["-", "-"]
    found = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    return [f"{statistics.median(found):.3f}", f"{min(found):.2f}-{max(found):.2f}"]


@pytest.mark.speed
@pytest.mark.parametrize("spec", methods())
def test_privacy(spec, job, privacy_table, request):
    """Time and peak memory of a private step over those of an ordinary one."""
    from peft_dp.measuring import cost

    def make(private=True):
        return job(spec, batch=BATCH, train=2 * BATCH, privacy=PRIVACY if private else None)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus's own
        plain = make(private=False)
        steps = {"ordinary": ours(plain), "private": ours(make()), **opacus(make, None)}
        weights = cost.weight_bytes(plain)
        peaks = {n: cost.peak_bytes(lambda s=s: s(range(BATCH)), plain.device) + weights for n, s in steps.items()}
        seconds = interleaved(steps, BATCH, REPEATS, plain.device)
    ordinary = f"{statistics.median(seconds['ordinary']):.2f}", f"{peaks['ordinary'] / 1e6:.0f}"
    line = [request.node.callspec.id, f"{plain.backbone.count():,}", *ordinary]
    for name in ("private", *OPACUS):
        memory = f"{peaks[name] / peaks['ordinary']:.3f}" if name in peaks else "-"
        line += [*ratios(seconds, name, "ordinary"), memory]
    privacy_table.append(line)


@pytest.mark.speed
@pytest.mark.parametrize("spec", methods())
def test_peers(spec, job, peers_table, request):
    """Time of a large private step by Opacus as its users run it, over this project's; on SST-2 with --peft-data."""
    from peft_dp.measuring import peers

    task = "sst2" if request.config.option.peft_data else spec.task

    def make():
        return job(spec, task=task, batch=LOGICAL, train=None if task != "sst2" else 2 * LOGICAL, privacy=PRIVACY)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus's own
        mine = make()
        steps = {"ours": ours(mine), **opacus(make, peers.as_drawn)}
        interleaved(steps, 64, 1, mine.device)
        seconds = interleaved(steps, LOGICAL, PEERS_REPEATS, mine.device)
    lengths = mine.train.lengths
    processed = sum(len(cut) * max(lengths[i] for i in cut) for cut in mine.train.cut(range(LOGICAL)))
    line = [request.node.callspec.id, f"{statistics.median(seconds['ours']):.2f}"]
    line.append(f"{processed / sum(lengths[:LOGICAL]):.3f}")
    for name in OPACUS:
        line += ratios(seconds, name, "ours")
    peers_table.append(line)
