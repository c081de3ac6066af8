"""One's own data as a task, without a line of Python: a spec names the files themselves.

`csv:train.csv,dev.csv`, and likewise `tsv:`, `json:` (one object per line) and `parquet:`; `hf:OWNER/NAME@COMMIT`, with
`/CONFIG` behind it where there are several. What is not found by itself follows a question mark, as in
`csv:a.csv,b.csv?first=review&label=stars&metric=mcc`. In Python a `datasets.Dataset` is a task too (`task`).

The content of the files is read each time anew, so that a changed file is another task whatever its time stamp says.
Equal rows have equal hashes in whatever format they come. Columns: `label` (or labels, tags, ner_tags, target, score,
class; else the last), and one column of text or two; columns called id, idx or index are left out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from peft_dp import registry, validate
from peft_dp.tasks import Data, Example, Kind, Task
from peft_dp.tasks._tags import begun
from peft_dp.validate import Missing, short

if TYPE_CHECKING:
    from datasets import Dataset

    from peft_dp.tasks._tables import Rows

FILES = ("csv", "json", "parquet", "tsv")
OPTIONS = ("dev", "first", "kind", "label", "metric", "second")
"""What may follow the question mark; `dev` is the scored split of a data set of the hub."""
LABELS = ("label", "labels", "tags", "ner_tags", "target", "score", "class")
NUMBERS = ("id", "idx", "index")
METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "mcc"),
    "regression": ("pearson", "spearman"),
    "tokens": ("entity_f1",),
}
"""Kind -> the metrics that score it, the usual one first."""
CLASSES = 150
"""Most classes of a task: a column with more different values is hardly a label."""

TASKS: dict[str, Task] = {}
"""Tasks made in Python, by name."""
_DATA: dict[str, Data] = {}


def task(name: str, train: Dataset, dev: Dataset, **options: str) -> Task:
    """Make data sets in memory a task of that name, for specs of this process.

    Args:
        name: Of letters, digits, _ and -.
        train: Examples to train on.
        dev: Examples to score, none of which is trained on.
        **options: What is not found by itself: the columns `first`, `second`, `label`; `kind`; `metric`.

    Raises:
        ValueError: The name is taken by a task of another source, or the rows are none of a task; names the row.
    """
    from peft_dp.tasks import names
    from peft_dp.tasks._tables import of_dataset

    validate.plain(name=name)
    if name in set(names()) - TASKS.keys():
        raise ValueError(f"task {name!r} is there already: give yours another name")
    for option in options:
        validate.known("option of a task", option, set(OPTIONS) - {"dev"})
    TASKS[name], _DATA[name] = _made(name, name, of_dataset(train, "train"), of_dataset(dev, "dev"), options)
    return TASKS[name]


def load(task: Task, folder: Path | None) -> Data:
    """Return the examples of a task that `task` made or that `read` found."""
    return _DATA[task.name] if task.name in TASKS else read(task.name)[1]


def read(address: str) -> tuple[Task, Data]:
    """Return the task that an address such as "csv:train.csv,dev.csv" names, and its examples.

    Raises:
        ValueError: The address is none, or a row is none; names the file and the line.
        Missing: A file is not there, or the hub does not give it.
    """
    kind, _, rest = address.partition(":")
    where, options = _options(rest)
    validate.known("kind of data", kind, (*FILES, "hf"))
    if kind == "hf":
        return _of_hub(address, where, tuple(options.items()))
    files = [_found(name) for name in where.split(",")]
    if len(files) != 2:
        raise ValueError(f"task {short(address)} must name two files, {kind}:TRAIN,DEV: one to train on, one to score")
    contents = [_content(path) for path in files]
    hashes = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    return _of_files(address, kind, (files[0], files[1]), hashes, tuple(options.items()))


def texts(file: str, *, pair: bool) -> list[str | tuple[str, str]]:
    """Return the texts, or pairs of texts, of a file such as "new.csv" or "new.jsonl?first=question&second=answer".

    A label's column may be there, and is not read.

    Raises:
        ValueError: A row is none, or the columns are not found by themselves; names the file and the line.
        Missing: The file is not there.
    """
    from peft_dp.tasks._tables import of_file

    name, options = _options(file)
    kind = {"jsonl": "json"}.get(Path(name).suffix[1:], Path(name).suffix[1:])
    validate.known("kind of data", kind, FILES)
    path = _found(name)
    rows = of_file(kind, path, _content(path))
    there = rows.data.column_names
    columns = [options[name] for name in ("first", "second") if name in options]
    columns = columns or [name for name in there if name not in LABELS and name.lower() not in NUMBERS]
    if len(columns) != 1 + pair or not set(columns) <= set(there):
        takes = (
            "a pair of texts: name it by ?first=COLUMN&second=COLUMN" if pair else "one text: name it by ?first=COLUMN"
        )
        raise ValueError(f"{path} has the columns {', '.join(there)}, and the model takes {takes}")
    held = [_texts(rows, column) for column in columns]
    return [*zip(*held, strict=True)] if pair else [*held[0]]


def _options(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands before the question mark, and the options behind it."""
    where, _, query = text.partition("?")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        validate.known("option of a task", name, OPTIONS)
        options[name] = value
    return where, options


def _found(name: str) -> Path:
    """Return a file: as it is named, or else in the folder of one's own tables."""
    path, tables = Path(name), registry.own_folder()
    return tables / path if tables and not path.exists() and (tables / path).exists() else path


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Missing(f"{path} is not there (looked for in {Path.cwd()}): name the file where it lies") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give a file") from None


@lru_cache(maxsize=8)  # the hashes of the contents are in the key
def _of_files(
    address: str, kind: str, files: tuple[Path, Path], hashes: tuple[str, ...], options: tuple[tuple[str, str], ...]
) -> tuple[Task, Data]:
    from peft_dp.tasks._tables import of_file

    train, dev = (of_file(kind, path, _content(path)) for path in files)
    return _made(address, files[0].stem, train, dev, dict(options))


@lru_cache(maxsize=8)
def _of_hub(address: str, where: str, options: tuple[tuple[str, str], ...]) -> tuple[Task, Data]:
    from peft_dp.tasks._tables import of_hub

    repository, _, rest = where.partition("@")
    revision, _, config = rest.partition("/")
    if len(revision) != 40 or set(revision) - set("0123456789abcdef"):
        how = f"hf:{repository}@COMMIT, with the 40 digits that `git ls-remote` or the page of its history shows"
        raise ValueError(f"task {short(address)} pins no commit, so its data may change: {how}")
    given = dict(options)
    train, dev = of_hub(repository, revision, config or None, given.get("dev"))
    return _made(address, repository.rpartition("/")[2], train, dev, given)


def _made(name: str, title: str, train: Rows, dev: Rows, options: Mapping[str, str]) -> tuple[Task, Data]:
    """Return a task and its examples, of rows."""
    columns = _columns(train, options)
    if lacking := [column for column in columns if column not in dev.data.column_names]:
        raise ValueError(f"{dev.name} has no column {short(lacking[0])}, which {train.name} has: give both the same")
    *texts, label = columns
    sentences = [[_texts(rows, text) for text in texts] for rows in (train, dev)]
    labels = [_labels(rows, label, words[0]) for rows, words in zip((train, dev), sentences, strict=True)]
    kind = _kind(labels[0], options.get("kind"), label)
    classes = _classes(train, label, labels[0], kind)
    train_examples, dev_examples = (
        _examples(rows, words, values, kind, classes)
        for rows, words, values in zip((train, dev), sentences, labels, strict=True)
    )
    made = _task(name, title, kind, classes, train_examples, dev_examples, options.get("metric"))
    return made, Data(train=train_examples, dev=dev_examples)


def _task(
    name: str,
    title: str,
    kind: Kind,
    classes: tuple[str, ...],
    train: Sequence[Example],
    dev: Sequence[Example],
    metric: str | None,
) -> Task:
    validate.known(f"metric of a {kind} task", metric or METRICS[kind][0], METRICS[kind])
    if metric == "f1" and len(classes) > 2:
        raise ValueError(f"metric 'f1' is of two classes, but the task has {len(classes)}: take accuracy or mcc")
    # 0.212 tokens per character, as counted of SST-2 and MRPC (`lengths`).
    pair = train[0].second is not None
    tokens = [2 + pair + 0.212 * len(one.first + (one.second or "")) for one in train]
    ones = fmean((max(one.label) > 0) if isinstance(one.label, tuple) else one.label == 1 for one in dev)
    return Task(
        name=name,
        title=title,
        kind=kind,
        labels=classes,
        metric=metric or METRICS[kind][0],
        pair=pair,
        train=len(train),
        dev=len(dev),
        tokens=fmean(tokens),
        log_deviation=pstdev([math.log(count) for count in tokens]),
        positive=min(max(ones, 0.001), 0.999) if kind != "regression" else None,
    )


def _columns(rows: Rows, options: Mapping[str, str]) -> list[str]:
    """Return the columns of the sentence or the two sentences, and of the label."""
    there = rows.data.column_names
    for option in ("first", "second", "label"):
        if option in options and options[option] not in there:
            raise ValueError(f"{rows.name} has no column {short(options[option])}, only {', '.join(there)}")
    if len(rows.data) == 0:
        raise ValueError(f"{rows.name} has no row")
    label = options.get("label") or next((name for name in LABELS if name in there), there[-1])
    named = [options[name] for name in ("first", "second") if name in options]
    texts = named or [name for name in there if name != label and name.lower() not in NUMBERS]
    if not 1 <= len(texts) <= 2:
        found = f"{rows.name} has the columns {', '.join(there)}; the label is {label}"
        raise ValueError(f"{found}: name the text by ?first=COLUMN, or a pair by ?first=COLUMN&second=COLUMN")
    return [*texts, label]


def _texts(rows: Rows, column: str) -> list[str]:
    """Return a column of text; of words in a list, joined by spaces."""
    found = []
    for number, value in enumerate(rows.data[column]):
        text = value
        if isinstance(value, list):
            for word in value:
                if not isinstance(word, str) or not word or " " in word:
                    says = f"has {short(word)} as a word in {column!r}: a word is text without a space"
                    raise ValueError(f"{rows.where(number)} {says}")
            text = " ".join(value)
        if not isinstance(text, str):
            raise ValueError(f"{rows.where(number)} has {short(value)} in {column!r}, which is no text: name columns")
        if not text.strip():
            raise ValueError(f"{rows.where(number)} has an empty text in {column!r}: fill it, or take the row out")
        found.append(text)
    return found


Label = str | tuple[str, ...]


def _labels(rows: Rows, column: str, words: Sequence[str]) -> list[Label]:
    """Return a column of labels as text, in which they are alike in all formats; the tags of a row as a tuple.

    Where every row has a tag, O or B-X or I-X, for each word, the column is one of tags.
    """
    feature = rows.data.features[column]
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    found: list[Label] = []
    for number, value in enumerate(rows.data[column]):
        parts = value if isinstance(value, list) else [value]
        texts = tuple(_plain(part, names) for part in parts)
        if None in texts or not texts:
            raise ValueError(f"{rows.where(number)} has {short(value)} in {column!r}: give it a label, or take it out")
        found.append(tuple(map(str, texts)) if isinstance(value, list) else str(texts[0]))
    split = [label if isinstance(label, tuple) else tuple(label.split(" ")) for label in found]
    if all(_tags(tags, text) for tags, text in zip(split, words, strict=True)):
        return [*split]
    for number, label in enumerate(found):
        if isinstance(label, tuple):
            count = len(words[number].split(" "))
            says = f"has {len(label)} tags for {count} words in {column!r}, or one that is not O, B-X or I-X"
            if not _tags(label, words[number]):
                raise ValueError(f"{rows.where(number)} {says}: {short(' '.join(label))}")
    return found


def _tags(tags: Sequence[str], text: str) -> bool:
    return len(tags) == len(text.split(" ")) and all(tag == "O" or tag[:2] in ("B-", "I-") for tag in tags)


def _plain(value: Any, names: Sequence[str] | None) -> str | None:
    """Return a label as text; None for one that is missing."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _number(text: Label) -> float | None:
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _kind(labels: Sequence[Label], asked: str | None, column: str) -> Kind:
    if asked is not None:
        validate.known("kind of task", asked, METRICS)
        kind: Kind = next(kind for kind in METRICS if kind == asked)
        if (kind == "tokens") != isinstance(labels[0], tuple):
            raise ValueError(f"kind {asked!r} does not fit the column {column!r}, which holds {short(labels[0])}")
        return kind
    if isinstance(labels[0], tuple):
        return "tokens"
    numbers = [_number(label) for label in labels]
    if None not in numbers and any("." in str(label) or "e" in str(label) for label in labels):
        return "regression"
    return "classification"


def _classes(rows: Rows, column: str, labels: Sequence[Label], kind: Kind) -> tuple[str, ...]:
    """Return the classes in their order: the data set's own, or else sorted, numbers by size; of tags O, then pairs."""
    if kind == "regression":
        return ()
    if kind == "tokens":
        types = sorted({tag[2:] for tags in labels for tag in tags if tag != "O"})
        return ("O", *(f"{begin}-{name}" for name in types for begin in "BI"))
    seen = {str(label) for label in labels}
    names = getattr(rows.data.features[column], "names", None) or sorted(seen, key=_in_order)
    if not 2 <= len(names) <= CLASSES:
        found = f"{rows.name} has {len(names)} different labels in {column!r}, where 2 to {CLASSES} make classes"
        raise ValueError(f"{found}: name the label's column by ?label=COLUMN, or say ?kind=regression")
    return tuple(names)


def _in_order(label: str) -> tuple[float, str]:
    number = _number(label)
    return (math.inf if number is None or math.isnan(number) else number), label


def _examples(
    rows: Rows, texts: Sequence[Sequence[str]], labels: Sequence[Label], kind: Kind, classes: Sequence[str]
) -> list[Example]:
    index = {name: number for number, name in enumerate(classes)}
    found = []
    for number, (label, *words) in enumerate(zip(labels, *texts, strict=True)):
        value: float | tuple[int, ...] | None
        if isinstance(label, tuple):
            value = begun([index[tag] for tag in label]) if index.keys() >= set(label) else None
        elif kind == "regression":
            value = _number(label)
            value = float(f"{value:.7g}") if value is not None and math.isfinite(value) else None
        else:
            value = index.get(label)
        if value is None:
            given = " ".join(label) if isinstance(label, tuple) else label
            known = short(", ".join(classes))[1:-1] or "a finite number"
            raise ValueError(f"{rows.where(number)} has the label {short(given)}; the training rows have: {known}")
        found.append(Example(words[0], words[1] if len(words) > 1 else None, value))
    return found
