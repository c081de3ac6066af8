"""`peft-dp run`: what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peft_dp.suite.cli.main import main


@pytest.mark.parametrize(("row", "code", "status"), [("right", 0, "no expectation"), ("wrong", 1, "differs")])
def test_run(
    tables: Path, here: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, code: int, status: str
) -> None:
    """`run` trains a cell under the seed, prints its values and verdict, keeps its record; 1 says that it differs."""
    actual = main(["run", f"made/up/{row}/sentiment", "--seed", "3", *here])
    printed = capsys.readouterr().out
    (record,) = (tmp_path / "records").iterdir()

    assert code == actual
    assert f"made/up/{row}/sentiment: {status}" in printed
    assert '"trainable": 338' in printed
    assert printed.endswith(f"record: {record}\n")
    assert json.loads(record.read_text())["spec"]["seed"] == 3


def test_run_again(tables: Path, here: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run` trains nothing that has a record, and says from when that is and how to train again."""
    main(["run", "made/up/right/sentiment", *here])
    (path,) = (tmp_path / "records").iterdir()
    data = json.loads(path.read_text())
    data["environment"]["date"] = "2026-01-01T00:00:00+00:00"
    path.write_text(json.dumps(data))
    main(["run", "made/up/right/sentiment", *here])
    last = capsys.readouterr().out.splitlines()[-1]

    assert f"record: {path} (of 2026-01-01T00:00:00+00:00: remove it to train again)" == last


def test_run_on_another_task(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A row on a task not its own is trained and marked as such; its expectation, though wrong there, is not held."""
    code = main(["run", "made/up/wrong/sentiment", "--task", "inference", "--backbone", "bert", *here])
    printed = capsys.readouterr().out

    assert code == 0
    assert "made/up/wrong/sentiment with task inference for sentiment: not the row's own, so nothing" in printed


def test_run_without_backbone(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thing that this machine lacks is exit code 3, and its name."""
    code = main(
        ["run", "made/up/right/sentiment", "--backbones", str(tmp_path), "--records", str(tmp_path), "--device", "cpu"]
    )

    assert code == 3
    assert f"peft-dp: {tmp_path / 'bert-base-cased'} is missing" in capsys.readouterr().err


def test_run_without_records_folder(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that cannot be written to is said before anything trains."""
    (tmp_path / "file").write_text("")
    code = main(["run", "made/up/right/sentiment", "--records", str(tmp_path / "file")])

    assert code == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_run_json(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`run --json` is one object with values, verdict and record; the exit code is that of a run without it."""
    found = {}
    for name in ("right", "wrong"):
        code = main(["run", f"made/up/{name}/sentiment", "--json", *here])
        found[name] = json.loads(capsys.readouterr().out) | {"code": code}

    assert (0, 1) == tuple(run["code"] for run in found.values())
    assert "differs" == found["wrong"]["verdict"] != found["right"]["verdict"]
    assert "trainable" in {finding["quantity"] for finding in found["right"]["findings"]}
    record = json.loads(Path(found["right"]["record"]).read_text())
    assert record["values"] == found["right"]["values"]


def test_run_json_on_another_task(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A row on a task not its own has no verdict, and names what stands instead."""
    assert main(["run", "made/up/wrong/sentiment", "--task", "inference", "--json", *here]) == 0
    found = json.loads(capsys.readouterr().out)

    assert (None, [], {"task": "inference"}) == (found["verdict"], found["findings"], found["instead"])
