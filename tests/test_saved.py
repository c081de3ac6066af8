"""Models that were kept: they predict what the run's record says, and whatever is wrong with their files is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from peft_dp import methods, registry, saved, tasks
from peft_dp.machine import Places
from peft_dp.runs import run
from peft_dp.spec import Privacy, Spec
from peft_dp.validate import Missing

TASKS = {"sentiment": {}, "paraphrase": {}, "similarity": {}, "entities": {"readout": "tokens"}}
KINDS = [name for name in TASKS if name in tasks.names()]


def texts(spec: Spec) -> list[str | tuple[str, str]]:
    """The dev examples of a spec, without their labels."""
    dev = tasks.load(spec.task).subset(spec.train, spec.dev).dev
    return [one.first if one.second is None else (one.first, one.second) for one in dev]


@pytest.mark.parametrize("method", registry.names("methods"))
def test_every_method(method: str, spec: Callable[..., Spec], places: Places, tmp_path: Path) -> None:
    """A model that is loaded again says of each dev example what the record says that it said."""
    example = methods.load(method).EXAMPLE
    readout = "mask" if method in ("slash", "warp", "jr_warp") else "cls"
    made = spec(method=method, config=json.loads(example.model_dump_json()), readout=readout)
    record = run(made, places, save=tmp_path / "model")
    model = saved.load_run(tmp_path / "model", places)
    assert record.trace

    labels = model.task.labels
    assert model.predict(texts(made)) == [labels[int(digit)] for digit in record.trace.answers]
    assert model.ledger is None


@pytest.mark.parametrize("task", KINDS)
def test_every_kind(task: str, spec: Callable[..., Spec], places: Places, tmp_path: Path) -> None:
    """Classes come back by name, scores as numbers, tags as one list for each text, with a tag for each word."""
    made = spec(task=task, **TASKS[task])
    run(made, places, save=tmp_path / "model")
    model = saved.load_run(tmp_path / "model", places)
    given = texts(made)
    found = model.predict(given)

    assert len(found) == len(given)
    if model.task.kind == "tokens":
        for text, tags in zip(given, found, strict=True):
            assert isinstance(text, str)
            assert len(tags) <= len(text.split(" "))
            assert set(tags) <= {*model.task.labels}
    elif model.task.labels:
        assert set(found) <= {*model.task.labels}
    else:
        assert all(isinstance(value, float) for value in found)


def test_what_is_kept(spec: Callable[..., Spec], places: Places, tmp_path: Path) -> None:
    """A kept model is small, its owner's alone, and holds no text of the data."""
    run(spec(method="lora", config={"rank": 2, "alpha": 4.0}), places, save=tmp_path / "model")
    files = {path.name: path for path in (tmp_path / "model").iterdir()}
    content = b"".join(path.read_bytes() for path in files.values())
    whole = (next(places.backbones.iterdir()) / "model.safetensors").stat().st_size if places.backbones else 0

    assert {*files} == {saved.TENSORS, saved.ABOUT}
    assert all(path.stat().st_mode & 0o077 == 0 for path in files.values())
    assert files[saved.TENSORS].stat().st_size < whole / 2
    assert not any(text.encode() in content for text in texts(spec()) if isinstance(text, str))


def test_refusals(spec: Callable[..., Spec], places: Places, tmp_path: Path) -> None:
    """A folder in use, seeded noise and a library's run are refused before anything trains."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    private = Privacy(epsilon=8.0, delta=0.01)

    with pytest.raises(ValueError, match="is not empty: choose a new folder"):
        run(spec(), places, save=tmp_path / "full")
    with pytest.raises(ValueError, match="who knows the seed of a noise can take it away"):
        run(spec(privacy=private), places, save=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    run(spec(privacy=private, secret=True), places, save=tmp_path / "new")
    ledger = saved.load_run(tmp_path / "new", places).ledger
    assert ledger
    assert ledger["noise"] == "secure"
    assert ledger["epsilon"] <= 8.0


def test_damage(spec: Callable[..., Spec], places: Places, tmp_path: Path) -> None:
    """A damaged file, other weights and a wrong text are named."""
    run(spec(), places, save=tmp_path / "model")
    model = saved.load_run(tmp_path / "model", places)
    tensors, about = tmp_path / "model" / saved.TENSORS, tmp_path / "model" / saved.ABOUT

    with pytest.raises(ValueError, match=r"text 1 is \('a', 'b'\), but the model learnt 'Sentiment.*', one text each"):
        model.predict([("a", "b")])
    with pytest.raises(ValueError, match="text 2 is empty"):
        model.predict(["a", " "])
    assert model.predict([]) == []
    content = about.read_text()
    about.write_text(content.replace(json.loads(content)["weights"], "0" * 64))
    with pytest.raises(ValueError, match=r"goes on bert with the hash 0000000000000000, but .* has "):
        saved.load_run(tmp_path / "model", places)
    about.write_text(content[:100])
    with pytest.raises(ValueError, match="holds no whole model"):
        saved.load_run(tmp_path / "model", places)
    about.write_text(content)
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not what was saved"):
        saved.load_run(tmp_path / "model", places)
    about.unlink()
    with pytest.raises(Missing, match=r"give a folder that `peft-dp run \.\.\. --save` wrote"):
        saved.load_run(tmp_path / "model", places)


def test_the_same_values(spec: Callable[..., Spec], places: Places, tmp_path: Path) -> None:
    """What was trained comes back bit for bit: keeping it once more writes the same tensors."""
    made = spec(method="slash", config={"size": 8})
    for name in ("one", "two"):
        run(made, places, save=tmp_path / name)
    one, two = (saved.load_run(tmp_path / name, places).backbone.tensors() for name in ("one", "two"))

    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
