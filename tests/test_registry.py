"""The folders as registries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import peft_dp
from peft_dp import methods, registry

PACKAGE = Path(peft_dp.__file__).parent


@pytest.mark.parametrize("kind", ["methods", "backbones"])
def test_names_are_files(kind: str) -> None:
    """The names are those of the files in the folder, sorted."""
    files = sorted(path.stem for path in (PACKAGE / kind).glob("*.py") if not path.stem.startswith("_"))

    assert files == registry.names(kind)


@pytest.mark.parametrize("kind", ["methods", "backbones"])
def test_names_import_no_entry(kind: str) -> None:
    """Listing names in a fresh process imports none of the entries."""
    code = (
        "import json, sys; from peft_dp import methods, registry; "
        f"names = registry.names({kind!r}); "
        f"print(json.dumps([names, [n for n in names if 'peft_dp.{kind}.' + n in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert [registry.names(kind), []] == json.loads(done.stdout)


@pytest.mark.parametrize("name", registry.names("methods"))
def test_methods(name: str) -> None:
    """A method's file has a `Config`, and an `EXAMPLE` of it."""
    method = methods.load(name)

    assert issubclass(method.Config, methods.Method)
    assert isinstance(method.EXAMPLE, method.Config)


@pytest.mark.parametrize("name", registry.names("backbones"))
def test_backbones(name: str) -> None:
    """A backbone's file pins its weights to a whole commit."""
    source = registry.load("backbones", name).SOURCE

    assert len(source.revision) == 40
    assert set(source.revision) <= set("0123456789abcdef")


@pytest.mark.parametrize("kind", ["methods", "backbones"])
@pytest.mark.parametrize("name", ["lorra", "__init__", "../spec", ""])
def test_unknown(kind: str, name: str) -> None:
    """A name that is no file's is answered with the list of those there are."""
    with pytest.raises(ValueError) as caught:
        registry.load(kind, name)

    assert f"unknown {kind[:-1]} {name!r}; known: {', '.join(registry.names(kind))}" == str(caught.value)
