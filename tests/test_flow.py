"""The flow kept by tests: listing is light, imports point to earlier steps, names stay in their own folder."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import peft_dp
from peft_dp import registry, tasks
from peft_dp.job import APART

PACKAGE = Path(peft_dp.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = (
    ("", "validate", "spec", "places", "registry", "files", "workers", "hub"),
    ("tasks",),
    ("expected", "schema"),
    ("rng", "packing"),
    ("read_out", "weights"),
    ("backbones",),
    ("methods",),
    ("attaching",),
    ("privacy", "privacy.plan", "privacy.sampling"),
    ("privacy.parts",),
    ("privacy.gradients",),
    ("privacy.engine",),
    ("training", "training.batching", "training.trail"),
    ("job",),
    ("training.reuse", "training.checkpoint"),
    ("training.loop",),
    ("training.together",),
    ("privacy.audit",),
    ("measuring", "measuring.before", "measuring.after", "measuring.cost", "measuring.environment", "measuring.moved"),
    ("records",),
    ("reproduce",),
    ("planning",),
    ("reporting",),
    ("__main__",),
)
"""From spec to verdict: a module imports modules of its own step and of those before it."""


def name_of(path: Path) -> str:
    """`privacy.plan` of `privacy/plan.py`; a package's name of its `__init__.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in FILES}


def step(module: str) -> int:
    """Position in the order of the module, or of the nearest folder above it that is listed."""
    while True:
        for position, modules in enumerate(ORDER):
            if module in modules:
                return position
        assert module, "no such module"
        module = module.rpartition(".")[0]


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: none for type checking or inside a function."""
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not typing_only and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_import(node)


def imported(path: Path, nodes: Callable[[ast.AST], Iterator[ast.AST]] = at_import) -> Iterator[str]:
    """The package's modules that some nodes of a file import."""
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("peft_dp.") for alias in node.names if alias.name.startswith("peft_dp.")
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "peft_dp":
            module = (node.module or "").removeprefix("peft_dp").removeprefix(".")
            inside = [f"{module}.{alias.name}".removeprefix(".") for alias in node.names]
            yield from (name if name in NAMES else module for name in inside)


def test_every_module_has_a_step() -> None:
    """The order lists files that exist, and every file outside the folders it lists."""
    listed = {module for modules in ORDER for module in modules}

    assert not listed - NAMES
    assert not {name for name in NAMES if name.split(".")[0] not in listed}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_back(path: Path) -> None:
    """No module imports one of a later step."""
    mine = name_of(path)
    ahead = [module for module in imported(path) if step(module) > step(mine)]

    assert not ahead


def test_runs_use_nothing_apart() -> None:
    """What the hash of a run's code leaves out is imported by nothing that it holds, inside functions neither."""
    apart = {Path(part).stem for part in APART}
    held = [path for path in FILES if name_of(path).split(".")[0] not in apart]
    used = {module for path in held for module in imported(path, ast.walk)}

    assert apart <= NAMES
    assert "training.loop" in used
    assert not [module for module in used if module.split(".")[0] in apart]


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
    "module", ["tasks", "privacy.plan", "training.trail", "measuring.environment", "planning.submitting", "__main__"]
)
def test_no_torch_at_import(module: str) -> None:
    """Modules that say what will run, or what ran, import without torch."""
    code = f"import sys, peft_dp.{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


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
