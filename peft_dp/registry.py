"""A folder is a registry: a file in it is an entry, found by its name."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

from peft_dp import validate


def names(kind: str) -> list[str]:
    """Return the names of the entries of `kind` ("methods", "backbones", "tasks"), sorted; import none of them.

    A file whose name begins with an underscore is no entry: it holds what several entries share.
    """
    package = import_module(f"peft_dp.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """Return the entry's module.

    Raises:
        ValueError: No file of that name; the message lists those there are.
    """
    validate.known(kind.removesuffix("s"), name, names(kind))
    return import_module(f"peft_dp.{kind}.{name}")
