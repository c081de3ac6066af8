"""Reading GLUE: each file's quirks, each refusal's words, and the real files where they are given."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peft_dp import tasks
from peft_dp.tasks import Data, Example, glue
from peft_dp.validate import Missing

Put = Callable[..., Path]

STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
PARSES = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2"
MNLI = f"index\tpromptID\tpairID\tgenre\t{PARSES}"
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
RTE = "index\tsentence1\tsentence2\tlabel\n"


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Writes a task's two files in the official layout and expects `rows` rows in each."""

    def write(name: str, train: str | bytes, dev: str | bytes | None = None, rows: tuple[int, int] = (1, 1)) -> Path:
        layout, task = glue.LAYOUTS[name], glue.TASKS[name]
        monkeypatch.setitem(glue.TASKS, name, replace(task, train=rows[0], dev=rows[1]))
        folder = tmp_path / layout.folder
        folder.mkdir(exist_ok=True)
        for file, text in (("train.tsv", train), (f"dev{layout.dev}.tsv", train if dev is None else dev)):
            (folder / file).write_bytes(text.encode() if isinstance(text, str) else text)
        return tmp_path

    return write


def read(name: str, folder: Path) -> Data:
    """The task as a caller gets it."""
    return tasks.load(name, folder)


def refusal(name: str, folder: Path) -> str:
    """Words of the error that reading the task ends in, with paths relative to `folder`."""
    with pytest.raises(ValueError) as caught:
        read(name, folder)
    return str(caught.value).replace(f"{folder}/", "")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the code in a fresh interpreter that knows of no other environment."""
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_nothing_heavy() -> None:
    """Listing tasks imports neither data nor training libraries."""
    code = (
        "import sys; from peft_dp import tasks; import peft_dp.tasks.glue, peft_dp.measuring.metrics; tasks.names();"
        "print(*{'datasets', 'huggingface_hub', 'pyarrow', 'scipy', 'sklearn', 'torch'} & set(sys.modules))"
    )

    assert python(code).stdout == "\n"


def test_tables_agree() -> None:
    """Every task has a layout with as many columns as it has sentences."""
    expected = {name: len(layout.columns) for name, layout in glue.LAYOUTS.items()}

    assert expected == {name: 1 + task.pair for name, task in glue.TASKS.items()}


@pytest.mark.parametrize(
    ("name", "train", "expected"),
    [
        ("cola", 'gj04\t0\t*\tHe "left.', Example('He "left.', None, 0)),
        ("sst2", "sentence\tlabel\nfun \t1\n", Example("fun ", None, 1)),
        ("mrpc", f'\ufeff{MRPC}1\t7\t8\tHe said " no .\tNo .\n', Example('He said " no .', "No .", 1)),
        ("qqp", f"{QQP}5\t1\t2\tWhy?\tHow?\t0\n", Example("Why?", "How?", 0)),
        ("stsb", f"{STSB}0\tg\tf\t2012\t1\tnone\tnone\tA man.\tA dog.\t3.800\n", Example("A man.", "A dog.", 3.8)),
        ("qnli", "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n", Example("Who?", "He.", 0)),
        ("rte", f"{RTE}0\tIt is.\tIt was.\tnot_entailment\r\n", Example("It is.", "It was.", 1)),
        ("wnli", f"{RTE}0\tIt is.\tIt was.\t1", Example("It is.", "It was.", 1)),
    ],
)  # fmt: skip
def test_official(put: Put, name: str, train: str, expected: Example) -> None:
    """Each official file gives its sentences as they stand and the hub's label order."""
    data = read(name, put(name, train))

    assert [expected] == list(data.train) == list(data.dev)


@pytest.mark.parametrize("name", ["mnli", "mnli-mm"])
def test_mnli(put: Put, name: str) -> None:
    """Columns are found by name, since dev has three more labels than train."""
    cells = "0\t1\t2\tgenre\t(\t(\t(\t(\tUp.\tDown."
    train = f"{MNLI}\tlabel1\tgold_label\n{cells}\tneutral\tcontradiction\n"
    dev = f"{MNLI}\tlabel1\tlabel2\tlabel3\tgold_label\n{cells}\tneutral\tneutral\tneutral\tentailment\n"

    data = read(name, put(name, train, dev))

    assert [Example("Up.", "Down.", 2), Example("Up.", "Down.", 0)] == [*data.train, *data.dev]


def test_separators(put: Put) -> None:
    """Only line feeds end a row; other separators of Unicode belong to the sentence."""
    sentence = "one\x85two\u2028three\x0bfour"

    assert read("cola", put("cola", f"gj04\t1\t\t{sentence}\n")).train[0].first == sentence


def test_qqp_holes(put: Put) -> None:
    """The broken rows of QQP are left out as on the hub, and its empty questions stay."""
    text = f'{QQP}1\t1\t2\t"Who\n"\tis he?\t0\n2\t3\t4\tHow?\t\t1\n'

    assert read("qqp", put("qqp", text)).train == [Example("How?", "", 1)]


def test_qqp_lost_row(put: Put) -> None:
    """A row lost by any other cause is noticed by the number of rows."""
    folder = put("qqp", f"{QQP}2\t3\t4\tHow?\tWhy?\t1\n3\t5\t6\tWh", rows=(2, 2))

    expected = "QQP/train.tsv has 1 rows, the official file has 2: truncated or another version; "
    assert expected + "get the official GLUE file again" == refusal("qqp", folder)


@pytest.mark.parametrize(
    ("name", "train", "message"),
    [
        ("rte", "", "RTE/train.tsv is empty"),
        ("rte", "\n\n", "RTE/train.tsv is empty"),
        ("rte", RTE, "RTE/train.tsv has 0 rows, the official file has 1: truncated or another version"),
        ("rte", "index\tsentence1\tlabel\n", "RTE/train.tsv has no column 'sentence2', only index, sentence1, label"),
        ("rte", f"{RTE}0\tA.\tB.\t0\n1\tA.\n", "RTE/train.tsv, line 3 has 2 columns, not 4"),
        ("cola", "gj04\t1\t\tHe left.\ngj04\t1", "CoLA/train.tsv, line 2 has 2 columns, not 4"),
        ("rte", f"{RTE}0\tA.\tB.\t1\t0\n", "RTE/train.tsv, line 2 has 5 columns, not 4"),
        ("qqp", f"{QQP}0\t1\t2\tA.\tB.\t1\t0\n", "QQP/train.tsv, line 2 has 7 columns, not 6"),
        ("rte", f"label\t{RTE}1\t0\tA.\tB.\t0\n", "RTE/train.tsv has 2 columns 'label'"),
        ("rte", f"{RTE}0\tA.\t \t0\n", "RTE/train.tsv, line 2 has an empty sentence"),
        ("rte", f"{RTE}0\tA.\tB.\t-1\n",
         "RTE/train.tsv, line 2 has the label '-1', not one of: entailment, not_entailment"),
        ("rte", f"{RTE}0\tA.\tB.\tneutral\n",
         "RTE/train.tsv, line 2 has the label 'neutral', not one of: entailment, not_entailment"),
        ("cola", "gj04\t0.5\t\tHe left.\n",
         "CoLA/train.tsv, line 1 has the label '0.5', not one of: unacceptable, acceptable"),
        ("stsb", f"{STSB}0\tg\tf\t2012\t1\tn\tn\tA.\tB.\t5.1\n",
         "STS-B/train.tsv, line 2 has the label '5.1', not one of: a number from 0 to 5"),
        ("stsb", f"{STSB}0\tg\tf\t2012\t1\tn\tn\tA.\tB.\tnan\n",
         "STS-B/train.tsv, line 2 has the label 'nan', not one of: a number from 0 to 5"),
        ("rte", f"{RTE}0\tCaf".encode() + b"\xe9\tB.\t0\n", "RTE/train.tsv, line 2 is not UTF-8"),
        ("mrpc", f"\ufeff{MRPC}".encode() + b"1\t7\t8\tCaf\xe9\tB.\n", "MRPC/train.tsv, line 2 is not UTF-8"),
    ],
)  # fmt: skip
def test_refused(put: Put, name: str, train: str | bytes, message: str) -> None:
    """A wrong file is named with its line, and the remedy."""
    assert f"{message}; get the official GLUE file again" == refusal(name, put(name, train))


def test_dev_is_read(put: Put) -> None:
    """The dev file is held to the same rules."""
    folder = put("rte", f"{RTE}0\tA.\tB.\t0\n", f"{RTE}0\tA.\n")

    assert refusal("rte", folder).startswith("RTE/dev.tsv, line 2 has 2 columns, not 4")


def parquet(path: Path, columns: dict[str, list[object]]) -> None:
    """Writes one file in the hub's layout."""
    from pyarrow import parquet, table

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table(columns), path)


def write_mnli(folder: Path) -> None:
    """Writes MNLI-mm in the hub's layout, one row per split."""
    for split, label in (("train", 2), ("validation_mismatched", 0)):
        columns: dict[str, list[object]] = {"premise": ["Up."], "hypothesis": ["Down."], "label": [label], "idx": [0]}
        parquet(folder / f"{split}-00000-of-00001.parquet", columns)


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's files may stand in a folder as well."""
    monkeypatch.setitem(glue.TASKS, "mnli-mm", replace(glue.TASKS["mnli-mm"], train=1, dev=1))
    write_mnli(tmp_path / "mnli")

    data = read("mnli-mm", tmp_path)

    assert [Example("Up.", "Down.", 2), Example("Up.", "Down.", 0)] == [*data.train, *data.dev]


def test_sources_agree(put: Put, tmp_path: Path) -> None:
    """A score is the same from parquet, where it has single precision, and from the official file."""
    import pyarrow

    official = read("stsb", put("stsb", f"{STSB}0\tg\tf\t2012\t1\tn\tn\tA.\tB.\t3.8\n"))
    score = pyarrow.array([3.8], pyarrow.float32())
    for split in ("train", "validation"):
        path = tmp_path / "hub" / "stsb" / f"{split}-00000-of-00001.parquet"
        parquet(path, {"sentence1": ["A."], "sentence2": ["B."], "label": score})

    assert official.sha256 == read("stsb", tmp_path / "hub").sha256


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sentence1": ["A."], "label": [0]}, "has no column 'sentence2', only sentence1, label"),
        ({"sentence1": ["A."], "sentence2": [None], "label": [0]}, ", row 1 has an empty sentence"),
        ({"sentence1": ["A."], "sentence2": ["B."], "label": [-1]}, ", row 1 has the label '-1'"),
    ],
)
def test_parquet_refused(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    """A parquet file is held to the same rules as a TSV."""
    for split in ("train", "validation"):
        parquet(tmp_path / "rte" / f"{split}-00000-of-00001.parquet", columns)

    assert message in refusal("rte", tmp_path)


def test_parquet_truncated(tmp_path: Path) -> None:
    """A file cut short is named."""
    for split in ("train", "validation"):
        path = tmp_path / "rte" / f"{split}-00000-of-00001.parquet"
        parquet(path, {"sentence1": ["A."], "sentence2": ["B."], "label": [0]})
        path.write_bytes(path.read_bytes()[:-20])

    expected = "rte/train-00000-of-00001.parquet is not a parquet file or is truncated; "
    assert expected + "get the official GLUE file again" == refusal("rte", tmp_path)


def test_missing(tmp_path: Path) -> None:
    """An empty folder is a lack of this machine, named with both places and the remedy."""
    with pytest.raises(Missing) as caught:
        read("mnli", tmp_path)

    expected = (
        f"neither {tmp_path}/MNLI/train.tsv nor one {tmp_path}/mnli/train-*.parquet is there: put the official GLUE "
        f"files in {tmp_path}, or leave out --peft-data on a machine that reaches the hub"
    )
    assert expected == str(caught.value)


def from_hub(home: Path) -> subprocess.CompletedProcess[str]:
    """Loads MNLI-mm from a hub cache under `home`, with one row per split, and with no network."""
    code = (
        "from dataclasses import replace; from peft_dp.tasks import glue, load;"
        "glue.TASKS['mnli-mm'] = replace(glue.TASKS['mnli-mm'], train=1, dev=1); print(load('mnli-mm').dev[0])"
    )
    # An unreachable endpoint rather than HF_HUB_OFFLINE, which would hide a retry.
    return python(code, HF_HOME=str(home), HF_ENDPOINT="http://127.0.0.1:9")


def test_hub_unreachable(tmp_path: Path) -> None:
    """Without cache and network one sentence names the file and the remedy, and nothing is tried again."""
    actual = from_hub(tmp_path).stderr

    expected = (
        "peft_dp.validate.Missing: nyu-mll/glue mnli/train-00000-of-00001.parquet is not in the local cache and the "
        "hub cannot be reached (ConnectError): pass --peft-data DIR with MNLI/train.tsv in it, or use a machine that "
        "reaches the hub"
    )
    assert "Retrying" not in actual
    assert expected == actual.splitlines()[-1]


def test_hub_cached(tmp_path: Path) -> None:
    """Files in the hub's local cache load without a network."""
    write_mnli(tmp_path / "hub" / "datasets--nyu-mll--glue" / "snapshots" / glue.REVISION / "mnli")

    assert "Example(first='Up.', second='Down.', label=0)\n" == from_hub(tmp_path).stdout


@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [
        ("cola", {0: 2528, 1: 6023}, {0: 322, 1: 721}),
        ("sst2", {0: 29780, 1: 37569}, {0: 428, 1: 444}),
        ("rte", {0: 1249, 1: 1241}, {0: 146, 1: 131}),
    ],
)
def test_real_balance(glue_folder: Path, name: str, train: dict[float, int], dev: dict[float, int]) -> None:
    """The official files have the published sizes and balance of labels."""
    data = read(name, glue_folder)

    expected = [train, dev]
    assert expected == [Counter(example.label for example in split) for split in (data.train, data.dev)]


def test_real_mrpc(glue_folder: Path, put: Put) -> None:
    """MRPC's dev file gives the published balance; its first pair keeps bare quotes and has no byte-order mark."""
    # Read as train as well: a copy of train.tsv in circulation lacks one pair and is refused.
    data = read("mrpc", put("mrpc", (glue_folder / "MRPC" / "dev.tsv").read_bytes(), rows=(408, 408)))

    expected = Example(
        "He said the foodservice pie business doesn 't fit the company 's long-term growth strategy .",
        '" The foodservice pie business does not fit our long-term growth strategy .',
        1,
    )
    assert {0: 129, 1: 279} == Counter(example.label for example in data.dev)
    assert expected == data.dev[0]
