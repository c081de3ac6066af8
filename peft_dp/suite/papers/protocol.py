"""Where each setting of a row comes from: the paper's text, with section and value, or this project, with its reason.

Three levels say so, field by field: `expected/<paper>/protocol.json` what the tables of a paper share, a table what its
rows share, a row the rest. A higher level replaces what a lower one says of a field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from typing import Any

from pydantic.dataclasses import dataclass

from peft_dp import methods
from peft_dp.spec import STRICT, Optimiser, Privacy, Spec, to_json
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.reader import read
from peft_dp.validate import short

APART = ("budget", "seed", "reuse", "precision", "weights", "implementation", "secret")
"""Fields of `Spec` that are no paper's to state: how this project spends work, draws and computes."""
PARTS = {"privacy": Privacy, "optimiser": Optimiser}
NAMES = {f.name for f in fields(Spec)} - {*APART, *PARTS, "config"} | {
    f"{part}.{f.name}" for part, kind in PARTS.items() for f in fields(kind)
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stated:
    """Where a paper states a setting.

    Attributes:
        section: "abstract", "3.1", "B.3", "Table 10", "Figure 1".
        printed: The value as printed there, a number or a name; where rows or tasks differ, value -> as printed. Of a
            value that is not among them nothing is said.
    """

    section: str
    printed: str | dict[str, str]

    def of(self, value: object) -> Stated | None:
        """Return where that value is stated, with its one printed form; None where it is not."""
        if isinstance(self.printed, str):
            return self
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # written 8 or 8.0
        text = value if isinstance(value, str) else json.dumps(value)
        return Stated(section=self.section, printed=self.printed[text]) if text in self.printed else None

    def __str__(self) -> str:
        """Return it as `show` prints it."""
        return f"{self.printed} ({'section ' * self.section[:1].isdigit()}{self.section})"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Origins:
    """What one level says of where settings come from; a name is that of a field, such as "optimiser.rate".

    Attributes:
        stated: Field -> where the paper states it.
        assumed: Field -> why it is what it is, where the paper does not state it.
    """

    stated: dict[str, Stated] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in [*self.stated, *self.assumed]:
            if name not in NAMES and not re.fullmatch(r"config\.[a-z_]+", name):
                raise ValueError(f"{short(name)} is no field of a spec that a paper states or leaves open")
        for name in self.stated.keys() & self.assumed.keys():
            raise ValueError(f"{short(name)} is both stated and assumed")
        for name, reason in self.assumed.items():
            if not reason:
                raise ValueError(f"{short(name)} is assumed without a reason")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Protocol(Origins):
    """What the tables of a paper share.

    Attributes:
        source: The paper.
        stated: Field -> where the paper states it.
        assumed: Field -> why it is what it is, where the paper does not state it.
    """

    source: str


def read_protocol(paper: str) -> Origins:
    """Return what the tables of a paper share; nothing where it has no such file.

    Raises:
        ValueError: A file that does not hold that; the message names it and the field.
    """
    path = reader.home(paper) / paper / "protocol.json"
    found: Origins = read(path, Protocol) if path.is_file() else Origins()
    return found


def settings(spec: Spec) -> dict[str, Any]:
    """Return each field that determines a run and that a paper could state, defaults included: name -> value."""
    found = {name: value for name, value in to_json(spec).items() if name not in APART}
    found["config"] = methods.make(spec.method, spec.config).model_dump(mode="json")
    if spec.privacy is None:
        del found["privacy"]
    parts = [name for name in (*PARTS, "config") if name in found]
    inner = {f"{part}.{name}": value for part in parts for name, value in found[part].items()}
    return {name: value for name, value in found.items() if name not in parts} | inner


def origins(levels: Iterable[Origins], given: Mapping[str, Any]) -> dict[str, Stated | str]:
    """Return field -> where it is stated, or why it is assumed; a field of which no level speaks is left out.

    Args:
        levels: Lowest first.
        given: Field -> value, as `settings` gives them.
    """
    found: dict[str, Stated | str] = {}
    for level in levels:
        for name, value in given.items():
            said = level.assumed.get(name) or (level.stated[name].of(value) if name in level.stated else None)
            if said:
                found[name] = said
    return {name: found[name] for name in given if name in found}
