"""Rows of one's own files and of the hub's, read by `datasets`, each with the place that an error names.

Why a pass over the bytes first: what the readers behind `datasets` make of a damaged line is another row, or an error
without a line. Why no cache: theirs goes by a file's time stamp, and a changed file may keep it.
"""

from __future__ import annotations

import csv
import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from peft_dp import hub
from peft_dp.validate import short

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

SEPARATORS = {"csv": ",", "tsv": "\t"}
SPLITS = ("validation", "dev", "test")
"""What the scored split of a hub's data set may be called, the first that is there."""


@dataclass(frozen=True)
class Rows:
    """One split.

    Attributes:
        data: Its rows.
        name: What an error calls the whole.
        places: The place of each row, such as "line 7".
    """

    data: Dataset
    name: str
    places: Sequence[str]

    def where(self, row: int) -> str:
        """Return what an error calls a row, such as "train.csv, line 7"."""
        return f"{self.name}, {self.places[row]}"


def of_dataset(data: Dataset, name: str) -> Rows:
    """Return the rows of a data set in memory."""
    return Rows(data, name, [f"row {number}" for number in range(1, len(data) + 1)])


def of_file(kind: str, path: Path, content: bytes) -> Rows:
    """Return the rows of a file.

    Args:
        kind: "csv", "tsv", "json" (one object per line) or "parquet".
        path: The file.
        content: What it holds.

    Raises:
        ValueError: It is damaged; the message names the file and the line.
    """
    if kind == "parquet":
        return of_dataset(_load(path, "parquet"), str(path))
    text = _text(path, content)
    if not text.strip():
        raise ValueError(f"{path} is empty")
    if kind == "json":
        if content.startswith(BOM_UTF8):
            raise ValueError(f"{path} begins with a byte order mark, which JSON does not have: save it without")
        features, lines = _objects(path, text)
        data = _load(path, "json", features=features)
    else:
        header, lines = _separated(path, text, SEPARATORS[kind])
        if not lines:
            raise ValueError(f"{path} has no row below its header")
        features = _features(dict.fromkeys(header, ""))
        options = {"sep": SEPARATORS[kind], "keep_default_na": False, "na_filter": False, "encoding": "utf-8-sig"}
        data = _load(path, "csv", features=features, **options)
    if len(data) != len(lines):
        raise ValueError(f"{path} has {len(lines)} rows, but datasets read {len(data)}: write it anew, quoted plainly")
    return Rows(data, str(path), [f"line {line}" for line in lines])


def of_hub(repository: str, revision: str, config: str | None, split: str | None) -> tuple[Rows, Rows]:
    """Return the training and the scored rows of a data set of the hub at a commit, from the cache if it is there.

    Raises:
        Missing: That commit is neither in the cache nor to be had.
        ValueError: It has no such configuration or no such splits.
    """
    from datasets import load_dataset, load_dataset_builder
    from huggingface_hub import snapshot_download

    download = partial(snapshot_download, repository, repo_type="dataset", revision=revision)
    what = f"data set {repository} at {revision}"
    folder = hub.get(download, what, "fetch it on a machine that reaches the hub, and copy its cache (HF_HOME) here")
    try:
        with _quiet(), TemporaryDirectory() as cache:
            builder = load_dataset_builder(str(folder), config, cache_dir=cache)
            options = {"keep_default_na": False, "na_filter": False} if hasattr(builder.config, "na_filter") else {}
            found: DatasetDict = load_dataset(str(folder), config, cache_dir=cache, keep_in_memory=True, **options)
    except Exception as error:  # datasets raises many unrelated types
        raise ValueError(f"{what} cannot be read ({type(error).__name__}: {short(str(error))})") from None
    scored = [split] if split else [name for name in SPLITS if name in found]
    if "train" not in found or not scored or scored[0] not in found:
        raise ValueError(f"{what} has the splits {', '.join(found)}: it needs train, and the scored one by ?dev=NAME")
    train, dev = (of_dataset(found[name], f"{repository} {name}") for name in ("train", scored[0]))
    return train, dev


def _text(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line} is not UTF-8: save the file as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path}, line {line} holds a NUL character: take it out")
    return text


def _separated(path: Path, text: str, separator: str) -> tuple[list[str], list[int]]:
    """Return the header of separated values, and the line on which each row begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    lines: list[int] = []
    begins = 1
    try:
        for row in reader:
            if row and not header:
                header = row
                if len(set(header)) < len(header) or not all(header):
                    raise ValueError(f"{path}, line {begins} must name each column, and each once: {short(header)}")
            elif row:
                if len(row) != len(header):
                    says = f"has {len(row)} columns, not {len(header)}: put a text that holds {separator!r} in quotes"
                    raise ValueError(f"{path}, line {begins} {says}")
                lines.append(begins)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {begins} cannot be read ({error}): double a quote inside quotes") from None
    return header, lines


def _objects(path: Path, text: str) -> tuple[Features, list[int]]:
    """Return the types of the fields of JSON objects, one per line, and the line of each."""
    first: dict[str, Any] = {}
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}): write one object per line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is no object: write one per line, such as {{...}}")
        first = first or dict(row)
        for name in first.keys() ^ row.keys():
            lacks = "has" if name in row else "lacks"
            raise ValueError(f"{path}, line {number} {lacks} the field {short(name)}, other than the lines above it")
        for name, value in row.items():
            held = first[name]
            if isinstance(held, int) and isinstance(value, float) and not isinstance(held, bool):
                first[name] = value
            elif _kind(value) != _kind(held) and not (isinstance(held, float) and _kind(value) == "int"):
                says = f"has {short(value)} as {short(name)}, of another type than the lines above it"
                raise ValueError(f"{path}, line {number} {says}")
            elif isinstance(held, list) and not held:
                first[name] = value
        lines.append(number)
    return _features(first), lines


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "list"
    return "null" if value is None else type(value).__name__


def _features(values: dict[str, Any]) -> Features:
    """Return types for `datasets`, from a value of each field: with none given it takes "2020-01-01" for a time."""
    from datasets import Features, List, Value

    names = {str: "string", bool: "bool", int: "int64", float: "float64", type(None): "string"}

    def feature(name: str, value: object) -> Any:
        if isinstance(value, list):
            return List(feature(name, value[0]) if value else Value("string"))
        if type(value) not in names:
            raise ValueError(f"field {short(name)} holds {short(value)}: it must hold text, a number or a list of them")
        return Value(names[type(value)])

    return Features({name: feature(name, value) for name, value in values.items()})


def _load(path: Path, builder: str, **options: Any) -> Dataset:
    from datasets import load_dataset

    try:
        with _quiet(), TemporaryDirectory() as cache:
            files = {"train": str(path.absolute())}
            found: Dataset = load_dataset(
                builder, data_files=files, split="train", cache_dir=cache, keep_in_memory=True, **options
            )
    except Exception as error:  # datasets raises many unrelated types
        reason = short(str(error.__cause__ or error))
        raise ValueError(
            f"{path} cannot be read as {builder} ({reason}): it is damaged, or of another format"
        ) from None
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Draw no bars of `datasets`, which has one for each file."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
