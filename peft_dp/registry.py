"""A folder is a registry: a file in it is an entry, found by its name.

A folder of one's own tables may bring entries of its own, in folders of the same names: `methods/`, `tasks/`,
`backbones/`, `implementations/`.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from peft_dp import validate

TABLES = "PEFT_DP_TABLES"
"""Environment variable that names the folder of one's own tables: processes that a session starts find it there too."""


def own_folder() -> Path | None:
    """Return the folder of one's own tables; None where there is none."""
    named = os.environ.get(TABLES)
    return Path(named) if named else None


@contextmanager
def with_own(folder: Path | None) -> Iterator[None]:
    """Have this process, and those it starts, find a folder of one's own tables; None changes nothing.

    Raises:
        ValueError: It is no folder.
    """
    if folder is None:
        yield
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one with your tables in it, as PAPER/TABLE.json")
    before = os.environ.get(TABLES)
    os.environ[TABLES] = str(folder.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[TABLES]
        else:
            os.environ[TABLES] = before


def names(kind: str) -> list[str]:
    """Return the names of the entries of `kind` ("methods", "backbones", "tasks"), sorted; import none of them.

    A file whose name begins with an underscore is no entry: it holds what several entries share.

    Raises:
        ValueError: One's own folder has an entry of a name that is taken.
    """
    package = import_module(f"peft_dp.{kind}")
    own = own_folder()
    folders = [Path(package.__file__ or "").parent, *([own.absolute() / kind] if own else [])]
    package.__path__ = [str(folder) for folder in folders]  # where Python itself looks for the package's modules
    found: dict[str, Path] = {}
    for folder in folders:
        for module in pkgutil.iter_modules([str(folder)]):
            if module.name in found:
                taken = f"{folder / module.name}.py has the name of an entry in {found[module.name]}"
                raise ValueError(f"{taken}: rename it")
            found[module.name] = folder
    return sorted(name for name in found if not name.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """Return the entry's module.

    Raises:
        ValueError: No file of that name; the message lists those there are.
    """
    validate.known(kind.removesuffix("s"), name, names(kind))
    return import_module(f"peft_dp.{kind}.{name}")
