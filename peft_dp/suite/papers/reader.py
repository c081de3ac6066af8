"""The files in `expected/`: JSON read into the types that are their format, errors with file and field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from peft_dp import registry
from peft_dp.spec import first
from peft_dp.suite import HOME
from peft_dp.validate import short

FOLDER = HOME / "expected"


def glob(pattern: str) -> list[Path]:
    """Return the files of a pattern such as "*/facts.json" in `expected/`, then in the folder of one's own tables.

    Raises:
        ValueError: One's own folder has a paper of the name of one in `expected/`.
    """
    own = registry.own_folder()
    if own is None:
        return sorted(FOLDER.glob(pattern))
    for paper in sorted({path.parent.name for path in own.glob("*/*.json")}):
        home(paper)  # refuses a name that is taken
    return [*sorted(FOLDER.glob(pattern)), *sorted(own.glob(pattern))]


def home(paper: str) -> Path:
    """Return the folder that holds the folder of a paper: one's own where it is there, else `expected/`.

    Raises:
        ValueError: Both have it.
    """
    own = registry.own_folder()
    if own is None or not (own / paper).is_dir():
        return FOLDER
    if (FOLDER / paper).is_dir():
        raise ValueError(f"{own / paper} has the name of a paper in {FOLDER}: give the folder another name")
    return own


def check_folder() -> None:
    """Raise ValueError where there is no table at all: nothing found must not pass for nothing to do."""
    if not any(FOLDER.glob("*/*.json")):
        raise ValueError(f"no table in {FOLDER}: install peft-dp anew, or run it in a clone of its repository")


def link(kind: type) -> str:
    """What a file of that kind may hold in `$schema`: from there an editor learns what else it holds."""
    return f"../{kind.__name__.lower()}.schema.json"


def read(path: Path, kind: type) -> Any:
    """Return what a JSON file holds, as that type.

    Raises:
        ValueError: It does not hold that; the message names the file and the first field that is wrong.
    """
    try:
        return _parsed(path.read_text(encoding="utf-8"), kind)
    except ValidationError as error:
        raise ValueError(f"{path}: {first(error)}") from None
    except RecursionError:
        raise ValueError(f"{path}: its objects and lists are nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@lru_cache(maxsize=128)  # more than there are files: claims and cells ask for the same tables again and again
def _parsed(text: str, kind: type) -> Any:
    data = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    if isinstance(data, dict) and (found := data.pop("$schema", link(kind))) != link(kind):
        raise ValueError(f"$schema must be {link(kind)!r}, not {short(found)}")
    return TypeAdapter(kind).validate_json(json.dumps(data, allow_nan=False))


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    unique("an object", [name for name, _ in pairs])
    return dict(pairs)


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a number that JSON allows")


def unique(where: object, names: Sequence[str]) -> None:
    """Raise ValueError for a name that stands twice; `where` says in what."""
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{where} has {short(min(twice))} twice")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, objects field by field."""
    both = dict(base)
    for name, value in over.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both
