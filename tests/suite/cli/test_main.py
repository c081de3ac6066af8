"""The command line: what each verb prints, and the exit codes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import peft_dp
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main

Run = Callable[..., int]


@pytest.mark.parametrize("verb", ["show", "run", "audit"])
def test_unknown_cell(verb: str, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown id is bad input: exit code 2, and the ids that come closest."""
    code = main([verb, "made/up/rihgt/sentiment"])
    said = capsys.readouterr()

    assert (2, "") == (code, said.out)
    assert said.err.startswith("peft-dp: no cell 'made/up/rihgt/sentiment'; close: made/up/right/sentiment")
    assert said.err.count("\n") == 1


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with one line and 130, as a shell has it."""

    def interrupt(prefix: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(papers, "find", interrupt)
    code = main(["show", "made/up/right/sentiment"])
    said = capsys.readouterr()

    assert (130, "") == (code, said.out)
    assert said.err.startswith("peft-dp: interrupted")
    assert said.err.count("\n") == 1


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shell that reads what `--print-completion bash` prints completes verbs and ids."""
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "peft-dp").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m peft_dp "$@"\n')
    (tmp_path / "peft-dp").chmod(0o755)
    completed = []
    for words in ("aud", "show embedded/smoke/bitfit-dp/sent"):
        typed = f"COMP_WORDS=(peft-dp {words}); COMP_CWORD={len(words.split())}; _shtab_peft_dp"
        path = f"{tmp_path}:{os.environ['PATH']}"
        command = ["bash", "-c", f'source {script}; {typed}; echo "${{COMPREPLY[@]}}"']
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PATH": path})
        completed.append(done.stdout.strip())

    assert ["audit", "embedded/smoke/bitfit-dp/sentiment"] == completed


@pytest.mark.parametrize(
    "arguments",
    [[], ["train"], ["run"], ["run", "a/b/c/d", "--device", "tpu"], ["audit", "a/b/c/d", "--canaries", "many"]],
    ids=str,
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command that is none ends with exit code 2 and the usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: peft-dp" in capsys.readouterr().err


def typed(tmp_path: Path, words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run what a shell runs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(Path(peft_dp.__file__).parents[1])} | variables
    command = words.replace("peft-dp", f"{sys.executable} -m peft_dp")
    return subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("words", ["peft-dp list > /dev/full", "peft-dp show slash/table2/slash-d1024/rte > /dev/full"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_output(tmp_path: Path, words: str) -> None:
    """Output that finds no room is 2, in one sentence."""
    done = typed(tmp_path, words)

    assert done.returncode == 2
    assert done.stderr == "peft-dp: standard output: No space left on device: make room, or send it elsewhere\n"


def test_ascii(tmp_path: Path) -> None:
    """A terminal that shows ASCII only has the rest escaped."""
    done = typed(tmp_path, "peft-dp list none/\u00fc", PYTHONIOENCODING="ascii:strict", PYTHONUTF8="0")

    assert done.returncode == 2
    assert done.stderr.startswith("peft-dp: no id starts with 'none/\\xfc'")


def test_workers_that_are_no_number(tmp_path: Path) -> None:
    """A number of workers that is none is refused by its variable's name."""
    done = typed(tmp_path, "peft-dp run embedded/smoke/head/sentiment", PEFT_DP_WORKERS="abc")

    assert done.returncode == 2
    assert done.stderr == "peft-dp: PEFT_DP_WORKERS must be a whole number of at least 1, not 'abc': unset it\n"


def test_without_docstrings(tmp_path: Path) -> None:
    """Python without docstrings, which transformers reads, is refused; without assertions the verbs work."""
    refused, listed = (typed(tmp_path, "peft-dp list khan/", PYTHONOPTIMIZE=level) for level in "21")

    assert (refused.returncode, listed.returncode) == (2, 0)
    assert "Python runs without docstrings" in refused.stderr
