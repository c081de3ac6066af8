"""What privacy costs, and what other engines need for the same work: ratios of interleaved steps, in one run."""

from __future__ import annotations

import json
import statistics
import time
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from tabulate import tabulate

from peft_dp import Places, Privacy, cells

BATCH, REPEATS = 320, 5
LOGICAL, PEERS_REPEATS, EPOCH = 2048, 3, 512
SEEDS = 5
PRECISIONS = ("fp32", "bf16")
PRIVACY = Privacy(epsilon=8.0, delta=1e-4, accountant="rdp")
OPACUS = {"opacus_hooks": "Opacus hooks", "opacus_ghost": "Opacus ghost"}


def methods():
    """One cell of each method and config on MiniLM; two-phase training is in its first phase full fine-tuning."""
    found: dict[tuple[str, str], Any] = {}
    for cell in cells("embedded/smoke"):
        if cell.task == "sentiment" and cell.spec.method != "two_phase":
            found.setdefault((cell.spec.method, json.dumps(cell.spec.config)), cell)
    return [pytest.param(cell.spec, id=cell.row.id) for cell in found.values()]


def table(at_end, headers, note):
    """Collects lines, and has them printed as a table with a note at the end."""
    lines: list[list[object]] = []
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
        "the others\nratios to it, by this project and by Opacus's hooks and ghost clipping, which have a row for "
        f"each sentence: median and range of\n{REPEATS} interleaved repeats. - where Opacus cannot run the method."
    )
    yield from table(at_end, headers, note)


@pytest.fixture(scope="module")
def peers_table(at_end):
    """The table of `test_peers`."""
    headers = ["method", "sentences", "tokens\nprocessed", "s fp32", "s bf16", "of ceiling\nfp32  bf16"]
    headers += [f"{name}\n{what}" for name in OPACUS.values() for what in ("fp32", "bf16", "fp32 over\nour bf16")]
    note = (
        "A private step on MiniLM, [CLS] read out; seconds are this project's, tokens processed are over those of the\n"
        "sentences, of ceiling is the share of the speed of a large matrix product in the same precision. The others\n"
        "are Opacus's times over ours, in physical batches of 32 in the order drawn, padded to the longest:\n"
        f"medians of {PEERS_REPEATS} interleaved repeats (range). - where Opacus cannot run it."
    )
    yield from table(at_end, headers, note)


@pytest.fixture(scope="module")
def trainer_table(at_end):
    """The table of `test_trainer`."""
    headers = ["method", "s fp32", "fp32", "s bf16", "bf16"]
    note = (
        f"An epoch of {EPOCH} sentences in batches of 32 without privacy: ours, and over it the time on the\n"
        "same batches by transformers' Trainer with dynamic padding, - where it cannot run the method:\n"
        f"medians of {PEERS_REPEATS} interleaved repeats (range)."
    )
    yield from table(at_end, headers, note)


@pytest.fixture(scope="module")
def reuse_table(at_end):
    """The table of `test_reuse`."""
    headers = ["method", "epochs", "s", "without reuse", "Trainer"]
    note = (
        f"A training on {EPOCH} sentences in batches of 32 without privacy, frozen layers computed once; over it\n"
        f"the times without that, and of Trainer: medians of {PEERS_REPEATS} interleaved repeats (range)."
    )
    yield from table(at_end, headers, note)


@pytest.fixture(scope="module")
def seeds_table(at_end):
    """The table of `test_seeds`."""
    headers = ["method", "batch", f"s {SEEDS} alone", "together"]
    note = (
        f"An epoch of {EPOCH // 2} sentences for {SEEDS} seeds one by one, and all in the same batches over it:\n"
        f"medians of {PEERS_REPEATS} interleaved repeats (range), without the time to load the model."
    )
    yield from table(at_end, headers, note)


@pytest.fixture(scope="module")
def growth_table(at_end):
    """The table of `test_growth`."""
    headers = ["tokens", "examples", "layers", "s BitFit", "MB"]
    headers += [f"{name}\n{what}" for name in ("private\nBitFit", "full", "private\nfull") for what in ("time", "MB")]
    note = (
        "A step on MiniLM's first layers: examples of so many tokens. Times are over those of BitFit without privacy,\n"
        f"medians of {PEERS_REPEATS} interleaved repeats; MB is the most that a step allocates beyond the weights."
    )
    yield from table(at_end, headers, note)


@pytest.fixture
def job(request):
    """Builds a job of a spec, by the options of the session; arguments replace the spec's fields."""
    from peft_dp.training.job import build, find_sources

    options = request.config.option
    places = Places(data=options.peft_data, backbones=options.peft_backbones, device=options.peft_device)

    def make(spec, **fields):
        made = replace(spec, **fields)
        return build(made, find_sources(made, places))

    return make


def ours(job):
    """A step of this project's loop."""
    from peft_dp import rng
    from peft_dp.training.gradient import noised_mean
    from peft_dp.training.phase import Phase
    from peft_dp.training.tally import Tally

    streams, phase = rng.of_steps(0, job.device), Phase(job, 0)
    return lambda indices: phase.step(noised_mean(job, indices, streams, Tally(job.device)))


def through(name, made):
    """A step by a library, or None where it cannot run the method; nothing of what it does is taken down."""
    from peft_dp import implementations
    from peft_dp.implementations._base import Watch, one_step
    from peft_dp.validate import Unsupported

    class Unwatched(Watch):
        def passed(self, *_: Any) -> None:
            pass

        given = stepped = epoch = passed  # type: ignore[assignment]

    library: Any = implementations.load(name)
    made.backbone.model.train()

    def step(indices):
        one = one_step(made, indices)
        library.fit(one, Unwatched(one))

    try:
        library.check(made.spec, made.method)
        step(range(4))
    except Unsupported as error:  # the table says that there was one
        print(f"{name}: {error}")
        return None
    return step


def opacus(make):
    """Name -> a step by Opacus, where it can run the method."""
    steps = {name: through(name, make()) for name in OPACUS}
    return {name: step for name, step in steps.items() if step}


def interleaved(steps, size, repeats, device):
    """Name -> seconds of each repeat of a step over the first `size` examples."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in steps}
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
        steps = {"ordinary": ours(plain), "private": ours(make()), **opacus(make)}
        weights = cost.weight_bytes(plain)
        peaks = {n: cost.peak_bytes(partial(s, range(BATCH)), plain.device) + weights for n, s in steps.items()}
        seconds = interleaved(steps, BATCH, REPEATS, plain.device)
    ordinary = f"{statistics.median(seconds['ordinary']):.2f}", f"{peaks['ordinary'] / 1e6:.0f}"
    line = [request.node.callspec.id, f"{plain.backbone.count():,}", *ordinary]
    for name in ("private", *OPACUS):
        memory = f"{peaks[name] / peaks['ordinary']:.3f}" if name in peaks else "-"
        line += [*ratios(seconds, name, "ordinary"), memory]
    privacy_table.append(line)


def ceiling(precision):
    """Floating-point operations a second of a large matrix product, the best of some."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2048, 1536, dtype=dtype), torch.randn(1536, 1536, dtype=dtype)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * a.numel() * len(b) / min(seconds)


def operations(step, size):
    """Floating-point operations of a step over `size` examples, by torch's own count of its matrix products."""
    import os

    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it greets on stderr
    # Without `acc_events` torch 2.10 and 2.11 warn that a profiler forgets its events at its next cycle; it has one.
    with profile(activities=[ProfilerActivity.CPU], with_flops=True, acc_events=True) as found:
        step(range(size))
    return sum(event.flops for event in found.key_averages())


def on_data(spec, request, **fields):
    """The spec on SST-2 if there is real data, with a read-out that makes no use of all tokens."""
    task = "sst2" if request.config.option.peft_data else spec.task
    return replace(spec, task=task, train=2 * LOGICAL, dev=10, readout="cls", **fields)


@pytest.mark.speed
@pytest.mark.parametrize("spec", methods())
def test_peers(spec, job, peers_table, request):
    """Time of a large private step by Opacus as its users run it, over this project's; on SST-2 with --peft-data."""
    size = 256 if spec.method in ("full", "diff_pruning") else LOGICAL  # minutes a step in Opacus
    steps = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus's own
        for precision in PRECISIONS:
            made = on_data(spec, request, batch=size, precision=precision, privacy=PRIVACY)
            mine = job(made)
            steps["ours", precision] = ours(mine)
            steps |= {(name, precision): step for name, step in opacus(lambda m=made: job(m)).items()}
        interleaved(steps, 64, 1, mine.device)
        seconds = interleaved(steps, size, PEERS_REPEATS, mine.device)
    processed = sum(mine.batch(mine.train, cut).ids.numel() for cut in mine.cut(mine.train, range(size)))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    work = operations(steps["ours", "fp32"], size)
    shares = [work / middle["ours", precision] / ceiling(precision) for precision in PRECISIONS]
    line = [request.node.callspec.id, f"{size:,}", f"{processed / mine.train.count(range(size)):.3f}"]
    line += [f"{middle['ours', precision]:.2f}" for precision in PRECISIONS]
    line.append("  ".join(f"{share:.0%}" for share in shares))
    for name in OPACUS:
        for theirs, own in (("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16")):
            line.append(" ".join(ratios(seconds, (name, theirs), ("ours", own))))
    peers_table.append(line)


def epochs(runs, job):
    """Name -> seconds of all epochs in each repeat of a run, interleaved; a run that a library cannot make is left out.

    Args:
        runs: Name -> spec.
        job: Builds a job of a spec.
    """
    from peft_dp import implementations
    from peft_dp.validate import Unsupported

    seconds: dict[str, list[float]] = {}
    for _ in range(PEERS_REPEATS):
        for name, spec in runs.items():
            made, implementation = job(spec), implementations.load(spec.implementation)
            try:
                implementation.check(spec, made.method)
            except Unsupported as error:
                print(f"{name}: {error}")
                continue
            (trained,) = implementation.train([made])
            seconds.setdefault(name, []).append(sum(epoch.seconds for epoch in trained.epochs))
    return seconds


@pytest.mark.speed
@pytest.mark.parametrize("spec", methods())
def test_trainer(spec, job, trainer_table, request):
    """Time of an epoch of transformers' Trainer over this project's, without privacy and on the same batches."""
    line = [request.node.callspec.id]
    for precision in PRECISIONS:
        made = on_data(spec, request, batch=32, precision=precision, privacy=None, epochs=1, head="stock")
        made = replace(made, train=EPOCH)
        seconds = epochs({"ours": made, "trainer": replace(made, implementation="trainer")}, job)
        line += [f"{statistics.median(seconds['ours']):.2f}", " ".join(ratios(seconds, "trainer", "ours"))]
    trainer_table.append(line)


REUSED = {
    "head": ("head", {}, 10),
    "SPAFIT, 2 of 6 frozen": ("spafit", {"frozen": 1, "bias": 3, "variant": "I", "rank": 8, "alpha": 16.0}, 4),
    "SPAFIT, 4 of 6 frozen": ("spafit", {"frozen": 3, "bias": 4, "variant": "I", "rank": 8, "alpha": 16.0}, 4),
    "gradual": ("gradual", {"stages": [[1, 1], [2, 3]]}, 4),
}


@pytest.mark.speed
@pytest.mark.parametrize("name", REUSED)
def test_reuse(name, job, reuse_table, request):
    """Time of a training whose frozen layers are computed in each epoch, over that of one that computes them once."""
    method, config, number = REUSED[name]
    cell = next(cell for cell in cells("embedded/smoke") if cell.row.id == "head" and cell.task == "sentiment")
    made = on_data(cell.spec, request, method=method, config=config, epochs=number, batch=32, head="stock")
    made = replace(made, train=EPOCH)
    runs = {"ours": made, "without": replace(made, reuse=False), "trainer": replace(made, implementation="trainer")}
    seconds = epochs(runs, job)
    line = [name, number, f"{statistics.median(seconds['ours']):.2f}"]
    reuse_table.append(line + [" ".join(ratios(seconds, other, "ours")) for other in ("without", "trainer")])


GROWTH = [(64, 64, 6), (128, 64, 6), (256, 64, 6), (512, 64, 6), (64, 16, 6), (64, 256, 6), (64, 64, 2), (64, 64, 4)]


@pytest.mark.speed
@pytest.mark.parametrize(("tokens", "examples", "layers"), GROWTH)
def test_growth(tokens, examples, layers, job, growth_table, request):
    """Time and memory of BitFit and of full fine-tuning, private and not, by length, batch and depth."""
    import torch

    from peft_dp.measuring import cost
    from peft_dp.models.batch import Encoded

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (examples, tokens), generator=draw).tolist()
    data = Encoded(ids, [[0] * tokens] * examples, torch.arange(examples) % 2, 0)
    steps = {}
    for cell in cells("embedded/smoke"):
        if cell.row.id in ("bitfit", "full") and cell.task == "sentiment":
            for privacy in (None, PRIVACY):
                made = job(cell.spec, readout="cls", train=2 * examples, batch=examples, privacy=privacy)
                del made.backbone.encoder.encoder.layer[layers:]
                made.backbone.layers = made.backbone.layers[:layers]
                steps["private " * bool(privacy) + cell.row.id] = ours(replace(made, train=data))
                device = made.device
    order = ("bitfit", "private bitfit", "full", "private full")
    peaks = {name: cost.peak_bytes(partial(steps[name], range(examples)), device) / 1e6 for name in order}
    seconds = interleaved(steps, examples, PEERS_REPEATS, device)
    line = [tokens, examples, layers, f"{statistics.median(seconds['bitfit']):.2f}", f"{peaks['bitfit']:.0f}"]
    for name in order[1:]:
        line += [ratios(seconds, name, "bitfit")[0], f"{peaks[name]:.0f}"]
    growth_table.append(line)


@pytest.mark.speed
@pytest.mark.parametrize("row", ["bitfit", "lora", "houlsby", "slash"])
@pytest.mark.parametrize("batch", [8, 32])
def test_seeds(row, batch, job, seeds_table, request):
    """Time of an epoch of five seeds together over that of each alone."""
    from peft_dp.training.loop import fit, fit_together

    cell = next(cell for cell in cells("embedded/smoke") if cell.row.id == row and cell.task == "sentiment")
    made = replace(on_data(cell.spec, request, batch=batch, epochs=1, privacy=None), train=EPOCH // 2)
    seconds = interleaved(
        {
            "alone": lambda _: [fit(job(made.seeded(seed))) for seed in range(SEEDS)],
            "together": lambda _: fit_together([job(made.seeded(seed)) for seed in range(SEEDS)]),
            "building": lambda _: [job(made.seeded(seed)) for seed in range(SEEDS)],
        },
        0,
        PEERS_REPEATS,
        job(made).device,
    )
    for name in ("alone", "together"):
        seconds[name] = [a - b for a, b in zip(seconds[name], seconds["building"], strict=True)]
    line = [row, batch, f"{statistics.median(seconds['alone']):.2f}"]
    seeds_table.append([*line, " ".join(ratios(seconds, "together", "alone"))])
