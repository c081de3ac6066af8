"""What trains: one file per method, found by its name.

A method's file has two names:

- `Config`, a subclass of `Method` (`_base.py`). Its fields are the settings; a value of another type or out of range is
  refused, and the JSON Schema of the tables in `expected/` knows them. Its `install(backbone, rng)` changes the
  pretrained backbone, all frozen but the head, into one in which just what the method trains requires a gradient.
- `EXAMPLE`, a small valid `Config`, on which the contract tests run.

A method that does not start as the pretrained backbone says why in `starts_elsewhere`. A method that changes more than
what trains overrides hooks of `Method`, whose docstrings say what each may do: `phases` and `settled` (see
`gradual.py`), `begin_step`, `penalty` and `rates` (see `diff_pruning.py`), `release` (see `rgp.py`). A public name in
`Config` that is neither a setting nor a hook is refused, so that a misspelt hook does not pass unseen; the name of a
helper starts with an underscore.

To add a method: copy `bitfit.py`, change the two, and add a row to `expected/embedded/smoke.json`. Then renew the JSON
Schemas with `python -m peft_dp.suite.papers.schema`. Nothing else needs to know. What several methods share is in
`_common.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from types import ModuleType

from pydantic import ValidationError

from peft_dp import registry, validate
from peft_dp.methods._base import Method
from peft_dp.spec import first

__all__ = ["HOOKS", "Method", "load", "make"]

HOOKS = [name for name in vars(Method) if not name.startswith("_") and name not in ("model_config", "plain")]
"""What a `Config` may have besides its settings."""


def load(name: str) -> ModuleType:
    """Return the file of the method of that name.

    Raises:
        ValueError: No such method, or a name in its file that is taken for a hook and is none.
    """
    module = registry.load("methods", name)
    for found in vars(module).keys() & set(HOOKS):
        raise ValueError(f"methods/{name}.py: {found} is a hook, so it belongs into the class Config")
    if not issubclass(kind := getattr(module, "Config", object), Method):
        raise ValueError(f"methods/{name}.py: it has no class Config(Method)")
    for found in vars(kind):
        if not found.startswith("_") and found not in (*HOOKS, "model_config"):
            [closest] = get_close_matches(found, HOOKS, n=1, cutoff=0)
            raise ValueError(
                f"methods/{name}.py: Config.{found} is neither a setting nor a hook; the closest hook is {closest}, "
                "and a helper's name starts with an underscore"
            )
    return module


def make(name: str, settings: Mapping[str, object]) -> Method:
    """Return the method of that name with its settings, as JSON has them: a list stands for a tuple.

    Raises:
        ValueError: No such method, or a setting that it does not have, lacks or cannot take; names the file, the
            setting and the value.
    """
    kind: type[Method] = load(name).Config
    names = [field.alias or own for own, field in kind.model_fields.items()]
    for setting in settings:
        validate.known(f"setting of methods/{name}.py", setting, names)
    try:
        return kind.model_validate_json(json.dumps(settings, default=repr))
    except ValidationError as error:
        raise ValueError(f"methods/{name}.py: {first(error)}") from None
