"""A trained model on disk: what training changed and what made it, and predictions by it.

A folder has `model.safetensors`, the tensors that are not the pretrained backbone's, and `peft-dp.json`: the spec, the
task with its classes, the hash of the weights that it goes on, and, of a private run, the ledger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors

from peft_dp import files, methods, registry
from peft_dp.machine import Places
from peft_dp.measuring import scores
from peft_dp.models.backbone import Backbone
from peft_dp.models.batch import IGNORED
from peft_dp.models.source import Random
from peft_dp.models.tokens import encode
from peft_dp.privacy.plan import calibrate
from peft_dp.spec import Spec, first, from_json, to_json
from peft_dp.tasks import Example, Task
from peft_dp.training.job import LOSSES, Job, Sources, find_device, find_files, installed
from peft_dp.validate import Missing, short

TENSORS, ABOUT = "model.safetensors", "peft-dp.json"
_TASK = TypeAdapter(Task)


def check_folder(folder: Path) -> None:
    """Raise ValueError where a model cannot be kept; to be called before it trains."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty: choose a new folder for the model")
        files.write(folder / ABOUT, "")
        (folder / ABOUT).unlink()
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from None


def save(job: Job, sources: Sources, ledger: Mapping[str, Any] | None, folder: Path) -> None:
    """Write a trained job. The files are their owner's alone, and hold no example."""
    spec = job.spec
    # Under another seed all that is drawn differs: what is equal is the pretrained backbone's.
    other = _arranged(spec.seeded(spec.seed + 1), sources.files, job.task)
    initial = other.tensors()
    kept = {}
    for name, value in job.backbone.tensors().items():
        value = value.detach().cpu().contiguous()
        if name not in initial or not torch.equal(value, initial[name]):
            kept[name] = value
    content = write_tensors(kept)
    about = {
        "spec": to_json(spec),
        "task": asdict(job.task),
        "weights": sources.weights_sha256,
        "ledger": ledger,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    files.write(folder / TENSORS, content, mode=0o600)
    files.write(folder / ABOUT, json.dumps(about, indent=1) + "\n", mode=0o600)


@dataclass(frozen=True)
class Model:
    """A trained model.

    Attributes:
        spec: The run that made it.
        task: What it learnt, with its classes.
        backbone: The model itself, `backbone.model`, with the method in place.
        files: Where the backbone's tokenizer is.
        ledger: What the training spent of its privacy; None without privacy.
    """

    spec: Spec
    task: Task
    backbone: Backbone
    files: Path | Random
    ledger: dict[str, Any] | None

    def predict(self, texts: Sequence[str | tuple[str, str]]) -> list[Any]:
        """Return for each text, or pair of texts, its class, its score, or a list of the tags of its words.

        Raises:
            ValueError: A pair where the model takes one text, or the other way round, or an empty text.
        """
        examples = [self._example(number, text) for number, text in enumerate(texts, 1)]
        if not examples:
            return []
        spec = replace(self.spec, privacy=None, secret=False, batch=1)
        encoded = encode(examples, self.task, self.files, spec.max_length, spec.readout)
        device = str(next(self.backbone.model.parameters()).device.type)
        job = Job(
            spec=spec,
            task=self.task,
            plan=calibrate(spec, len(examples)),
            method=methods.make(spec.method, spec.config),
            backbone=self.backbone,
            train=encoded,
            dev=encoded,
            device=device,
            packed=self.backbone.packs,
            loss=LOSSES[self.task.kind],
        )
        found, labels = scores.by_example(job), self.task.labels
        if self.task.kind == "tokens":
            tagged = [row != IGNORED for row in encoded.labels]
            return [
                [labels[tag] for tag, is_word in zip(row, words.tolist(), strict=False) if is_word]
                for row, words in zip(found, tagged, strict=True)
            ]
        return [labels[value] for value in found] if labels else found

    def _example(self, number: int, text: str | tuple[str, str]) -> Example:
        parts = (text,) if isinstance(text, str) else tuple(text)
        if len(parts) != 1 + self.task.pair:
            takes = "a pair of texts" if self.task.pair else "one text"
            raise ValueError(f"text {number} is {short(text)}, but the model learnt {self.task.title!r}, {takes} each")
        if not all(part.strip() for part in parts):
            raise ValueError(f"text {number} is empty: leave it out")
        label = (0,) * len(parts[0].split(" ")) if self.task.kind == "tokens" else 0
        return Example(parts[0], parts[1] if self.task.pair else None, label)


def load_run(folder: Path, places: Places | None = None) -> Model:
    """Return the model that `peft-dp run --save` wrote.

    Raises:
        ValueError: A file is damaged, or belongs to other weights than are here.
        Missing: There is no model, or this machine lacks the backbone.
    """
    places = places or Places()
    if not (folder / ABOUT).is_file():
        raise Missing(f"{folder} holds no {ABOUT}: give a folder that `peft-dp run ... --save` wrote")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        spec = from_json(about["spec"], str(folder / ABOUT))
        task = _TASK.validate_python(about["task"] | {"labels": tuple(about["task"]["labels"])})
        weights, sha256, ledger = about["weights"], about["sha256"], about["ledger"]
        content = (folder / TENSORS).read_bytes()
    except ValidationError as error:
        raise ValueError(f"{folder / ABOUT}: {first(error)}") from None
    except (KeyError, TypeError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no whole model ({type(error).__name__}: {error}): save it again") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{folder / TENSORS} is not what was saved (its hash differs): save it again")
    found, held, _ = find_files(spec, registry.load("backbones", spec.backbone), places.backbones)
    if held != weights:
        where = f"{folder} goes on {spec.backbone} with the hash {weights[:16]}"
        raise ValueError(f"{where}, but {found} has {held[:16]}: give the files that it was trained on by --backbones")
    backbone = _arranged(spec, found, task)
    backbone.fill(read_tensors(content))
    backbone.to(find_device(spec, places.device))
    return Model(spec, task, backbone, found, ledger)


def _arranged(spec: Spec, found: Path | Random, task: Task) -> Backbone:
    """Return a backbone as the last phase has it, with the values from before the first step."""
    method = methods.make(spec.method, spec.config)
    backbone = installed(spec, found, registry.load("backbones", spec.backbone).FAMILY, task, method)
    for _ in method.phases(backbone, spec.epochs):
        pass
    return backbone
