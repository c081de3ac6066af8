"""The nine GLUE tasks, from official TSV files, from parquet files, or from the hub (Wang et al. 2018).

QQP is scored by F1 or by accuracy, since papers print either.

A folder may hold the official layout (`MRPC/train.tsv`) or the hub's
(`mrpc/train-00000-of-00001.parquet`). Without a folder the hub's files, at a
pinned commit, come from its local cache or are fetched once. Parquet is read
as a `datasets.Dataset`; the official TSV has no quoting, which no reader of
theirs takes as it stands. Every file must have the official number of rows.

Why only QQP may have holes: its first archive has rows broken over several
lines and two empty questions. The hub leaves the broken rows out and this
module does the same; the number of rows shows that nothing else went missing.
A copy of MRPC without the training pair 2750203/2750153 circulates widely and
is taken too; its data hash, which every record keeps, tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peft_dp import hub
from peft_dp.tasks import Data, Example, Kind, Task
from peft_dp.validate import Missing, short

REPOSITORY = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


@dataclass(frozen=True)
class Layout:
    """Where a task's examples stand in its files.

    Attributes:
        folder: Folder of the official files.
        config: Folder of the hub's files.
        columns: TSV columns of the one or two sentences.
        label: TSV column of the label; it is `label` in parquet.
        also: Number of training rows of another copy that circulates; 0 for none.
        fields: Parquet columns of the sentences where they are not `columns`.
        dev: What follows `dev` and `validation` in file names.
        header: Column names of a TSV without a first line of names.
        holes: Whether the official files have broken rows and empty sentences.
    """

    folder: str
    config: str
    columns: tuple[str, ...]
    label: str
    also: int = 0
    fields: tuple[str, ...] = ()
    dev: str = ""
    header: tuple[str, ...] = ()
    holes: bool = False


_ONE = ("sentence",)
_TWO = ("sentence1", "sentence2")
_MRPC = ("#1 String", "#2 String")
_QQP = ("question1", "question2")
_MNLI = ("premise", "hypothesis")
_COLA = ("source", "label", "star", "sentence")

LAYOUTS = {
    "cola": Layout("CoLA", "cola", _ONE, "label", header=_COLA),
    "sst2": Layout("SST-2", "sst2", _ONE, "label"),
    "mrpc": Layout("MRPC", "mrpc", _MRPC, "Quality", also=3667, fields=_TWO),
    "qqp": Layout("QQP", "qqp", _QQP, "is_duplicate", holes=True),
    "stsb": Layout("STS-B", "stsb", _TWO, "score"),
    "mnli": Layout("MNLI", "mnli", _TWO, "gold_label", fields=_MNLI, dev="_matched"),
    "mnli-mm": Layout("MNLI", "mnli", _TWO, "gold_label", fields=_MNLI, dev="_mismatched"),
    "qnli": Layout("QNLI", "qnli", ("question", "sentence"), "label"),
    "rte": Layout("RTE", "rte", _TWO, "label"),
    "wnli": Layout("WNLI", "wnli", _TWO, "label"),
}
LAYOUTS["qqp-accuracy"] = LAYOUTS["qqp"]

_ACCEPTABLE = "unacceptable acceptable"
_ENTAILED = "entailment not_entailment"
_EQUIVALENT = "not_equivalent equivalent"
_DUPLICATE = "not_duplicate duplicate"
_RELATION = "entailment neutral contradiction"


def _task(
    name: str,
    title: str,
    metric: str,
    labels: str,
    rows: tuple[int, int],
    tokens: tuple[float, float],
    positive: float | None = None,
) -> Task:
    """Return a task from its official numbers of rows, and the mean and log deviation of its numbers of tokens."""
    kind: Kind = "classification" if labels else "regression"
    return Task(
        public=True,
        name=name,
        title=title,
        kind=kind,
        labels=tuple(labels.split()),
        metric=metric,
        pair=len(LAYOUTS[name].columns) == 2,
        train=rows[0],
        dev=rows[1],
        tokens=tokens[0],
        log_deviation=tokens[1],
        positive=positive,
        hub=(REPOSITORY, REVISION),
    )


# Tokens of CoLA, SST-2, MRPC and RTE are counted on the training examples; the others are estimates, as in `lengths`.
_TASKS = (
    _task("cola", "CoLA", "mcc", _ACCEPTABLE, (8551, 1043), (11.3, 0.33), 0.69),
    _task("sst2", "SST-2", "accuracy", "negative positive", (67349, 872), (13.2, 0.67)),
    _task("mrpc", "MRPC", "f1", _EQUIVALENT, (3668, 408), (53.2, 0.26), 0.684),
    _task("qqp", "QQP", "f1", _DUPLICATE, (363846, 40430), (28.4, 0.45), 0.368),
    _task("qqp-accuracy", "QQP, accuracy", "accuracy", _DUPLICATE, (363846, 40430), (28.4, 0.45)),
    _task("stsb", "STS-B", "pearson", "", (5749, 1500), (31.0, 0.45)),
    _task("mnli", "MNLI", "accuracy", _RELATION, (392702, 9815), (39.2, 0.45)),
    _task("mnli-mm", "MNLI-mm", "accuracy", _RELATION, (392702, 9832), (39.2, 0.45)),
    _task("qnli", "QNLI", "accuracy", _ENTAILED, (104743, 5463), (50.6, 0.45)),
    _task("rte", "RTE", "accuracy", _ENTAILED, (2490, 277), (70.2, 0.52)),
    _task("wnli", "WNLI", "accuracy", "not_entailment entailment", (635, 71), (37.0, 0.30)),
)
TASKS = {task.name: task for task in _TASKS}


def load(task: Task, folder: Path | None) -> Data:
    """Return all examples of a task, from `folder` or from the hub.

    Raises:
        ValueError: A file is not the official one.
        Missing: `folder` lacks a file, or the hub is out of reach.
    """
    train, dev = files(task, folder)
    return Data(_read(task, train, task.train, LAYOUTS[task.name].also), _read(task, dev, task.dev))


def files(task: Task, folder: Path | None) -> tuple[Path, Path]:
    """Return the files of the training and of the scored examples of a task, in `folder` or the hub's cache.

    Raises:
        Missing: `folder` lacks one, or the hub is out of reach.
    """
    layout = LAYOUTS[task.name]
    find = partial(_local, folder) if folder else _hub
    return find(layout, "train.tsv", "train"), find(layout, f"dev{layout.dev}.tsv", f"validation{layout.dev}")


def _local(folder: Path, layout: Layout, tsv: str, split: str) -> Path:
    official = folder / layout.folder / tsv
    shards = sorted((folder / layout.config).glob(f"{split}-*.parquet"))
    if not official.is_file() and len(shards) != 1:
        raise Missing(
            f"neither {official} nor one {folder / layout.config / split}-*.parquet is there: put the official GLUE "
            f"files in {folder}, or leave out --peft-data on a machine that reaches the hub"
        )
    return official if official.is_file() else shards[0]


def _hub(layout: Layout, tsv: str, split: str) -> Path:
    from huggingface_hub import hf_hub_download

    name = f"{layout.config}/{split}-00000-of-00001.parquet"
    download = partial(hf_hub_download, REPOSITORY, name, repo_type="dataset", revision=REVISION)
    remedy = f"pass --peft-data DIR with {layout.folder}/{tsv} in it, or use a machine that reaches the hub"
    return hub.get(download, f"{REPOSITORY} {name}", remedy)


def _read(task: Task, path: Path, rows: int, also: int = 0) -> list[Example]:
    cells = _tsv if path.suffix == ".tsv" else _parquet
    examples = [_example(task, where, *row) for where, row in cells(path, LAYOUTS[task.name])]
    if len(examples) not in (rows, also or rows):
        raise _wrong(f"{path} has {len(examples)} rows, the official file has {rows}: truncated or another version")
    return examples


def _tsv(path: Path, layout: Layout) -> Iterator[tuple[str, list[str]]]:
    try:
        # Not the csv module, whose quotes join rows, nor splitlines, which also splits inside sentences.
        lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _wrong(f"{path}, line {line} is not UTF-8") from error
    if lines == [""]:
        raise _wrong(f"{path} is empty")
    header = list(layout.header) or lines[0].split("\t")
    picked = [_position(path, header, name) for name in (*layout.columns, layout.label)]
    start = 0 if layout.header else 1
    for number, text in enumerate(lines[start:], start + 1):
        row = text.split("\t")
        if len(row) == len(header):
            yield f"{path}, line {number}", [row[i] for i in picked]
        elif len(row) > len(header) or not layout.holes:
            raise _wrong(f"{path}, line {number} has {len(row)} columns, not {len(header)}")


def _parquet(path: Path, layout: Layout) -> Iterator[tuple[str, list[str]]]:
    from datasets import Value

    from peft_dp.tasks._tables import of_file

    try:
        rows = of_file("parquet", path, b"")
    except ValueError as error:
        raise _wrong(f"{path} is not a parquet file or is truncated") from error
    names = layout.fields or layout.columns
    for name in (*names, "label"):
        _position(path, rows.data.column_names, name)
    for name in names:
        if rows.data.features[name] not in map(Value, ("string", "large_string", "null")):
            raise _wrong(f"{path} has a column {name!r} that is no text")
    for number, row in enumerate(zip(*(rows.data[name] for name in (*names, "label")), strict=True)):
        yield rows.where(number), ["" if cell is None else str(cell) for cell in row]


def _position(path: Path, header: list[str], name: str) -> int:
    if name not in header:
        raise _wrong(f"{path} has no column {name!r}, only {short(', '.join(header))[1:-1]}")
    if header.count(name) > 1:
        raise _wrong(f"{path} has {header.count(name)} columns {name!r}")
    return header.index(name)


def _example(task: Task, where: str, *cells: str) -> Example:
    *sentences, label = cells
    if not LAYOUTS[task.name].holes and not all(sentence.strip() for sentence in sentences):
        raise _wrong(f"{where} has an empty sentence")
    return Example(sentences[0], sentences[1] if task.pair else None, _label(task, where, label))


def _label(task: Task, where: str, text: str) -> float:
    if text in task.labels:
        return task.labels.index(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value in range(len(task.labels)):
        return int(value)
    if task.kind == "regression" and 0 <= value <= 5:
        # The hub stores 3.8 as float32; the official files have three decimals.
        return round(value, 3)
    choices = ", ".join(task.labels) or "a number from 0 to 5"
    raise _wrong(f"{where} has the label {short(text)}, not one of: {choices}")


def _wrong(what: str) -> ValueError:
    return ValueError(f"{what}; get the official GLUE file again")
