"""The source files that a run uses: its record is good as long as none of them changes.

Why by imports: a list kept by hand forgets, and a hash of the whole package makes records stale that nothing touched.
The files common to all runs are those that `runs` imports, directly or not; a method, a backbone, an implementation
and a source of tasks are found by name, so each run adds its own. Nothing of the suite is among them, since no run
imports it.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from peft_dp import registry, tasks
from peft_dp.spec import Spec

FOLDER = Path(__file__).parent


def sha256(spec: Spec) -> str:
    """Return the hash of the source files that a run of the spec uses."""
    named = f"methods.{spec.method}", f"backbones.{spec.backbone}", f"implementations.{spec.implementation}"
    return _sha256(*named, _name(tasks.source(spec.task).__name__))


def files(*modules: str) -> list[Path]:
    """Return the files of some modules of the package and of all that they import of it, sorted."""
    found: set[Path] = set()
    open_ = [path for module in modules for path in _paths(module)]
    while open_:
        path = open_.pop()
        if path not in found:
            found.add(path)
            open_ += [more for module in _imported(path) for more in _paths(module)]
    return sorted(found)


@cache
def _sha256(*modules: str) -> str:
    digest = hashlib.sha256()
    for path in files("runs", *modules):
        digest.update(str(path.relative_to(_home(path))).encode() + path.read_bytes())
    return digest.hexdigest()


def _home(path: Path) -> Path:
    """Return the folder that a file's module is named from: the package's, or that of one's own tables."""
    own = registry.own_folder()
    return own.absolute() if own and path.is_relative_to(own.absolute()) else FOLDER


def _name(module: str) -> str:
    return module.partition(".")[2]


def _paths(module: str) -> Iterator[Path]:
    """Yield the file of a module and those of the packages that it lies in, which Python reads before it."""
    parts = module.split(".")
    packages = (FOLDER.joinpath(*parts[:end], "__init__.py") for end in range(len(parts) + 1))
    own = registry.own_folder()
    modules = (home.joinpath(*parts).with_suffix(".py") for home in (FOLDER, *([own.absolute()] if own else [])))
    yield from filter(Path.is_file, (*packages, *modules))


@cache  # the common files are asked for again with each method, backbone and source
def _imported(path: Path) -> list[str]:
    """Return the modules of the package that a file imports, those for type checking left out."""
    found: list[str] = []
    for node in _running(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found += (_name(alias.name) for alias in node.names if alias.name.startswith("peft_dp."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "peft_dp":
            module = _name(node.module or "")
            # Each name may be a module or something in one: `_paths` passes over what is no file.
            found += [module, *(f"{module}.{alias.name}".removeprefix(".") for alias in node.names)]
    return found


def _running(tree: ast.AST) -> Iterable[ast.AST]:
    """Yield every node of a syntax tree but what stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _running(node)
