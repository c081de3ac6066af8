"""What cells will cost, and what `peft-dp plan` says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from peft_dp import Record
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main
from peft_dp.suite.plan import summary
from peft_dp.suite.plan.clock import UTILISATION
from peft_dp.suite.plan.devices import CPU, limits
from peft_dp.suite.plan.estimate import estimates

from ...processes import pytest_session


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
    listed = pytest_session("--collect-only", "-q", "bench/test_embedded.py").text.splitlines()
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
    least = min(estimates(cells, device="H200"), key=lambda each: each.seconds)
    time = f"{1.01 * least.seconds:.9f}s"
    assert main(["plan", "embedded/smoke/head/", "--device", "H200", "--within", time]) == 0
    out = capsys.readouterr().out

    assert f"1 of 3 cells fit in {time}" in out
    assert f"pytest -m smoke 'bench/test_embedded.py::test_smoke[head-{least.cell.task}]'" in out
    assert "does not fit: embedded/smoke, 2 cells" in out


def test_plan_workers(capsys: pytest.CaptureFixture[str]) -> None:
    """As many devices as cells take as long as the longest cell, which is named."""
    longest = max(estimates(papers.select(["embedded/smoke/head/"]), device="H200"), key=lambda each: each.seconds)
    assert main(["plan", "embedded/smoke/head/", "--device", "H200", "--workers", "12"]) == 0
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
