"""CoNLL-2003, English: named entities in news (Tjong Kim Sang and De Meulder 2003), from the four-column files.

`conll2003` is scored on `valid.txt`, `conll2003-test` on `test.txt`. The text
is Reuters' and may not be passed on, so nothing is fetched.

Why B- is derived: the original files write B- only where an entity touches
another of its type (IOB1), the copies that circulate write it at each start
(IOB2). Reading an I- that continues nothing as B- gives the same tags for both.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from itertools import groupby
from pathlib import Path

from peft_dp.tasks import Data, Example, Task
from peft_dp.tasks._tags import begun
from peft_dp.validate import Missing, short

TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
_COLUMNS = ("word", "part of speech", "chunk", "tag")
_SCORED = {"conll2003": "valid", "conll2003-test": "test"}
"""Task -> file that is scored."""


def _task(name: str, title: str, dev: int) -> Task:
    return Task(
        public=True,
        name=name,
        title=title,
        kind="tokens",
        labels=TAGS,
        metric="entity_f1",
        pair=False,
        # Official numbers of sentences, without the -DOCSTART- lines.
        train=14041,
        dev=dev,
        # Estimated, as is half an entity per sentence.
        tokens=20.0,
        log_deviation=0.60,
        positive=0.5,
    )


TASKS = {
    "conll2003": _task("conll2003", "CoNLL-2003", 3250),
    "conll2003-test": _task("conll2003-test", "CoNLL-2003 test", 3453),
}


def load(task: Task, folder: Path | None) -> Data:
    """Return all sentences of `folder`/conll2003.

    Raises:
        ValueError: A file is not the official one.
        Missing: There is no folder, or it lacks a file.
    """
    if folder is None:
        raise Missing("CoNLL-2003 may not be passed on: pass --peft-data DIR with your copy in DIR/conll2003")
    held = folder / "conll2003"
    return Data(train=_read(held, "train", task.train), dev=_read(held, _SCORED[task.name], task.dev))


def _read(folder: Path, split: str, sentences: int) -> list[Example]:
    path = folder / f"{split}.txt"
    if not path.is_file():
        raise Missing(f"{path} is missing: put train.txt, valid.txt and test.txt of CoNLL-2003 in {folder}")
    examples = []
    held = path.read_bytes().removeprefix(BOM_UTF8)
    for apart, lines in groupby(enumerate(held.splitlines(), 1), key=lambda line: _parts(line[1])):
        if not apart:
            words, tags = zip(*(_row(f"{path}, line {number}", line) for number, line in lines), strict=True)
            examples.append(Example(" ".join(words), None, begun(tags)))
    if not examples:
        raise _wrong(f"{path} is empty")
    if len(examples) != sentences:
        raise _wrong(f"{path} has {len(examples)} sentences, the official file has {sentences}")
    return examples


def _parts(line: bytes) -> bool:
    """Return whether a line stands between sentences."""
    return not line.strip() or line.startswith(b"-DOCSTART-")


def _row(where: str, line: bytes) -> tuple[str, int]:
    """Return the word of a line and the index of its tag."""
    try:
        cells = [cell for cell in line.decode().split(" ") if cell]
    except UnicodeDecodeError as error:
        raise _wrong(f"{where} is not UTF-8") from error
    if len(cells) != len(_COLUMNS):
        found = f"{len(cells)} columns ({_kinds(cells)})"
        raise _wrong(f"{where} has {found}, not {len(_COLUMNS)} ({', '.join(_COLUMNS)}) separated by spaces")
    if cells[-1] not in TAGS:
        raise _wrong(
            f"{where} has {short(cells[-1])} where its tag should stand, not one of: {', '.join(TAGS)}; "
            f"its columns are {_kinds(cells)}"
        )
    return cells[0], TAGS.index(cells[-1])


def _kinds(cells: list[str]) -> str:
    """Return what the columns of a line seem to be, such as "word, tag, number"."""
    return ", ".join("tag" if cell in TAGS else "number" if cell.isdigit() else "word" for cell in cells)


def _wrong(what: str) -> ValueError:
    return ValueError(f"{what}; get the CoNLL-2003 file again")
