"""The format of the files in `expected/`, written out for editors: `python -m peft_dp.suite.papers.schema` renews it.

Each file names its schema in its first line, so that an editor completes and
checks it without settings. The schemas follow from the types that read the
files; nobody edits them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import TypeAdapter

from peft_dp import methods, registry
from peft_dp.suite.papers import reader
from peft_dp.suite.papers.claim import Claims
from peft_dp.suite.papers.fact import Facts
from peft_dp.suite.papers.protocol import Protocol
from peft_dp.suite.papers.reader import link
from peft_dp.suite.papers.recorded import Recorded
from peft_dp.suite.papers.table import Table


def schemas() -> dict[str, str]:
    """Name of a file in `expected/` -> the JSON Schema that it is to hold, as text."""
    kinds = (Table, Claims, Facts, Protocol, Recorded)
    return {link(kind).removeprefix("../"): json.dumps(_schema(kind), indent=1) + "\n" for kind in kinds}


def _schema(kind: type) -> dict[str, Any]:
    made = TypeAdapter(kind).json_schema()
    if kind is Table:
        _hold_to_methods(made["$defs"])
    for part in (made, *made["$defs"].values()):
        # pydantic gives a class its whole docstring; editors show what stands beside each property.
        says, _, attributes = part.get("description", "").partition("\n\nAttributes:\n")
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE):
            part["properties"][name]["description"] = " ".join(text.split())
        if says:
            part["description"] = says
    made["properties"] = {"$schema": {"const": link(kind)}} | made["properties"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | made


def _hold_to_methods(parts: dict[str, Any]) -> None:
    """Hold the settings of a row that names its method, and those of its tasks, to what the method takes."""
    parts["Spec"]["properties"]["method"]["enum"] = registry.names("methods")
    for part in ("Spec", "Row"):
        parts[part]["allOf"] = []
    for name in registry.names("methods"):
        # A row and its tasks set parts of it, which together are a whole one.
        taken = methods.load(name).Config.model_json_schema()
        taken.pop("required", None)
        parts[f"settings of {name}"] = taken | {"title": f"Settings of {name}"}
        config = {"properties": {"config": {"$ref": f"#/$defs/settings of {name}"}}}
        named = {"properties": {"method": {"const": name}}, "required": ["method"]}
        parts["Spec"]["allOf"].append({"if": named, "then": config})
        row = {"properties": {"spec": named}, "required": ["spec"]}
        parts["Row"]["allOf"].append({"if": row, "then": {"properties": {"tasks": {"additionalProperties": config}}}})


if __name__ == "__main__":
    for name, text in schemas().items():
        (reader.FOLDER / name).write_text(text, encoding="utf-8")
