"""A backbone's folder as people have it: what is odd in it is named in one sentence, and nothing trains on it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_dp import Places, Spec
from peft_dp.suite.cli.main import main
from peft_dp.suite.doctor.inputs import inputs
from peft_dp.training.job import build, find_sources
from peft_dp.validate import Missing

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 7\n"
NAME = "bert-base-cased"


def rename(change: Callable[[str], str | None]) -> Callable[[Path], None]:
    """Make what renames the weights of a folder; None drops one."""

    def renamed(folder: Path) -> None:
        file = folder / "model.safetensors"
        held = load_file(file)
        save_file({new: value for name, value in held.items() if (new := change(name))}, file)

    return renamed


def fill(value: float) -> Callable[[Path], None]:
    """Make what puts a value into one weight of a folder."""

    def filled(folder: Path) -> None:
        file = folder / "model.safetensors"
        held = load_file(file)
        held["embeddings.LayerNorm.bias"][0] = value
        save_file(held, file)

    return filled


def half(folder: Path) -> None:
    """Store the weights in bfloat16."""
    file = folder / "model.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    config(dtype="bfloat16")(folder)


def config(**fields: object) -> Callable[[Path], None]:
    """Make what sets fields of a folder's configuration."""

    def changed(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return changed


def text(name: str, content: str) -> Callable[[Path], None]:
    """Make what writes a file of a folder."""

    def written(folder: Path) -> None:
        (folder / name).write_text(content)

    return written


def cut(name: str) -> Callable[[Path], None]:
    """Make what cuts a file of a folder in two."""

    def shortened(folder: Path) -> None:
        held = (folder / name).read_bytes()
        (folder / name).write_bytes(held[: len(held) // 2])

    return shortened


def no_tokenizer(folder: Path) -> None:
    """Remove the tokenizer's files."""
    for pattern in ("tokenizer*", "vocab*"):
        for file in folder.glob(pattern):
            file.unlink()


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "prefix of torch.compile": (rename(lambda name: f"_orig_mod.{name}"), "embeddings.LayerNorm.bias and"),
    "prefix of DataParallel": (rename(lambda name: f"module.{name}"), "holds module.embeddings.LayerNorm.bias and"),
    "names of an adapter": (rename(lambda name: name.replace("query.", "query.base_layer.")), "encoder.layer.0"),
    "a weight missing": (
        rename(lambda name: None if name.endswith("0.output.dense.bias") else name),
        "encoder.layer.0",
    ),
    "not a number": (fill(float("nan")), "embeddings.LayerNorm.bias that are not finite"),
    "infinite": (fill(float("inf")), "embeddings.LayerNorm.bias that are not finite"),
    "another shape": (config(intermediate_size=64), "but config.json asks for"),
    "more layers asked for": (config(num_hidden_layers=3), "encoder.layer.2"),
    "weights a pointer": (text("model.safetensors", POINTER), "Git LFS pointer"),
    "weights cut": (cut("model.safetensors"), "model.safetensors cannot be loaded"),
    "weights empty": (text("model.safetensors", ""), "model.safetensors is empty"),
    "weights of another kind": (text("model.safetensors", "PK" + "x" * 99), "model.safetensors cannot be loaded"),
    "configuration a pointer": (text("config.json", POINTER), "config.json is a Git LFS pointer"),
    "configuration cut": (cut("config.json"), "config.json is not a JSON object"),
    "configuration a list": (text("config.json", "[]"), "config.json is not a JSON object"),
    "code of its own": (config(auto_map={"AutoModel": "evil.Evil"}), "config.json has auto_map"),
    "quantised": (config(quantization_config={"load_in_8bit": True}), "config.json has quantization_config"),
    "tokenizer missing": (no_tokenizer, "holds no tokenizer"),
    "tokenizer a pointer": (text("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
    "tokenizer cut": (cut("tokenizer.json"), "cannot be loaded"),
    "tokenizer of more words": (config(vocab_size=8), "but"),
    "another padding": (config(pad_token_id=3), "pads with 0, but the model with 3"),
    "few positions": (config(max_position_embeddings=4), "asks for (4, 16)"),
}
"""What is odd -> how to make it so, and a part of the sentence that says it."""


@pytest.fixture
def backbones(places: Places, tmp_path: Path) -> Path:
    """A copy of the tiny backbone's folder that a test may change."""
    assert places.backbones
    shutil.copytree(places.backbones, tmp_path / "backbones")
    return tmp_path / "backbones"


def attempt(backbones: Path, spec: Spec) -> str:
    """The sentence with which a run is refused before it trains."""
    with pytest.raises((ValueError, Missing)) as caught:
        build(spec, find_sources(spec, Places(backbones=backbones, device="cpu")))
    return str(caught.value)


@pytest.mark.parametrize("head", ["linear", "stock"])
@pytest.mark.parametrize("odd", ODD)
def test_refused(backbones: Path, spec: Callable[..., Spec], odd: str, head: str) -> None:
    """What a run cannot trust is named with its folder, in one line."""
    change, says = ODD[odd]
    change(backbones / NAME)
    said = attempt(backbones, spec(head=head))

    assert says in said
    assert str(backbones / NAME) in said
    assert "\n" not in said


@pytest.mark.parametrize("odd", ODD)
def test_doctor(backbones: Path, odd: str) -> None:
    """`doctor` says of a folder what a run would."""
    where = Places(backbones=backbones, device="cpu")
    (well,) = inputs([("weights", "bert")], where)
    change, says = ODD[odd]
    change(backbones / NAME)
    (ill,) = inputs([("weights", "bert")], where)

    assert ("ok", "missing") == (well.state, ill.state)
    assert says in ill.says
    assert str(backbones / NAME) in ill.says


def test_doctor_of_a_paper(backbones: Path) -> None:
    """A smaller model that stands for the real one is good for the embedded rows, and not for the papers'."""
    weights, shape = inputs([("weights", "bert"), ("shape", "bert")], Places(backbones=backbones, device="cpu"))

    assert ("ok", "missing") == (weights.state, shape.state)
    assert "config.json has" in shape.says


def test_too_long(backbones: Path, spec: Callable[..., Spec]) -> None:
    """Sentences of more tokens than the model has positions are named before anything trains."""
    from transformers import BertConfig, BertModel

    folder = backbones / NAME
    held = BertConfig(**json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 8})
    BertModel(held).save_pretrained(folder)
    said = attempt(backbones, spec())

    assert "has 8 positions, but the data has sentences of" in said


def test_taken(backbones: Path, spec: Callable[..., Spec]) -> None:
    """Weights without metadata, an index beside them, a named attention and bfloat16 are taken, as float32."""
    folder = backbones / NAME
    rename(lambda name: name)(folder)
    text("model.safetensors.index.json", '{"weight_map":{}}')(folder)
    config(attn_implementation="eager", _attn_implementation="flash_attention_2")(folder)
    half(folder)
    made = build(spec(), find_sources(spec(), Places(backbones=backbones, device="cpu")))

    assert {torch.float32} == {parameter.dtype for parameter in made.backbone.model.parameters()}


def test_a_changed_file_is_another_run(backbones: Path, spec: Callable[..., Spec]) -> None:
    """Files beside the weights count: a record made with others is not taken for this one."""
    where = Places(backbones=backbones, device="cpu")
    before = find_sources(spec(), where).files_sha256
    config(layer_norm_eps=1e-3)(backbones / NAME)

    assert before != find_sources(spec(), where).files_sha256


def test_a_changed_tokenizer_is_read_again(backbones: Path, spec: Callable[..., Spec]) -> None:
    """What one run tokenised is not taken for the next one's where the tokenizer has changed."""
    first = ids(backbones, spec())
    file = backbones / NAME / "tokenizer.json"
    held = json.loads(file.read_text())
    words = held["model"]["vocab"]
    words["the"], words["a"] = words["a"], words["the"]
    file.write_text(json.dumps(held))

    assert first != ids(backbones, spec())


def ids(backbones: Path, spec: Spec) -> list[Sequence[int]]:
    """The tokens of the training examples, with the weights loaded."""
    return list(build(spec, find_sources(spec, Places(backbones=backbones, device="cpu"))).train.ids)


FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


@pytest.mark.parametrize("name", FILES)
def test_damaged(backbones: Path, spec: Callable[..., Spec], name: str) -> None:
    """A file that is cut anywhere, emptied or gone is refused in one line that names it, or is not needed."""
    file, draw = backbones / NAME / name, random.Random(name)
    whole, tokens = file.read_bytes(), ids(backbones, spec())
    refused = []
    for held in [None, b"", *(whole[: draw.randrange(1, len(whole))] for _ in range(8))]:
        file.unlink() if held is None else file.write_bytes(held)
        try:
            found = ids(backbones, spec())
        except (ValueError, Missing) as error:
            refused.append(str(error))
        else:
            assert tokens == found

    assert refused
    assert all(str(backbones / NAME) in said and "\n" not in said for said in refused)
    assert len(refused) == 10 or name not in ("config.json", "model.safetensors")


def test_command_line(backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line says it in one line, with 2."""
    ODD["prefix of torch.compile"][0](backbones / NAME)
    words = ["run", "embedded/smoke/head/sentiment", "--backbone", "bert", "--backbones", str(backbones)]
    code = main([*words, "--records", str(tmp_path / "records"), "--device", "cpu"])

    assert 2 == code
    assert 1 == capsys.readouterr().err.count("\n")
