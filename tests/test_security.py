"""What must never happen: code from data, weights that nobody checked, a file outside the folders given."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

import peft_dp
from peft_dp import Places, Record, Spec, registry
from peft_dp.models import source
from peft_dp.records import Records, read
from peft_dp.tasks import glue
from peft_dp.training import job
from peft_dp.training.job import build, find_sources

Make = Callable[..., Spec]

ROOT = Path(peft_dp.__file__).parents[1]
FILES = sorted([*ROOT.glob("peft_dp/**/*.py"), *ROOT.glob("bench/**/*.py"), ROOT / "conftest.py"])
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy", "code"}
"""They run what they read."""
BUILT_IN = {"eval", "exec", "compile", "__import__"}
CALLS = {"load_checkpoint", "system", "popen", "unsafe_load", "full_load"}
"""Functions and methods that run text, or unpickle."""
LOADERS = {"torch", "yaml", "np", "numpy", "pd", "joblib"}
"""Modules whose `load` (pandas' `read_pickle`) may unpickle."""
OPTIONS = {"allow_pickle", "trust_remote_code", "shell"}


def unsafe(source: str) -> Iterator[str]:
    """What a source file does that may run code out of data, or what a shell makes of text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            yield from (f"{node.module}.{alias.name}" for alias in node.names if module in MODULES)
            yield from (f"{module}.{alias.name}" for alias in node.names if (module, alias.name) == ("torch", "load"))
        elif isinstance(node, ast.Call):
            called = node.func
            name = (
                called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            )
            owner = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
            if owner in LOADERS and name in ("load", "read_pickle"):
                yield f"{owner}.{name}"
            elif name in CALLS or (isinstance(called, ast.Name) and name in BUILT_IN):
                yield name
        if isinstance(node, ast.keyword | ast.Dict):
            yield from (name for name, value in options(node) if name in OPTIONS and value is not False)


def options(node: ast.keyword | ast.Dict) -> Iterator[tuple[Any, Any]]:
    """Names and constant values that a call is given, or a dict holds; a value that is computed is None."""
    pairs = (
        [(ast.Constant(node.arg), node.value)]
        if isinstance(node, ast.keyword)
        else zip(node.keys, node.values, strict=True)
    )
    for name, value in pairs:
        if isinstance(name, ast.Constant):
            yield name.value, value.value if isinstance(value, ast.Constant) else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_from_data(path: Path) -> None:
    """Nothing unpickles, runs text, calls a shell, or lets a model bring its own code."""
    assert not list(unsafe(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import joblib",
        "torch.load(path)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=asked)",
        "options = {'trust_remote_code': True}",
        "engine.load_checkpoint(path=path)",
    ],
)
def test_sees_each(source: str) -> None:
    """The test above sees each way to do so."""
    assert list(unsafe(source))


@pytest.fixture
def model(places: Places, tmp_path: Path) -> Path:
    """The folder of a tiny model of its own, under `tmp_path`."""
    assert places.backbones
    shutil.copytree(places.backbones, tmp_path / "backbones")
    return tmp_path / "backbones" / "bert-base-cased"


def edit(file: Path, **fields: object) -> None:
    """Sets fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def at(model: Path) -> Places:
    """Places with that model."""
    return Places(backbones=model.parent, device="cpu")


def put_canary(model: Path) -> Path:
    """Puts a module beside the model that would write a file, and names it for every class; gives the file."""
    mark = model / "was-run"
    classes = "\n".join(f"class {name}: pass" for name in ("Config", "Model", "Tokenizer"))
    (model / "canary.py").write_text(f"open({str(mark)!r}, 'w').close()\n{classes}\n")
    kinds = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification")
    own = {"AutoConfig": "canary.Config"} | dict.fromkeys(kinds, "canary.Model")
    edit(model / "config.json", auto_map=own)
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["canary.Tokenizer", "canary.Tokenizer"]})
    return mark


@pytest.mark.parametrize("kind", ["bert", "canary"])
def test_remote_code(kind: str, model: Path, spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that names code of its own is refused, whether transformers knows the model or not; nobody is asked."""
    mark = put_canary(model)
    edit(model / "config.json", model_type=kind)
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("a question was asked"))
    with pytest.raises(ValueError) as caught:
        find_sources(spec(), at(model))

    assert str(caught.value).startswith(f"{model / 'config.json'} has auto_map")
    assert not mark.exists()


def test_remote_code_of_a_tokenizer(model: Path, spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer's own code is not run and nobody is asked about it."""
    mark = put_canary(model)
    edit(model / "config.json", auto_map={})
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("a question was asked"))
    build(spec(), find_sources(spec(), at(model)))

    assert not mark.exists()


def test_adapter_beside_a_model(model: Path, spec: Make) -> None:
    """An adapter's file in the folder, by which transformers loads another model, is refused."""
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds adapter_config.json, which is no part of google-bert/bert-base-cased"):
        find_sources(spec(), at(model))


def test_pickled_weights(model: Path, spec: Make) -> None:
    """Weights in a pickle are not taken where the safetensors are missing, nor opened where they are there."""
    torch.save({}, model / "pytorch_model.bin")
    build(spec(), find_sources(spec(), at(model)))
    (model / "model.safetensors").unlink()
    with pytest.raises(
        peft_dp.validate.Missing, match=re.escape("holds no model.safetensors, and pytorch_model.bin is not read")
    ):
        find_sources(spec(), at(model))


def test_flipped_bit(model: Path, spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of the weights that is another than at the pinned hash ends it before they are loaded."""
    file = model / "model.safetensors"
    module = registry.load("backbones", "bert")
    pinned = source.file_sha256(file, 0)
    monkeypatch.setattr(module, "SOURCE", replace(module.SOURCE, sha256=pinned))
    assert find_sources(spec(), at(model)).weights_sha256 == pinned
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(job, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="fetch the file again"):
        build(spec(), find_sources(spec(), at(model)))


def test_data_is_pinned() -> None:
    """GLUE comes from one commit of the hub, as backbones do."""
    assert re.fullmatch("[0-9a-f]{40}", glue.REVISION)


@pytest.mark.parametrize("field", ["method", "task", "backbone"])
@pytest.mark.parametrize("name", ["../../up", "/etc/up", "a/b", "..", "", "a\0b", "a\nb", "a b"])
def test_no_way_out(field: str, name: str, spec: Make, tmp_path: Path) -> None:
    """A record whose spec has a path for a name is none, so that no file is named after it."""
    file = tmp_path / "hostile.json"
    file.write_bytes(TypeAdapter(Record).dump_json(_record(spec())))
    edit(file, spec=json.loads(file.read_text())["spec"] | {field: name})
    with pytest.raises(ValueError) as caught:
        read(file)

    assert f"{field} must be made of letters, digits, _ and -, not {name!r}" in str(caught.value)
    with pytest.raises(ValueError, match="must be made of"):
        spec(**{field: name})


@pytest.mark.parametrize("key", ["../../../../up" + "0" * 50, "0" * 63, "G" * 64, ""])
def test_no_way_out_by_key(key: str, spec: Make, tmp_path: Path) -> None:
    """Nor is one whose key is no hash."""
    with pytest.raises(ValueError, match="key must be a SHA-256"):
        Records(tmp_path / "records").save(replace(_record(spec()), key=key))


def _record(spec: Spec) -> Record:
    return Record(
        key="0" * 64, spec=spec, values={}, ledger=None, trail=[], cost={}, sources={}, environment={"date": "2026"}
    )


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 16), ("vocab_size", 21), ("num_hidden_layers", 2), ("model_type", "roberta")]
)
def test_other_shape(field: str, value: object, model: Path, spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper budget takes a model of the paper's own shape alone; another names the field and both values."""
    monkeypatch.setattr(job, "find_device", lambda *_: "cpu")
    published = registry.load("backbones", "bert").CONFIG
    edit(model / "config.json", **(published | {field: value}))
    with pytest.raises(ValueError) as caught:
        find_sources(spec(budget="paper"), at(model))

    difference = f"{field} {value!r}, but the backbone has {published[field]!r}: give the backbone's files"
    assert f"{model / 'config.json'} has {difference}" == str(caught.value)


def test_right_shape(model: Path, spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes that shape; smaller budgets take any of the same family."""
    assert find_sources(spec(), at(model))
    monkeypatch.setattr(job, "find_device", lambda *_: "cpu")
    edit(model / "config.json", **registry.load("backbones", "bert").CONFIG)

    assert find_sources(spec(budget="paper"), at(model))


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"[" * 100_000, b'{"model_type": '])
def test_damaged_shape(content: bytes, model: Path, spec: Make) -> None:
    """A config.json that holds no object is refused by name."""
    (model / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{model / 'config.json'} is not a JSON object")):
        find_sources(spec(), at(model))
