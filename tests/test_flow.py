"""The house kept by tests: imports point down, listing is light, names stay in their own folder."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import peft_dp
from peft_dp import registry, tasks

PACKAGE = Path(peft_dp.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`privacy.plan` of `privacy/plan.py`; a package's name of its `__init__.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_layers() -> None:
    """Imports point down: from suite to library, and within each as the contracts in `pyproject.toml` say."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_are_absolute(path: Path) -> None:
    """Imports are written in full, so that the order above can be read off them."""
    tree = ast.parse(path.read_text())

    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def test_listing_cells_is_light() -> None:
    """Importing the package and listing every cell, with its spec, imports neither torch nor transformers."""
    code = (
        "import json, sys, peft_dp; found = [cell.spec.method for cell in peft_dp.cells()]; "
        "heavy = {'torch', 'transformers', 'opacus', 'scipy', 'sklearn'} & set(sys.modules); "
        "print(json.dumps([len(found), sorted(heavy)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert [len(peft_dp.cells()), []] == json.loads(done.stdout)


@pytest.mark.parametrize(
    "module",
    [
        "tasks",
        "code",
        "privacy.plan",
        "training.trail",
        "measuring.environment",
        "suite.jobs.local",
        "suite.jobs.slurm",
        "suite.cli.main",
    ],
)
def test_no_torch_at_import(module: str) -> None:
    """Modules that say what will run, or what ran, import without torch."""
    code = f"import sys, peft_dp.{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", registry.names("backbones"))
def test_backbones_import_no_torch(name: str) -> None:
    """A backbone's file is data: it imports neither torch nor transformers."""
    code = f"import sys, peft_dp.backbones.{name}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


OWNERS = {
    **dict.fromkeys(registry.names("methods"), "methods"),
    **dict.fromkeys(registry.names("backbones"), "backbones"),
    **dict.fromkeys(tasks.names(), "tasks"),
}
"""Name of a method, backbone or task -> the folder that may know it."""


def compared(tree: ast.AST) -> Iterator[str]:
    """String constants that a file's comparisons, matches, prefix tests and look-ups stand on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.MatchValue) or _is_prefix_test(node):
            yield from strings(node)
        elif isinstance(node, ast.Subscript):
            yield from strings(node.slice)


def _is_prefix_test(node: ast.AST) -> bool:
    """Whether it is `text.startswith(...)` or its like."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("startswith", "endswith")
    )


def strings(tree: ast.AST) -> Iterator[str]:
    """All string constants under a node."""
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def label(path: Path) -> str:
    """The test's id."""
    return name_of(path) if path.is_relative_to(PACKAGE) else path.name


@pytest.mark.parametrize("path", [*FILES, PACKAGE.parent / "conftest.py"], ids=label)
def test_names_are_not_tested(path: Path) -> None:
    """No code asks whether a method, a backbone or a task is a certain one, but in the folder of its kind."""
    folder = path.relative_to(PACKAGE).parts[0] if path.is_relative_to(PACKAGE) else ""
    found = {text for text in compared(ast.parse(path.read_text())) if OWNERS.get(text, folder) != folder}

    assert not found


def test_a_tested_name_is_found() -> None:
    """The search above sees a comparison, a membership, a match, a prefix and a look-up by name."""
    code = """
if spec.method == "bitfit" or spec.task in ("rte", "wnli") or name.startswith("minilm"):
    pass
match spec.method:
    case "head":
        pass
x = table["full"]
"""

    assert {"bitfit", "rte", "wnli", "minilm", "head", "full"} == set(compared(ast.parse(code)))
