"""The workflows: what they may do, and that the night's commands run as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from peft_dp.records import Record, read

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PUBLISHES = {"pages": "write", "id-token": "write"}
"""What the one job may do that writes anything."""


def workflow(path: Path) -> dict[Any, Any]:
    """A workflow; YAML 1.1 reads its key `on` as true."""
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found | {"on": found[True]}


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Every step of every job."""
    for job in workflow(path)["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_least_permissions(path: Path) -> None:
    """A job may read the repository; only one that checks nothing out and runs no command may publish."""
    found = workflow(path)

    assert {} == found["permissions"]
    for job in found["jobs"].values():
        if job["permissions"] != {"contents": "read"}:
            assert PUBLISHES == job["permissions"]
            assert not [step for step in job["steps"] if "run" in step or "checkout" in step["uses"]]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_pinned_actions(path: Path) -> None:
    """Every action is pinned to a commit, which a tag is not, and leaves no credentials behind."""
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
            assert "checkout" not in step["uses"] or step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_no_foreign_code(path: Path) -> None:
    """No pull request reaches a runner of our own, and no text from outside becomes part of a command."""
    found = workflow(path)
    own = [job for job in found["jobs"].values() if "self-hosted" in job["runs-on"]]

    assert not own or not [event for event in found["on"] if "pull_request" in event]
    assert "pull_request_target" not in found["on"]
    assert not [step for step in steps(path) if "${{" in step.get("run", "")]


def test_environments() -> None:
    """Every tox environment that CI asks for is one."""
    matrix = workflow(ROOT / ".github/workflows/ci.yml")["jobs"]["tox"]["strategy"]["matrix"]
    asked = [*matrix["environment"], *(more["environment"] for more in matrix["include"])]
    listed = subprocess.run([sys.executable, "-m", "tox", "list", "--no-desc", "-q"], cwd=ROOT, capture_output=True)

    assert {*asked} <= {*listed.stdout.decode().split()}


def test_constraints() -> None:
    """What a nightly job installs are extras that there are."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installs = [step["run"] for path in PATHS for step in steps(path) if "pip install -c" in step.get("run", "")]

    assert installs
    for line in installs:
        (asked,) = re.findall(r"'\.\[(.+)\]'", line)
        assert {*asked.split(",")} <= extras.keys()


def script(job: str, words: str) -> str:
    """The step of the nightly workflow that holds these words."""
    found = workflow(ROOT / ".github/workflows/nightly.yml")["jobs"][job]["steps"]
    (run,) = [step["run"] for step in found if words in step.get("run", "")]
    return str(run)


def checkout(folder: Path) -> Path:
    """A folder in which the night's commands find what they find in a checkout."""
    folder.mkdir()
    for name in ("bench", "conftest.py", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Key -> all that must repeat of each record in a folder."""
    found: list[Record] = [read(path) for path in sorted(folder.glob("*.json"))]
    return {record.key: record.result() for record in found}


@pytest.mark.slow  # some smoke cells twice, and a plan of all
def test_night(tmp_path: Path) -> None:
    """The night's own commands, on a few smoke cells: four shards, merged, are the run in one piece."""
    environment = os.environ | {
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTEST_ADDOPTS": "-k 'head or bitfit'",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "SELECTION": "smoke",
        "SEEDS": "",
        "SHARDS": "4",
    }

    def bash(words: str, folder: Path, **more: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", words], cwd=folder, env=environment | more, capture_output=True, text=True, check=False
        )
        assert 0 == done.returncode, done.stdout[-3000:] + done.stderr[-1000:]
        return done.stdout

    planned = checkout(tmp_path / "plan")
    bash(script("plan", "--durations"), planned)
    merged = tmp_path / "merge" / "records/night"
    checkout(tmp_path / "merge")
    merged.mkdir(parents=True)
    sizes = []
    for shard in "1234":
        folder = checkout(tmp_path / f"shard{shard}")
        (folder / "durations.json").write_text((planned / "durations.json").read_text())
        bash(script("shard", "--splits"), folder, SHARD=shard)
        found = [*(folder / "records/night").glob("*.json")]
        sizes.append(len(found))
        for path in found:
            path.rename(merged / path.name)
    told = bash(script("merge", "--peft-collect"), tmp_path / "merge")
    bash(script("merge", "peft-dp report"), tmp_path / "merge")
    whole = checkout(tmp_path / "whole")
    bash('pytest bench -m "$SELECTION" --peft-strict --peft-records records/night', whole)

    assert all(sizes), sizes
    assert results(whole / "records/night") == results(merged)
    assert f"{sum(sizes)} passed" in told
    assert "## peft-dp" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "merge/page/index.html").read_text().startswith("<!doctype html>")
    assert json.loads((planned / "durations.json").read_text())
