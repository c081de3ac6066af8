"""The cost plan: what is predicted against other counters, real runs and figures by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn.attention import SDPBackend, sdpa_kernel

from peft_dp import Places, Record, Spec, registry, tasks
from peft_dp.measuring import cost
from peft_dp.measuring.environment import environment
from peft_dp.privacy.noised_sum import noised_sum
from peft_dp.privacy.plan import calibrate
from peft_dp.rng import generator
from peft_dp.spec import Privacy, to_json
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main
from peft_dp.suite.plan import summary
from peft_dp.suite.plan.clock import OPERATION, UTILISATION, clock, timed
from peft_dp.suite.plan.costs import Costs, costs
from peft_dp.suite.plan.counting import Shapes
from peft_dp.suite.plan.devices import CPU, limits
from peft_dp.suite.plan.estimate import estimates
from peft_dp.suite.plan.workload import flops, linear_values
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit

Make = Callable[..., Spec]

TINY = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
PRIVACY = Privacy(epsilon=8.0, delta=1e-3, accountant="rdp")
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
COUNTED = [
    ("full", {}),
    ("head", {}),
    ("bitfit", {}),
    ("lora", {"rank": 2, "alpha": 4.0}),
    ("adapter", {"bottleneck": 4}),
    ("compacter", {"n": 2, "bottleneck": 4}),
    ("slash", {"size": 8}),
    ("warp", {"length": 3}),
    ("jr_warp", {"size": 8}),
    ("random_mask", {"kind": "bias", "budget": 100}),
    ("gradual", {"stages": [[1, 1], [2, 1]]}),
]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, spec: Make) -> Make:
    """Makes a spec of a random backbone that is small in every way; arguments replace its fields."""
    monkeypatch.setattr(registry.load("backbones", "bert"), "CONFIG", TINY)
    return lambda **fields: spec(**({"weights": "random", "dropout": False, "method": "bitfit"} | fields))


def profiled(job: Job, cut: Sequence[int]) -> float:
    """FLOPs of the matrix products of a physical batch's gradient, as torch's profiler counts them in a real run.

    Attention is by plain products, for of fused ones the profiler knows nothing.
    """
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as profile,
    ):
        noised_sum(
            job.backbone.model,
            lambda cut: job.losses(job.batch(job.train, cut)),
            [list(cut)],
            replace(job.plan, noise_multiplier=0.0),
            generator(0, "noise"),
            masks=job.backbone.masks,
        )
    return float(sum(event.flops for event in profile.events() if event.name in PRODUCTS))


@pytest.mark.parametrize("private", [False, True], ids=["public", "private"])
@pytest.mark.parametrize(("method", "config"), COUNTED, ids=[method for method, _ in COUNTED])
def test_flops(tiny: Make, places: Places, method: str, config: dict[str, Any], private: bool) -> None:
    """FLOPs of a physical batch are exactly those that the profiler counts in a real step, as are trained values."""
    made = tiny(method=method, config=config, privacy=PRIVACY if private else None)
    job = build(made, find_sources(made, places))
    cut = next(job.cut(job.train, range(8)))
    job.backbone.model.train()
    shapes = Shapes(made)
    next(shapes.phases())

    assert profiled(job, cut) == shapes.count([job.train.lengths[i] for i in cut]).flops > 0
    assert shapes.trainable == job.backbone.count()
    assert shapes.weight_bytes == cost.weight_bytes(job)


def test_flops_of_minilm(places: Places, spec: Make) -> None:
    """The same holds of a backbone of real size, with examples of many lengths in shared rows."""
    made = spec(backbone="minilm", weights="random", dropout=False, task="sst2-lengths", batch=24, readout="mean")
    job = build(made, find_sources(made, places))
    cut = next(job.cut(job.train, range(24)))

    assert profiled(job, cut) == Shapes(made).count([job.train.lengths[i] for i in cut]).flops


BY_HAND = {"head": (2, 4, 4), "bitfit": (4, 12, 6), "full": (6, 12, 6)}
"""Method -> how often the weights, the attention's products and the head's weights count.

Two operations a product forward, as many for the gradient of an input and of a weight; attention's two products have
two gradients each.
"""


@pytest.mark.parametrize("method", BY_HAND)
def test_flops_by_hand(spec: Make, method: str) -> None:
    """FLOPs of MiniLM are what its sizes give: 4 d d + 2 d f weights and attention over W places in a layer."""
    width, inner, layers, count, length = 384, 1536, 6, 8, 32  # 8 examples of 32 tokens: rows of 32 places
    weights, attention, head = BY_HAND[method]
    made = spec(backbone="minilm", dropout=False, method=method, readout="mean")
    found = Shapes(made).count([length] * count)
    per_place = weights * (4 * width**2 + 2 * width * inner) + attention * length * width

    assert found.flops == layers * count * length * per_place + head * count * width * 2


@pytest.mark.parametrize("method", ["head", "bitfit", "gradual"])
def test_flops_of_a_run(spec: Make, places: Places, method: str) -> None:
    """Steps of a whole run are exact, FLOPs and tokens near, where layers are computed once too."""
    config = {"stages": [[1, 1], [2, 1]]} if method == "gradual" else {}
    own = {"backbone": "minilm", "weights": "random", "dropout": False, "method": method, "config": config}
    made = spec(**own, task="qqp-lengths", train=64, batch=16, max_length=64, readout="mean")
    job = build(made, find_sources(made, places))
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as profile,
    ):
        trained = fit(job)
    predicted = costs(made)

    assert predicted.steps == sum(epoch.steps for epoch in trained.epochs)
    assert predicted.tokens == pytest.approx(sum(epoch.tokens for epoch in trained.epochs), rel=0.05)
    measured = sum(event.flops for event in profile.events() if event.name in PRODUCTS)
    assert predicted.flops == pytest.approx(measured, rel=0.07)


@pytest.mark.parametrize(
    ("method", "private"), [("full", False), ("full", True), ("head", False), ("bitfit", False), ("bitfit", True)]
)
def test_memory(places: Places, spec: Make, method: str, private: bool) -> None:
    """Peak memory is within a tenth of what a run of that size measures."""
    made = spec(
        backbone="minilm",
        weights="random",
        dropout=False,
        task="sst2-lengths",
        train=512,
        batch=128 if private else 16,
        max_length=64,
        readout="mean",
        method=method,
        privacy=PRIVACY if private else None,
    )
    job = build(made, find_sources(made, places))
    state = 8 * sum(parameter.numel() for parameter in job.backbone.updated().values())

    assert costs(made).peak_bytes == pytest.approx(cost.weight_bytes(job) + state + cost.step_bytes(job), rel=0.1)


@pytest.mark.parametrize("private", [False, True], ids=["public", "private"])
def test_steps(spec: Make, private: bool) -> None:
    """Steps are those of the run's own plan, whose last batch may be smaller."""
    made = spec(train=30, batch=8, privacy=PRIVACY if private else None)

    assert costs(made).steps == calibrate(made, 30).steps == (6 if private else 8)


def test_flops_to_leading_order_need_no_torch() -> None:
    """Ordering all cells imports neither torch nor transformers."""
    code = (
        "import sys; from peft_dp import cells; from peft_dp.suite.plan.workload import flops; "
        "print(min(flops(cell.spec) for cell in cells()) > 0, "
        "sorted({'torch', 'transformers', 'opacus', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "True []" == done.stdout.strip()


@pytest.mark.parametrize("field", ["backbone", "task"])
def test_unknown(spec: Make, field: str) -> None:
    """A name that no file has is refused, not taken for another."""
    for amount in (flops, costs):
        with pytest.raises(ValueError, match=f"unknown {field} 'other'; known: "):
            amount(replace(spec(), **{field: "other"}))


def test_order() -> None:
    """A larger backbone, longer sentences and more examples are more work."""
    small, large = (papers.find(f"slash/{table}/slash-d1024/rte") for table in ("table3", "table2"))
    cola, mnli = (papers.find(f"spafit/table2/full/{task}") for task in ("cola", "mnli"))

    assert flops(small.spec) < flops(large.spec)
    assert flops(cola.spec) < flops(mnli.spec)


@pytest.mark.parametrize("row", ["full", "head-dp", "bitfit", "gradual", "diff-pruning", "slash-dp"])
def test_order_is_near(row: str) -> None:
    """What orders cells is within a factor of 1.5 of the FLOPs that are counted."""
    cell = papers.find(f"embedded/smoke/{row}/sentiment")

    assert 1 / 1.5 < flops(cell.spec) / costs(cell.spec).flops < 1.5


@pytest.mark.parametrize("backbone", registry.names("backbones"))
def test_values(spec: Make, backbone: str) -> None:
    """The values that order cells are those of the backbone's layers."""
    shapes = Shapes(spec(backbone=backbone))
    linear = sum(p.numel() for layer in shapes.backbone.layers for p in layer.parameters() if p.dim() == 2)

    assert linear == linear_values(backbone)


def test_lengths() -> None:
    """The mean length that a generated task states is that of its sentences."""
    from peft_dp.models.weights import tokenizer

    source = registry.load("backbones", "minilm").SOURCE
    pytest.importorskip(source.package[0])
    split = tokenizer(source.locate(None)[0])
    for name in ("sentiment", "paraphrase", "inference", "acceptability", "similarity", "entities"):
        sentences = [(each.first, each.second) for each in tasks.load(name).train]
        seconds = [second for _, second in sentences] if tasks.find(name).pair else None
        counts = [len(ids) for ids in split([first for first, _ in sentences], seconds)["input_ids"]]
        assert tasks.find(name).tokens == pytest.approx(sum(counts) / len(counts), rel=0.01), name


def made_costs(**fields: float) -> Costs:
    """What a run asks for, all of one step but for the fields."""
    names = ("steps", "operations", "padded", "tokens", "flops", "updates", "trainable", "peak_bytes")
    return Costs(**(dict.fromkeys(names, 1) | fields))


def test_clock() -> None:
    """Fitted to runs, it gives back the rates that made them, and predicts a run that was left out."""
    runs = [
        made_costs(steps=steps, operations=operations, padded=operations % 3, flops=flops, updates=steps * values)
        for steps, operations in ((8, 9), (20, 50), (90, 100))
        for flops, values in ((1e12, 1e3), (4e12, 2e7), (9e12, 3e5))
    ]
    rates = (0.5, 0.01, 0.02, 0.005, 4e-12, 1e-8)

    def seconds(run: Costs) -> float:
        amounts = (1, run.steps, run.operations, run.padded, run.flops, run.updates)
        return sum(rate * amount for rate, amount in zip(rates, amounts, strict=True))

    found = clock([(run, seconds(run)) for run in runs], 1e12)

    assert found.records == 9
    assert found.error == pytest.approx(0, abs=1e-6)
    assert [found.seconds(run) for run in runs] == pytest.approx([seconds(run) for run in runs])


def test_clock_without_records() -> None:
    """Without records FLOPs take their time at a share of the peak, operations theirs, and the error is not known."""
    found = clock([], 2e12)

    assert found.records == 0
    assert found.error is None
    assert found.seconds(made_costs(flops=4e12, operations=7)) == pytest.approx(2 / UTILISATION + 7 * OPERATION)


@pytest.fixture
def record() -> Callable[..., Record]:
    """Makes a record of a smoke cell, of 12 s on this machine; arguments replace entries of its environment."""

    def make(cell: str = "embedded/smoke/head/sentiment", seed: int = 0, **entries: object) -> Record:
        spec = to_json(papers.find(cell).spec.seeded(seed))
        epoch = {"loss": 1.0, "clipped": None, "examples": 800, "tokens": 13000, "steps": 25, "seconds": 6.0}
        data = {
            "key": "0" * 64,
            "spec": spec,
            "values": {"score": 80.0, "trainable": 770.0, "answers": 2.0, "above_majority": 30.0},
            "ledger": None,
            "trail": [epoch, epoch],
            "cost": {"epoch_seconds": 6.0, "peak_bytes": 1e8},
            "sources": {},
            "environment": environment() | {"device": "cpu", "side_by_side": 1, "seeds_together": 1} | entries,
        }
        return TypeAdapter(Record).validate_json(json.dumps(data))

    return make


def test_timed(record: Callable[..., Record]) -> None:
    """Records count that were made here, alone, of a cell; those of a GPU by its name."""
    gpu = {"device": "cuda", "gpu": "Quadro RTX 8000"}
    others = [
        record(cpu="another"),
        record(threads=99),
        record(side_by_side=2),
        record(seeds_together=5),
        replace(record(), spec=replace(record().spec, batch=7)),
        record(**gpu),
    ]
    spec = papers.find("embedded/smoke/head/sentiment").spec

    assert timed([record(), record(seed=3), *others], CPU) == [(spec, 12.0)] * 2
    assert timed([record(), *others], "RTX8000") == [(spec, 12.0)]
    assert timed([record(), *others], "A100") == []


def test_estimates(record: Callable[..., Record]) -> None:
    """Seconds are of all seeds, by the records if there are any; what a device does not change stays."""
    cell = papers.find("embedded/smoke/head/sentiment")
    (assumed,) = estimates([cell], device="A100", seeds=3)
    (measured,) = estimates([cell], device=CPU, records=[record()], seeds=3)

    assert measured.seconds == pytest.approx(36)
    assert assumed.seconds > 3 * assumed.flops / (UTILISATION * limits("A100").fp32)
    assert (assumed.steps, assumed.flops) == (measured.steps, measured.flops)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("30m", 1800.0), ("8h", 28800.0), ("1.5h", 5400.0)])
def test_time(text: str, seconds: float) -> None:
    """A time is a number and its unit."""
    assert summary.seconds(text) == seconds


def test_within() -> None:
    """What fits is as many cells as can, in the order given; no time is spent twice."""
    cells = papers.cells("embedded/smoke")[:4]
    base = estimates(cells[:1], device="A100")[0]
    found = [
        replace(base, cell=cell, seconds=taken) for cell, taken in zip(cells, (50.0, 10.0, 30.0, 20.0), strict=True)
    ]
    fits, others = summary.within(found, 65.0)

    assert [each.cell for each in fits] == [cells[1], cells[2], cells[3]]
    assert [each.cell for each in others] == [cells[0]]
    assert summary.within(found, 5.0) == ([], found)


def test_deciding() -> None:
    """A claim is decided by the cells of both sides that run, each once."""
    claim = next(claim for claim in papers.claims("embedded") if not claim.differs)
    left, right = claim.sides

    assert summary.deciding(f"embedded/claims/{claim.id}") == [*left, *(cell for cell in right if cell not in left)]


def test_durations_have_pytest_ids(record: Callable[..., Record]) -> None:
    """Durations are told by the ids that pytest gives the cells."""
    root = Path(__file__).parents[3]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "bench/test_embedded.py",
    ]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    cell = papers.find("embedded/smoke/head/sentiment")
    (found,) = summary.durations(estimates([cell], device=CPU, records=[record()]))

    assert {cell.node for cell in papers.cells("embedded/smoke")} <= set(listed)
    assert found in listed


HEAD = "embedded/smoke/head/sentiment"


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """The verb prints a line a table, and says that nothing was measured and what was assumed."""
    assert main(["plan", HEAD, "--device", "H200"]) == 0
    out = capsys.readouterr().out

    assert "GPU-hours" in out
    assert "embedded/smoke" in out
    assert f"not calibrated, taken are {UTILISATION:.0%} of H200's peak" in out


def test_plan_calibrated(capsys: pytest.CaptureFixture[str], tmp_path: Path, record: Callable[..., Record]) -> None:
    """With records the verb's times are theirs; it writes durations, and as JSON gives every number."""
    (tmp_path / "a.json").write_text(TypeAdapter(Record).dump_json(record()).decode())
    file = tmp_path / "durations"
    assert main(["plan", HEAD, "--records", str(tmp_path), "--durations", str(file), "--json"]) == 0
    held = json.loads(capsys.readouterr().out)

    assert [HEAD] == [cell["cell"] for cell in held["cells"]]
    assert held["cells"][0]["seconds"] == pytest.approx(12.0)
    assert held["clocks"]["fp32"]["records"] == 1
    assert json.loads(file.read_text()) == {"bench/test_embedded.py::test_smoke[head-sentiment]": pytest.approx(12.0)}


def test_plan_within(capsys: pytest.CaptureFixture[str]) -> None:
    """The verb gives what fits as a command, and says what does not."""
    cells = [cell for cell in papers.cells("embedded/smoke") if cell.row.id == "head"]
    least = min(each.seconds for each in estimates(cells, device="H200"))
    time = f"{1.01 * least:.9f}s"
    assert main(["plan", "embedded/smoke/head/", "--device", "H200", "--within", time]) == 0
    out = capsys.readouterr().out

    assert f"1 of 3 cells fit in {time}" in out
    assert "pytest -m smoke 'bench/test_embedded.py::test_smoke[head-entities]'" in out
    assert "does not fit: embedded/smoke, 2 cells" in out


def test_plan_workers(capsys: pytest.CaptureFixture[str]) -> None:
    """As many devices as cells take as long as the longest cell, which is named."""
    longest = max(estimates(papers.cells("slash/table5"), device="H200"), key=lambda each: each.seconds)
    assert main(["plan", "slash/table5", "--device", "H200", "--workers", "12"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("On 12 at once: ")]

    assert f"On 12 at once: {longest.seconds / 3600:.3g} hours" in line
    assert f"the longest cell, {longest.cell.id}, takes {longest.seconds / 3600:.3g}." in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonesuch/"], "no cell's id starts with 'nonesuch/'"),
        ([HEAD, "--device", "Z80"], "device 'Z80'"),
        ([HEAD, "--within", "soon"], "--within must be a time such as 90s, 30m or 8h, not 'soon'"),
        ([HEAD, "--within", "0h"], "--within must be"),
        ([HEAD, "--seeds", "0"], "--seeds"),
        ([HEAD, "--workers", "0"], "--workers"),
        (["--claim", "slash/claims/none"], "no claim 'slash/claims/none'"),
        ([HEAD, "--claim", "slash/claims/c1"], "leave out PREFIX"),
        ([HEAD, "--records", "nowhere"], "nowhere is not a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_plan_refuses(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad input is one sentence and exit code 2, before anything is counted."""
    assert main(["plan", *arguments]) == 2
    assert says in capsys.readouterr().err
