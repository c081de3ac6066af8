"""The commands, links and names in README and docs: each is tried, or parsed by what would run it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from peft_dp.suite import papers
from peft_dp.suite.cli.main import VERBS, main, parser

from .processes import pytest_session

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("peft-dp", "pytest", "python", "tox")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
READY = ("list", "show", "--help", "--print-completion")
"""Verbs that run in a moment and need nothing."""


def commands(page: Path) -> list[list[str]]:
    """Every command of a page, as words: in blocks of shell and YAML, and in backticks where a program's name starts.

    Folders of the reader's (DIR) stay as they are.
    """
    text = page.read_text(encoding="utf-8")
    blocks = FENCE.findall(text)
    lines = [line for kind, block in blocks if kind == "sh" for line in block.splitlines()]
    lines += [line for kind, block in blocks if kind == "yaml" for line in re.findall(r"run: (.*)", block)]
    lines += [code for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)) if " " in code and _program(code)]
    found = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [_plain(words) for words in found if words]


def _program(text: str) -> bool:
    """Whether it is a command; `pytest -n` is a name of one."""
    return text.split()[0] in PROGRAMS and not re.search(r" -\w$", text)


def _plain(words: list[str]) -> list[str]:
    """`.venv/bin/python -m pytest tests` as `pytest tests`, likewise for peft-dp's module."""
    first = Path(words[0]).name.replace("python3", "python")
    words = [first, *words[1:]]
    return words[2:] if words[:3] == ["python", "-m", "pytest"] else words


ALL = [(page.name, words) for page in PAGES for words in commands(page)]
OURS = sorted({tuple(words[1:]) for _, words in ALL if words[0] == "peft-dp"})
TESTS = sorted({tuple(words[1:]) for _, words in ALL if words[0] == "pytest"})
OTHERS = sorted({tuple(words) for _, words in ALL if words[0] not in ("peft-dp", "pytest")})


def options() -> set[str]:
    """Every option of every verb, as its help names it."""
    found = set()
    for verb in VERBS:
        alone = ArgumentParser()
        verb.add_options(alone)
        found |= set(re.findall(r"(?<![\w-])--[\w-]+", alone.format_help()))
    return found


def ids(text: str) -> set[str]:
    """What looks like the id of a cell or a claim in a text: four parts, or three with `claims`, of a known paper."""
    known = "|".join(sorted({cell.table.paper for cell in papers.cells()}))
    return set(re.findall(rf"\b(?:{known})/(?:claims/[\w-]+|\w+/[\w-]+/[\w-]+)(?![\w./-])", text))


def known() -> set[str]:
    """Every id."""
    cells = {cell.id for cited in (False, True) for cell in papers.cells(cited=cited)}
    return cells | {claim.address for claim in papers.claims()}


def test_pages_have_commands() -> None:
    """The search finds commands of each program, so that the tests below look at something."""
    assert {"peft-dp", "pytest", "python"} <= {words[0] for _, words in ALL}
    assert {"README.md", "reproduce.md", "extend.md", "nightly.md", "verdicts.md", "privacy.md"} <= {
        page for page, _ in ALL
    }


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_own_commands(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Every `peft-dp` command is accepted; those that run in a moment do."""
    words = tuple("embedded/smoke/bitfit/sentiment" if word == "ID" else word for word in words)
    if words[0] == "VERB":
        words = ("list", *words[1:])
    if "--tables" in words or (words[0] not in READY and "--help" not in words):
        parser().parse_args(words)
        return
    try:
        code = main(words)
    except SystemExit as end:  # as --help does
        code = int(end.code or 0)

    assert 0 == code
    assert capsys.readouterr().out


def test_examples_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb's help ends in two or three examples, of that verb, which its parser takes and whose ids exist."""
    for verb in VERBS:
        with pytest.raises(SystemExit):
            main([verb.name, "--help"])
        assert capsys.readouterr().out.endswith("\n  ".join(["examples:", *verb.examples]) + "\n")
        assert 2 <= len(verb.examples) <= 3
        for example in verb.examples:
            words = shlex.split(example, comments=True)
            assert ["peft-dp", verb.name] == words[:2]
            parser().parse_args(words[1:])
            assert ids(example) <= known()


def _collected(arguments: list[str]) -> str:
    """What pytest says that it would run."""
    done = pytest_session("--collect-only", "-q", *arguments)
    assert done.code == 0, f"{arguments}: {done.text[-800:]}"
    return done.text


def _selection(words: tuple[str, ...], folder: Path) -> list[str]:
    """A command's arguments with a folder that exists in place of the reader's."""
    return [str(folder) if word == "DIR" else word for word in words if word != "-s"]


@pytest.mark.slow  # each command is a pytest of its own
@pytest.mark.parametrize("words", TESTS, ids=" ".join)
def test_selections(words: tuple[str, ...], tmp_path: Path) -> None:
    """Every `pytest` command selects a test."""
    values = _selection(words, tmp_path)
    if "--peft-baseline" in values:  # which is read at once, and here there is none
        at = values.index("--peft-baseline")
        del values[at : at + 2]
    # Where the command itself says -q, pytest counts tests per file.
    assert re.search(r"\d+(/\d+)? tests? collected|\.py: \d+$", _collected(values), re.MULTILINE)


def test_pytest_commands(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every `pytest` command has options, files and markers that there are."""
    marks = {line.partition(":")[0].partition("(")[0].strip() for line in request.config.getini("markers")}
    known_options = set(re.findall(r"--[a-z][\w-]*", pytest_session("--help").text)) | {"--texts"}
    for words in TESTS:
        values = _selection(words, tmp_path)
        expression = values[values.index("-m") + 1] if "-m" in values else ""
        assert set(re.findall(r"\w+", expression)) - {"not", "and", "or"} <= marks, words
        assert {word.partition("=")[0] for word in values if word.startswith("--")} <= known_options, words
        paths = [word.partition("::")[0] for word in values if word.partition("/")[0] in ("tests", "bench")]
        assert all((ROOT / path).exists() for path in paths), words


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_other_commands(words: tuple[str, ...]) -> None:
    """Other commands are those of the project's set-up: modules, extras, environments and scripts that there are."""
    if words[0] == "tox":
        asked = words[2].split(",") if len(words) > 1 else []
        listed = subprocess.run([sys.executable, "-m", "tox", "list", "--no-desc", "-q"], cwd=ROOT, capture_output=True)
        assert set(asked) <= {*listed.stdout.decode().split()}
        return
    if words[0] == "bash":  # `gpu_pack.sh` copies the rest of its folder to .gpu1 and .gpu2
        assert (ROOT / "bench" / "gpu" / Path(words[1]).name).is_file()
        return
    assert ("python", "-m") == words[:2]
    assert find_spec(words[2])
    if words[2:4] == ("pip", "install"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()
        named = re.fullmatch(r"(?:\.|peft-dp)(?:\[(.*)\])?", words[-1])
        assert named
        assert set((named[1] or "embedded").split(",")) <= extras.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names(page: Path) -> None:
    """Every link leads to a page, every id is that of a cell or a claim, and every file that is named is there."""
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    bare = FENCE.sub("", text)
    named = re.findall(r"`((?:peft_dp|tests|bench|docs|expected)/[\w./-]+\.\w+)`", bare)

    assert not [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert not ids(text) - known()
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options(page: Path) -> None:
    """Every option of ours that a page names is one of a verb or of the bench."""
    text = page.read_text(encoding="utf-8")
    bench = set(re.findall(r'"(--peft-[\w-]+)"', (ROOT / "peft_dp" / "suite" / "plugin" / "options.py").read_text()))
    named = set(re.findall(r"(?<![\w-])--peft-[\w-]+", text))
    short = {option for option in re.findall(r"`(--[\w-]+)[ `]", text) if not option.startswith("--peft-")}

    assert named <= bench
    assert short <= options() | {
        "--benchmark-json",
        "--print-completion",
        "--texts",
        "--tables",
    }  # of our tests, of each verb


def test_python_blocks() -> None:
    """Python stands in docs/python.md and docs/extend.md, whose blocks run in their own tests."""
    run = dict.fromkeys(
        block for kind, block in FENCE.findall((ROOT / "docs/python.md").read_text()) if kind == "python"
    )
    pages = [page for page in PAGES if page.name != "extend.md"]
    found = [block for page in pages for kind, block in FENCE.findall(page.read_text()) if kind == "python"]

    assert set(found) == set(run)
