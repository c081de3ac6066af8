"""Tokens kept on this machine: a file per data set, tokenizer and cut, which every process maps into its memory.

Why: to read and tokenise MNLI's 392,702 pairs takes half a minute in each process, and mapped pages are shared. Kept
are the tokens of tasks whose source tells its files: GLUE's, and nobody's own data.
Files lie in the folder PEFT_DP_CACHE names, else in `~/.cache/peft-dp`; any of them may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import safetensors.torch
from torch import Tensor, int8

from peft_dp import code, files
from peft_dp.models import tokens
from peft_dp.models.batch import Encoded, Ragged

SPLITS = ("train", "dev")


@dataclass(frozen=True)
class Kept:
    """The examples of a run.

    Attributes:
        data_sha256: Hash of the examples as text, see `tasks.Data`.
        train: Those that train.
        dev: Those that are scored.
    """

    data_sha256: str
    train: Encoded
    dev: Encoded


def key(source: str, held: Sequence[Path], *settings: object) -> str:
    """Return what a file of tokens is found by: the hash of all that the tokens follow from.

    Args:
        source: The module that reads the data.
        held: The files that it reads.
        settings: All else, each as it prints.
    """
    own = code.files(tokens.__name__.partition(".")[2], source.partition(".")[2])
    contents = [_sha256(path, path.stat().st_mtime_ns) for path in (*held, *own)]
    return hashlib.sha256(json.dumps([contents, [str(one) for one in settings]]).encode()).hexdigest()


@lru_cache(maxsize=2)
def find(key: str) -> Kept | None:
    """Return the examples that are kept under a key, mapped; None if none are, or what is there is damaged."""
    try:
        with safetensors.safe_open(_path(key), "pt") as file:
            told, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return None
    if not told or told.get("content") != _content(tensors):
        return None
    splits = {
        split: Encoded(
            Ragged(tensors[f"{split}/ids"], tensors[f"{split}/starts"]),
            Ragged(tensors[f"{split}/types"], tensors[f"{split}/starts"]),
            tensors[f"{split}/labels"],
            int(told["pad"]),
            reads=tensors[f"{split}/reads"].tolist() if f"{split}/reads" in tensors else None,
        )
        for split in SPLITS
    }
    return Kept(told["data"], **splits)


def keep(key: str, kept: Kept) -> None:
    """Write examples for the processes to come; where that cannot be, they tokenise again."""
    tensors: dict[str, Tensor] = {}
    for split, data in zip(SPLITS, (kept.train, kept.dev), strict=True):
        assert isinstance(data.ids, Ragged)
        assert isinstance(data.types, Ragged)
        tensors |= {f"{split}/ids": data.ids.values, f"{split}/starts": data.ids.starts}
        tensors |= {f"{split}/types": data.types.values.to(int8), f"{split}/labels": data.labels}
        if data.reads is not None:
            tensors[f"{split}/reads"] = data.ids.starts.new_tensor(data.reads)
    told = {"data": kept.data_sha256, "pad": str(kept.train.pad), "content": _content(tensors)}
    with suppress(OSError):
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        files.write(_path(key), safetensors.torch.save(tensors, told))
    find.cache_clear()


def _path(key: str) -> Path:
    folder = os.environ.get("PEFT_DP_CACHE") or Path.home() / ".cache" / "peft-dp"
    return Path(folder) / f"tokens-{key[:32]}.safetensors"


def _content(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)} ".encode())
        digest.update(tensors[name].numpy().reshape(-1).data)
    return digest.hexdigest()


@cache
def _sha256(path: Path, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
