"""Reading CoNLL-2003: sentences, tags of both conventions, and each refusal's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peft_dp import tasks
from peft_dp.tasks import Example, conll
from peft_dp.validate import Missing

Put = Callable[..., Path]

EU = "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\nGerman JJ I-NP I-MISC\n. . O O\n"
PETER = "Peter NNP I-NP I-PER\nBlackburn NNP I-NP I-PER\n"
START = "-DOCSTART- -X- O O\n\n"


FOUR = "(word, part of speech, chunk, tag) separated by spaces"


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Writes the three files and expects that many sentences in each."""

    def write(train: str | bytes, valid: str = PETER, test: str = EU, sentences: int = 1) -> Path:
        for name, task in conll.TASKS.items():
            monkeypatch.setitem(conll.TASKS, name, replace(task, train=sentences, dev=1))
        (tmp_path / "conll2003").mkdir()
        for name, text in (("train", train), ("valid", valid), ("test", test)):
            held = text.encode() if isinstance(text, str) else text
            (tmp_path / "conll2003" / f"{name}.txt").write_bytes(held)
        return tmp_path

    return write


def refusal(folder: Path | None, kind: type[Exception] = ValueError) -> str:
    """Words of the error that reading ends in, with paths relative to `folder`."""
    with pytest.raises(kind) as caught:
        tasks.load("conll2003", folder)
    return str(caught.value).replace(f"{folder}/", "")


def read(folder: Path) -> list[tuple[str, str]]:
    """The training sentences with their tags written out."""
    return [
        (e.first, " ".join(conll.TAGS[tag] for tag in e.label))  # type: ignore[union-attr]
        for e in tasks.load("conll2003", folder).train
    ]


def test_sentences(put: Put) -> None:
    """Blank lines and the starts of documents part sentences and are no words."""
    folder = put(f"{START}{EU}\n\n{PETER}\n{START}{PETER}", sentences=3)

    assert [
        ("EU rejects German .", "B-ORG O B-MISC O"),
        ("Peter Blackburn", "B-PER I-PER"),
        ("Peter Blackburn", "B-PER I-PER"),
    ] == read(folder)


@pytest.mark.parametrize("name", ["conll2003", "conll2003-test"])
def test_scored(put: Put, name: str) -> None:
    """One task is scored on the validation file, the other on the test file; both train on the same."""
    data = tasks.load(name, put(EU))
    expected = {"conll2003": "Peter Blackburn", "conll2003-test": "EU rejects German ."}

    assert (["EU rejects German ."], [expected[name]]) == ([e.first for e in data.train], [e.first for e in data.dev])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("I-PER I-PER O I-PER", "B-PER I-PER O B-PER"),
        ("I-PER B-PER I-PER O", "B-PER B-PER I-PER O"),
        ("I-PER I-LOC I-LOC O", "B-PER B-LOC I-LOC O"),
        ("B-LOC I-PER I-PER B-PER", "B-LOC B-PER I-PER B-PER"),
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC"),
        ("B-PER B-PER I-PER O", "B-PER B-PER I-PER O"),
    ],
)
def test_conventions(put: Put, written: str, expected: str) -> None:
    """Files that write B- only between neighbours of a type (IOB1) and those that write it always give the same."""
    lines = "".join(f"word NN I-NP {tag}\n" for tag in written.split())

    assert [("word word word word", expected)] == read(put(lines))


def test_lines_of_other_systems(put: Put) -> None:
    """A carriage return and a space that does not break belong to the line's end and to the word."""
    folder = put("10\xa0000 CD I-NP O\r\nMr. NNP I-NP O\r\n\r\n".encode())

    assert [("10\xa0000 Mr.", "O O")] == read(folder)


def test_byte_order_mark(put: Put) -> None:
    """A byte-order mark is no part of the first word."""
    assert [("EU rejects German .", "B-ORG O B-MISC O")] == read(put(EU.encode("utf-8-sig")))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("", "conll2003/train.txt is empty"),
        (START, "conll2003/train.txt is empty"),
        (f"{EU}\nPeter NNP I-PER\n",
         f"conll2003/train.txt, line 6 has 3 columns (word, word, tag), not 4 {FOUR}"),
        (f"{EU}\nPeter\n",
         f"conll2003/train.txt, line 6 has 1 columns (word), not 4 {FOUR}"),
        ("EU B-ORG 0\n",
         f"conll2003/train.txt, line 1 has 3 columns (word, tag, number), not 4 {FOUR}"),
        (f"{START}Peter NNP I-NP I-PERSON\n",
         "conll2003/train.txt, line 3 has 'I-PERSON' where its tag should stand, not one of: "
         + ", ".join(conll.TAGS) + "; its columns are word, word, word, word"),
        ("EU I-NP B-ORG 0\n",
         "conll2003/train.txt, line 1 has '0' where its tag should stand, not one of: "
         + ", ".join(conll.TAGS) + "; its columns are word, word, tag, number"),
        (EU.encode() + b"Z\xfcrich NNP I-NP O\n", "conll2003/train.txt, line 5 is not UTF-8"),
        (f"{EU}\n{PETER}", "conll2003/train.txt has 2 sentences, the official file has 1"),
    ],
)  # fmt: skip
def test_refused(put: Put, train: str | bytes, message: str) -> None:
    """A wrong file is named with its line, and the remedy."""
    assert f"{message}; get the CoNLL-2003 file again" == refusal(put(train))


def test_dev_is_read(put: Put) -> None:
    """The scored file is held to the same rules."""
    assert refusal(put(EU, valid="Peter\n")).startswith("conll2003/valid.txt, line 1 has 1 columns")


def test_no_folder() -> None:
    """Without a folder the data is missing, with the option that gives it."""
    expected = "CoNLL-2003 may not be passed on: pass --peft-data DIR with your copy in DIR/conll2003"

    assert expected == refusal(None, Missing)


def test_no_file(put: Put) -> None:
    """So is a file that is not in the folder."""
    folder = put(EU)
    (folder / "conll2003" / "valid.txt").unlink()
    expected = "conll2003/valid.txt is missing: put train.txt, valid.txt and test.txt of CoNLL-2003 in"

    assert refusal(folder, Missing).startswith(expected)


def test_example(put: Put) -> None:
    """A sentence is its words with a space between them and an index for each."""
    assert [Example("EU rejects German .", None, (3, 0, 7, 0))] == list(tasks.load("conll2003", put(EU)).train)


@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [
        ("conll2003", [7140, 3438, 6321, 6600], [1837, 922, 1341, 1842]),
        ("conll2003-test", [7140, 3438, 6321, 6600], [1668, 702, 1661, 1617]),
    ],
)
def test_real(glue_folder: Path, name: str, train: list[int], dev: list[int]) -> None:
    """The real files have as many LOC, MISC, ORG and PER as the paper's table 2 says."""
    if not (glue_folder / "conll2003").is_dir():
        pytest.skip(f"needs CoNLL-2003 in {glue_folder / 'conll2003'}")
    data = tasks.load(name, glue_folder)
    counts = [Counter(tag for example in split for tag in example.label) for split in (data.train, data.dev)]  # type: ignore[union-attr]

    begins = [conll.TAGS.index(f"B-{kind}") for kind in ("LOC", "MISC", "ORG", "PER")]
    assert [train, dev] == [[count[tag] for tag in begins] for count in counts]
