"""The command line: what each verb prints, and the exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import peft_dp
from peft_dp import Places, Record
from peft_dp.measuring import environment
from peft_dp.privacy import gradients
from peft_dp.spec import to_json
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main
from peft_dp.suite.verdicts.cells import judge_cell

Run = Callable[..., int]

TABLE: dict[str, Any] = {
    "paper": "made",
    "table": "up",
    "title": "Made up",
    "source": "a test",
    "budget": "smoke",
    "defaults": {
        "backbone": "bert",
        "train": 16,
        "dev": 8,
        "optimiser": {"rate": 0.01},
        "epochs": 1,
        "batch": 8,
        "max_length": 24,
        "method": "bitfit",
    },
    "tasks": {"sentiment": {}},
    "rows": [
        {
            "id": name,
            "title": "A row",
            "spec": {},
            "cells": {"sentiment": {"trainable": {"value": value, "within": 0, "why": "counted by hand"}}},
            "assumed": {"epochs": "not stated; one"},
        }
        for name, value in (("right", 338), ("wrong", 1))
    ],
}


@pytest.fixture
def tables(tables: Path) -> Path:
    """One table of two cells on the tiny backbone, in place of the project's own."""
    (tables / "made").mkdir()
    (tables / "made" / "up.json").write_text(json.dumps(TABLE))
    return tables


@pytest.fixture
def here(places: Places, tmp_path: Path) -> list[str]:
    """Arguments that say where the tiny backbone is and where records go."""
    return ["--backbones", str(places.backbones), "--records", str(tmp_path / "records"), "--device", "cpu"]


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool | None], None]]:
    """Says whether the package's checkout has changes; None for no checkout."""

    def say(dirty: bool | None) -> None:
        monkeypatch.setattr(environment, "_git", lambda folder: {"revision": "0" * 40, "dirty": dirty})
        environment.environment.cache_clear()

    yield say
    environment.environment.cache_clear()


def add(tables: Path, *, note: str = "", differs: str = "") -> None:
    """Adds to the made-up table a row with a printed spread, one that is the best of four, a cited one, and claims."""
    score = {"std": 2.0, "runs": 5}
    rows = [
        {"id": "spread", "title": "Spread", "cells": {"sentiment": {"score": {"value": 70.0} | score}}},
        {"id": "best", "title": "Best", "cells": {"sentiment": {"score": {"value": 80.5, "best_of": 4}}}},
        {"id": "cited", "title": "Cited", "cited": "Doe 2020", "cells": {"sentiment": {"score": {"value": 60}}}},
        {
            "id": "shown",
            "title": "Shown",
            "cells": {"sentiment": {"peak_bytes": {"value": 15600000000, "asserted": False, "why": "15.6 GB"}}},
        },
    ]
    table = TABLE | {"seeds": 3, "note": note, "rows": [*TABLE["rows"], *rows]}
    (tables / "made" / "up.json").write_text(json.dumps(table))
    claim = {"section": "2", "table": "up", "tasks": ["sentiment"], "over": "each", "quantity": "score"}
    claims: list[dict[str, Any]] = [
        {
            "id": "c1",
            "says": "Best beats.",
            "left": "best",
            "right": "cited",
            "relation": ">",
            "times": 1.5,
            "plus": -2,
        },
        {"id": "c2", "says": "Wide wins.", "left": "spread", "right": "best", "relation": ">=", "differs": differs},
        {
            "id": "c3",
            "says": "Few.",
            "left": "right",
            "right": None,
            "relation": "<",
            "quantity": "peak_bytes",
            "plus": 9,
        },
    ]
    text = json.dumps({"source": "a test", "claims": [claim | more for more in claims]})
    (tables / "made" / "claims.json").write_text(text)


def shown(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that `show` prints of an id, each with single spaces."""
    assert main(["show", name]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_list_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`list --json` is one JSON list: facts, cells, cited cells, claims, each in the order of the files, none twice."""
    code = main(["list", "--json"])
    found = json.loads(capsys.readouterr().out)
    cells = [cell.id for cited in (False, True) for cell in papers.cells(cited=cited)]
    ids = [fact.address for fact in peft_dp.facts()] + cells
    ids += [claim.address for claim in peft_dp.claims()]

    assert code == 0
    assert ids == [line["id"] for line in found]
    assert len(ids) == len(set(ids))
    assert {"id", "marker", "needs", "backbone", "method", "epsilon", "expected", "known difference"} == set(found[0])
    assert {"facts", "smoke", "small", "gpu", "cited", "claims", "counts"} == {line["marker"] for line in found}


def test_list(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`list` prints a line a cell with its marker, what it needs and what is expected."""
    code = main(["list"])
    printed = capsys.readouterr().out.splitlines()

    assert code == 0
    assert ["made/up/right/sentiment", "smoke", "nothing", "bert", "bitfit", "trainable=338"] == printed[2].split()
    assert len(printed) == 4


def test_list_every_kind(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cited cells and claims are lines too; large numbers are written out, and figures as they are printed."""
    add(tables, differs="70 < 80.5")
    facts = [{"id": "up/right/percent", "printed": "0.60", "quantity": "percent", "given": {"method": "bitfit"}}]
    (tables / "made" / "facts.json").write_text(json.dumps({"source": "a test", "facts": facts}))
    main(["list"])
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert ["made/up/right/percent", "facts", "nothing", "bitfit", "0.60"] in printed
    assert ["made/up/shown/sentiment", "smoke", "nothing", "bert", "bitfit", "peak_bytes=15,600,000,000"] in printed
    assert ["made/up/cited/sentiment", "cited", "nothing", "score=60"] in printed
    assert ["made/claims/c1", "claims", "nothing", "Best", "beats."] in printed
    assert ["made/claims/c2", "claims", "nothing", "Wide", "wins.", "yes"] in printed


def test_list_is_narrow(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A long sentence of one claim does not make every line as long; as JSON it is whole."""
    says = "Best beats right " + "in every way " * 20 + "indeed."
    add(tables)
    path = tables / "made" / "claims.json"
    path.write_text(path.read_text().replace("Best beats.", says))
    main(["list"])
    printed = capsys.readouterr().out
    main(["list", "--json"])

    assert "Best beats right in every way" in printed
    assert max(map(len, printed.splitlines())) < len(says)
    assert says in [line["expected"] for line in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize(
    ("budget", "weights", "needs"),
    [
        ("smoke", "pretrained", "nothing"),
        ("small", "pretrained", "real data"),
        ("paper", "pretrained", "a GPU, weights and data"),
        ("paper", "random", "a GPU"),
    ],
)
def test_list_needs(tables: Path, capsys: pytest.CaptureFixture[str], budget: str, weights: str, needs: str) -> None:
    """A cell needs what its budget and weights say, and so does a claim that runs decide; a known one is not run."""
    add(tables, differs="70 < 80.5")
    path = tables / "made" / "up.json"
    table = json.loads(path.read_text()) | {"budget": budget}
    table["defaults"]["weights"] = weights
    path.write_text(json.dumps(table))
    main(["list", "--json"])
    found = {line["id"]: line["needs"] for line in json.loads(capsys.readouterr().out)}

    assert [needs, "nothing", needs, "nothing"] == [
        found[f"made/{name}"] for name in ("up/best/sentiment", "up/cited/sentiment", "claims/c1", "claims/c2")
    ]


@pytest.mark.parametrize("form", [[], ["--json"]], ids=str)
def test_list_prefix(tables: Path, capsys: pytest.CaptureFixture[str], form: list[str]) -> None:
    """With a prefix only ids that start so are listed; one that none starts with is bad input."""
    add(tables)
    codes = [main(["list", "made/up/r", *form])]
    printed = capsys.readouterr().out
    codes.append(main(["list", "p/r", *form]))
    said = capsys.readouterr()

    assert codes == [0, 2]
    assert "made/up/right/sentiment" in printed
    assert printed.count("made/") == 1
    assert ("", "peft-dp: no id starts with 'p/r'; `peft-dp list` shows all\n") == (said.out, said.err)


def test_list_is_quick() -> None:
    """Listing everything imports neither torch nor scipy, and takes less than two seconds with the interpreter."""
    code = (
        "import sys; from peft_dp.__main__ import main; main(['list']); assert not {'torch', 'scipy'} & {*sys.modules}"
    )
    start = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    end = os.times()

    # Time of the processor: what else the machine does meanwhile does not count.
    assert end.children_user + end.children_system - start.children_user - start.children_system < 2


def test_show_fact(capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints a fact with its arithmetic and the test that checks it."""
    code = main(["show", "slash/table2/warp-20/parameters"])
    printed = capsys.readouterr().out

    assert code == 0
    assert "20 x 1,024 + 3,075 = 23,555" in " ".join(printed.split())
    assert 'pytest "bench/test_slash.py::test_facts[table2-warp-20-parameters]" -m facts' in printed


@pytest.mark.parametrize("cell", ["embedded/smoke/bitfit-dp/sentiment", "bitfit_plus/figure3/bitfit/rte"])
def test_show(cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints expectation, source, commands and the whole definition of a cell."""
    code = main(["show", cell])
    printed = capsys.readouterr().out
    paper, table, row, task = cell.split("/")

    assert code == 0
    assert f"peft-dp run {cell}" in printed
    assert f'pytest "bench/test_{paper}.py::test_{table}[{row}-{task}]" -m ' in printed
    assert papers.find(cell).table.source in " ".join(printed.split())
    assert to_json(papers.find(cell).spec) == json.loads(printed[printed.index("\n{") :])


def test_show_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """The cell with the longest texts of the project's own tables takes 50 lines at most."""
    longest = max(papers.cells(), key=lambda cell: len(cell.table.note + cell.row.differs))

    assert len(shown(longest.id, capsys)) <= 50


def test_show_band(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A printed score is shown with spread and runs, and the widths that one run and the table's seeds are held to."""
    add(tables)
    spread, best = (" ".join(shown(f"made/up/{row}/sentiment", capsys)) for row in ("spread", "best"))

    assert "printed score 70, std 2, mean of 5 runs" in spread
    # t(4, 0.95) = 2.132, t(4, 0.975) = 2.776 and t(4, 0.9995) = 8.610, times 2 sqrt(1/5 + 1/N), and half a step of
    # the table, 0.05; the margin is 1.96 sqrt(70 * 30 / 8) = 31.8 points, on eight dev examples, so amber comes first.
    words = "spread 2 over seeds, 4 degrees of freedom, runs 5 there and"
    assert f"band 70.00: reproduced within 6.13, amber beyond 6.13, differs beyond 18.9: {words} 1 here, " in spread
    assert f"70.00: reproduced within 4.11, amber beyond 4.11, differs beyond 12.6: {words} 3 here, " in spread
    assert "printed score 80.5, best of 4 runs on the scored data" in best
    # The largest of four standard normal values is 1.029 on average (tabled); the band is 2.776 times 2 sqrt(2).
    assert "band 78.44: reproduced within 7.9, amber beyond 7.9, differs beyond " in best


def test_show_loss(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss that `show` gives lies outside the band in 80 % of the draws it is computed for."""
    add(tables)
    found = re.search(
        r"a loss of ([0-9.]+) is seen with power 80%", " ".join(shown("made/up/spread/sentiment", capsys))
    )
    assert found
    draw = np.random.default_rng(0)
    theirs, ours = draw.normal(0, 2, (100_000, 5)).mean(1), draw.normal(-float(found[1]), 2, 100_000)
    spread = 2 * np.sqrt(draw.chisquare(4, 100_000) / 4)
    seen = (abs(theirs - ours) > 2.776 * spread * np.sqrt(1 / 5 + 1)).mean()

    # The error of 100,000 draws is 0.0013, and that of three digits is less.
    assert seen == pytest.approx(0.8, abs=0.006)


def test_show_is_what_is_judged(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `show` prints of one run is, word for word, what the verdict on a run says."""
    add(tables)
    for row in ("spread", "best"):
        cell = papers.find(f"made/up/{row}/sentiment")
        rest: dict[str, Any] = {"ledger": None, "trail": [], "cost": {}, "sources": {}, "environment": {}}
        verdict = judge_cell(cell, [Record(key="0" * 64, spec=cell.spec, values={"score": 0.0}, **rest)])
        (finding,) = verdict.findings

        assert finding.band in " ".join(shown(cell.id, capsys))
        assert finding.band in str(verdict)


def test_show_not_asserted(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number that no run must meet is shown as such, with its reason and without a band."""
    add(tables)
    lines = shown("made/up/shown/sentiment", capsys)

    assert "printed peak_bytes 15,600,000,000, shown, not asserted (15.6 GB)" in lines
    assert not any(line.startswith("band") for line in lines)


def test_show_cited(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cited cell is shown with where it is from and its number; it never runs, and so has no command."""
    add(tables)
    lines = shown("made/up/cited/sentiment", capsys)

    assert "cited made/up/cited/sentiment, never run" in lines
    assert "cited from Doe 2020" in lines
    assert "printed score 60" in lines
    assert "source a test" in lines
    assert not any("peft-dp run" in line or "pytest" in line for line in lines)


def test_show_claim(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A claim is shown as a sentence and a formula, with the paper's own numbers and the tests that check it."""
    add(tables)

    # 1.5 x 60 - 2 = 88.
    assert shown("made/claims/c1", capsys) == [
        "claim made/claims/c1",
        "says Best beats.",
        "section 2",
        "formula best score > 1.5 x cited score - 2 on sentiment of made/up",
        "printed sentiment: 80.5 > 88 does not hold",
        "needs nothing",
        'test pytest "bench/test_made.py::test_printed_claims[c1]" -m claims',
        'pytest "bench/test_made.py::test_claims[c1]" -m claims',
    ]


def test_show_claim_that_differs(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A claim that its paper's numbers contradict is shown with the difference, and is not held against runs."""
    add(tables, differs="70 < 80.5")
    lines = shown("made/claims/c2", capsys)

    assert "differs 70 < 80.5" in lines
    assert lines[-1] == 'test pytest "bench/test_made.py::test_printed_claims[c2]" -m claims'


def test_show_claim_of_a_number(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A claim against a number names it; where the paper prints nothing, only runs decide."""
    add(tables)
    lines = shown("made/claims/c3", capsys)

    assert "formula right peak_bytes < 9 on sentiment of made/up" in lines
    assert "printed no numbers that decide it" in lines
    assert lines[-1] == 'test pytest "bench/test_made.py::test_claims[c3]" -m claims'


@pytest.mark.parametrize(
    ("over", "words", "pairs"),
    [
        ("each", "on each of rte, cola of p/t", [("rte", 5.0, 4.0, "holds"), ("cola", 1.0, 2.0, "does not hold")]),
        ("mean", "on the mean over rte, cola of p/t", [("mean", 3.0, 3.0, "does not hold")]),
    ],
)
def test_show_claim_of_tasks(
    tables: Path, capsys: pytest.CaptureFixture[str], over: str, words: str, pairs: list[tuple[str, float, float, str]]
) -> None:
    """Of several tasks each has its pair, or their mean has one."""
    rows = [
        {"id": name, "title": name, "cited": "x", "cells": {task: {"score": {"value": value}} for task, value in cells}}
        for name, cells in (("a", [("rte", 5), ("cola", 1)]), ("b", [("rte", 4), ("cola", 2)]))
    ]
    claim = {"id": "c", "says": "s", "section": "1", "table": "t", "left": "a", "right": "b", "tasks": ["rte", "cola"]}
    claim |= {"over": over, "quantity": "score", "relation": ">"}
    (tables / "p").mkdir()
    table = TABLE | {"paper": "p", "table": "t", "tasks": {"rte": {}, "cola": {}}, "rows": rows}
    (tables / "p" / "t.json").write_text(json.dumps(table))
    (tables / "p" / "claims.json").write_text(json.dumps({"source": "x", "claims": [claim]}))
    text = " ".join(shown("p/claims/c", capsys))

    assert f"formula a score > b score {words}" in text
    assert "printed " + " ".join(f"{t}: {a:g} > {b:g} {verdict}" for t, a, b, verdict in pairs) in text


@pytest.mark.parametrize("name", [claim.address for claim in papers.claims()[::40]])
def test_show_own_claim(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Claims of the project's own files are shown on one screen."""
    lines = shown(name, capsys)

    assert lines[0] == f"claim {name}"
    assert len(lines) <= 50


def test_show_what_was_recorded(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show` prints printed numbers with their reason, recorded scores, and what was assumed."""
    scores = {"right": {"sentiment": {"0": 50.0, "1": 62.5}}}
    (tables / "made" / "up.recorded.json").write_text(json.dumps({"blessings": [{"provenance": {}, "scores": scores}]}))
    main(["show", "made/up/right/sentiment"])
    printed = capsys.readouterr().out

    assert "trainable 338 +- 0 (counted by hand)" in printed
    assert "50.0, 62.5" in printed
    assert "epochs" in printed.split("{")[0]


@pytest.mark.parametrize("verb", ["show", "run", "audit"])
def test_unknown_cell(verb: str, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown id is bad input: exit code 2, and the ids that come closest."""
    code = main([verb, "made/up/rihgt/sentiment"])
    said = capsys.readouterr()

    assert (2, "") == (code, said.out)
    assert said.err.startswith("peft-dp: no cell 'made/up/rihgt/sentiment'; close: made/up/right/sentiment")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(("row", "code", "status"), [("right", 0, "no expectation"), ("wrong", 1, "differs")])
def test_run(
    tables: Path, here: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, code: int, status: str
) -> None:
    """`run` trains a cell under the seed, prints its values and verdict, keeps its record; 1 says that it differs."""
    actual = main(["run", f"made/up/{row}/sentiment", "--seed", "3", *here])
    printed = capsys.readouterr().out
    (record,) = (tmp_path / "records").iterdir()

    assert code == actual
    assert f"made/up/{row}/sentiment: {status}" in printed
    assert '"trainable": 338' in printed
    assert printed.endswith(f"record: {record}\n")
    assert json.loads(record.read_text())["spec"]["seed"] == 3


def test_run_again(tables: Path, here: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run` trains nothing that has a record, and says from when that is and how to train again."""
    main(["run", "made/up/right/sentiment", *here])
    (path,) = (tmp_path / "records").iterdir()
    data = json.loads(path.read_text())
    data["environment"]["date"] = "2026-01-01T00:00:00+00:00"
    path.write_text(json.dumps(data))
    main(["run", "made/up/right/sentiment", *here])
    last = capsys.readouterr().out.splitlines()[-1]

    assert f"record: {path} (of 2026-01-01T00:00:00+00:00: remove it to train again)" == last


def test_run_on_another_task(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A row on a task not its own is trained and marked as such; its expectation, though wrong there, is not held."""
    code = main(["run", "made/up/wrong/sentiment", "--task", "inference", "--backbone", "bert", *here])
    printed = capsys.readouterr().out

    assert code == 0
    assert "made/up/wrong/sentiment with task inference for sentiment: not the row's own, so nothing" in printed


def test_run_without_backbone(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thing that this machine lacks is exit code 3, and its name."""
    code = main(
        ["run", "made/up/right/sentiment", "--backbones", str(tmp_path), "--records", str(tmp_path), "--device", "cpu"]
    )

    assert code == 3
    assert f"peft-dp: {tmp_path / 'bert-base-cased'} is missing" in capsys.readouterr().err


def test_run_without_records_folder(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that cannot be written to is said before anything trains."""
    (tmp_path / "file").write_text("")
    code = main(["run", "made/up/right/sentiment", "--records", str(tmp_path / "file")])

    assert code == 2
    assert "cannot be written to" in capsys.readouterr().err


PRIVATE = {"method": "full", "privacy": {"epsilon": 8.0, "delta": 0.01}}


def add_private(tables: Path) -> list[str]:
    """Adds a private row to the made-up table and gives the verb that audits it."""
    row = {"id": "private", "title": "A private row", "spec": PRIVATE, "cells": {"sentiment": {}}}
    (tables / "made" / "up.json").write_text(json.dumps(TABLE | {"rows": [*TABLE["rows"], row]}))
    return ["audit", "made/up/private/sentiment"]


def test_audit(
    tables: Path, here: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`audit` says first whether the claim stands, and how sure that is, with 0; with 1 that it does not."""
    verb = [*add_private(tables), *here[:2], "--device", "cpu", "--seed", "3", "--canaries", "1000"]
    code = main(verb)
    printed = capsys.readouterr().out
    monkeypatch.setattr(gradients, "factors", lambda norms, *_: torch.ones_like(norms))
    leaking = main(verb)

    assert (0, 1) == (code, leaking)
    assert printed.startswith("made/up/private/sentiment, seed 3: the claim of epsilon 1.99 is not refuted.\n")
    assert "above its claim in at most 1 audit of 1,000" in printed
    assert "claimed by the prv accountant" in printed
    assert "3 draws of 1,000 canaries" in printed
    assert "seed 3: the claim of epsilon 1.99 is REFUTED.\n" in capsys.readouterr().out


def test_audit_not_private(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell without privacy has no claim: exit code 2, its name and the remedy, before anything is loaded."""
    code = main(["audit", "made/up/right/sentiment", "--backbones", "nowhere"])
    said = capsys.readouterr()

    assert (2, "") == (code, said.out)
    assert said.err.startswith("peft-dp: made/up/right/sentiment trains without privacy, so it claims no epsilon")
    assert "`peft-dp list`" in said.err
    assert said.err.count("\n") == 1


def test_audit_too_few_canaries(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Too few canaries are bad input, with the least that is taken."""
    code = main([*add_private(tables), *here[:2], "--canaries", "5"])

    assert code == 2
    assert "canaries 5 are too few for 39 tensors that train: take at least 100" in capsys.readouterr().err


def test_bless(
    tables: Path,
    here: list[str],
    tree: Callable[[bool | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`bless` writes the score and the trace of every seed of every cell, how far repeats drift, and what made it."""
    tree(False)
    code = main(["bless", "made/up", *here])
    (written,) = json.loads((tables / "made" / "up.recorded.json").read_text())["blessings"]
    (right, wrong) = peft_dp.cells("made/up")

    assert code == 0
    assert {"right", "wrong"} == set(written["scores"])
    assert ["0", "1", "2", "3", "4"] == list(written["scores"]["right"]["sentiment"])
    assert written["provenance"]["revision"] == "0" * 40
    assert {"date", "versions", "cpu", "threads"} <= set(written["provenance"])
    # One run under two names.
    assert right.recorded["right"] == wrong.recorded["wrong"]
    assert right.runs == wrong.runs
    assert [0, 1, 2, 3, 4] == list(right.runs)
    assert {"loss", "values", "update", "answers"} == right.drift.keys()
    assert right.drift["loss"] < 20e-6


def test_bless_one_row(tables: Path, here: list[str], tree: Callable[[bool | None], None]) -> None:
    """One row blessed anew keeps what was recorded for the others, with what made that."""
    tree(False)
    old = {"right": {"sentiment": {"0": 1.0, "1": 2.0}}, "wrong": {"sentiment": {"0": 3.0, "1": 4.0}}}
    path = tables / "made" / "up.recorded.json"
    path.write_text(json.dumps({"blessings": [{"provenance": {"date": "before"}, "scores": old}]}))
    code = main(["bless", "made/up/right", *here])
    first, second = json.loads(path.read_text())["blessings"]
    empty: dict[str, Any] = {"losses": {}, "runs": {}, "drift": {}}

    assert code == 0
    assert first == {"provenance": {"date": "before"}, "scores": {"wrong": old["wrong"]}} | empty
    for quantity in ("scores", "losses"):
        assert list(second[quantity]) == ["right"]
        assert len(second[quantity]["right"]["sentiment"]) == 5


def test_bless_no_such_row(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row that the table lacks is bad input."""
    assert main(["bless", "made/up/rihgt"]) == 2
    assert "table made/up has no row 'rihgt'" in capsys.readouterr().err


def test_bless_too_few_seeds(
    tables: Path, here: list[str], tree: Callable[[bool | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Four seeds are too few: exit code 2, and nothing is written."""
    tree(False)
    code = main(["bless", "made/up", "--seeds", "4", *here])

    assert code == 2
    assert "--seeds 4 is too few to know a spread: give at least 5" in capsys.readouterr().err
    assert not (tables / "made" / "up.recorded.json").exists()


@pytest.mark.parametrize("dirty", [True, None])
def test_bless_without_a_commit(
    tables: Path,
    here: list[str],
    tree: Callable[[bool | None], None],
    capsys: pytest.CaptureFixture[str],
    dirty: bool | None,
) -> None:
    """A package with changes, or in no checkout, makes no record: no commit could be named."""
    tree(dirty)
    code = main(["bless", "made/up", *here])

    assert code == 2
    assert "commit" in capsys.readouterr().err
    assert not (tables / "made" / "up.recorded.json").exists()


def test_bless_unknown_table(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown table is exit code 2, with the list of those there are."""
    assert main(["bless", "made/down"]) == 2
    assert "no table 'made/down'; known: made/up" in capsys.readouterr().err


def test_show_json(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`show --json` is the line of `list` and all else of a cell, a cited cell or a claim, numbers as numbers."""
    add(tables, differs="70 < 80.5")
    main(["list", "--json"])
    listed = {line["id"]: line for line in json.loads(capsys.readouterr().out)}
    found = {}
    for name in ("made/up/spread/sentiment", "made/up/cited/sentiment", "made/claims/c2"):
        assert main(["show", name, "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)

    assert all(listed[name].items() <= data.items() for name, data in found.items())
    assert (70.0, 2.0) == tuple(found["made/up/spread/sentiment"]["printed"]["score"][key] for key in ("value", "std"))
    assert to_json(papers.find("made/up/spread/sentiment").spec) == found["made/up/spread/sentiment"]["spec"]
    assert "Doe 2020" == found["made/up/cited/sentiment"]["cited"]
    assert "70 < 80.5" == found["made/claims/c2"]["differs"]


def test_run_json(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`run --json` is one object with values, verdict and record; the exit code is that of a run without it."""
    found = {}
    for name in ("right", "wrong"):
        code = main(["run", f"made/up/{name}/sentiment", "--json", *here])
        found[name] = json.loads(capsys.readouterr().out) | {"code": code}

    assert (0, 1) == tuple(run["code"] for run in found.values())
    assert "differs" == found["wrong"]["verdict"] != found["right"]["verdict"]
    assert "trainable" in {finding["quantity"] for finding in found["right"]["findings"]}
    record = json.loads(Path(found["right"]["record"]).read_text())
    assert record["values"] == found["right"]["values"]


def test_run_json_on_another_task(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A row on a task not its own has no verdict, and names what stands instead."""
    assert main(["run", "made/up/wrong/sentiment", "--task", "inference", "--json", *here]) == 0
    found = json.loads(capsys.readouterr().out)

    assert (None, [], {"task": "inference"}) == (found["verdict"], found["findings"], found["instead"])


def test_audit_json(tables: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`audit --json` gives the claim, the bounds and whether they refute it."""
    code = main([*add_private(tables), *here[:2], "--device", "cpu", "--canaries", "1000", "--json"])
    found = json.loads(capsys.readouterr().out)

    assert (0, False) == (code, found["alarms"])
    assert 0 < found["limit"] <= found["claimed"] <= 8


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with one line and 130, as a shell has it."""

    def interrupt(prefix: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(papers, "find", interrupt)
    code = main(["show", "made/up/right/sentiment"])
    said = capsys.readouterr()

    assert (130, "") == (code, said.out)
    assert said.err.startswith("peft-dp: interrupted")
    assert said.err.count("\n") == 1


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shell that reads what `--print-completion bash` prints completes verbs and ids."""
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "peft-dp").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m peft_dp "$@"\n')
    (tmp_path / "peft-dp").chmod(0o755)
    completed = []
    for words in ("aud", "show embedded/smoke/bitfit-dp/sent"):
        typed = f"COMP_WORDS=(peft-dp {words}); COMP_CWORD={len(words.split())}; _shtab_peft_dp"
        path = f"{tmp_path}:{os.environ['PATH']}"
        command = ["bash", "-c", f'source {script}; {typed}; echo "${{COMPREPLY[@]}}"']
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PATH": path})
        completed.append(done.stdout.strip())

    assert ["audit", "embedded/smoke/bitfit-dp/sentiment"] == completed


@pytest.mark.parametrize(
    "arguments",
    [[], ["train"], ["run"], ["run", "a/b/c/d", "--device", "tpu"], ["audit", "a/b/c/d", "--canaries", "many"]],
    ids=str,
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command that is none ends with exit code 2 and the usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: peft-dp" in capsys.readouterr().err


def typed(tmp_path: Path, words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run what a shell runs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(Path(peft_dp.__file__).parents[1])} | variables
    command = words.replace("peft-dp", f"{sys.executable} -m peft_dp")
    return subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("words", ["peft-dp list > /dev/full", "peft-dp show slash/table2/slash-d1024/rte > /dev/full"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_output(tmp_path: Path, words: str) -> None:
    """Output that finds no room is 2, in one sentence."""
    done = typed(tmp_path, words)

    assert done.returncode == 2
    assert done.stderr == "peft-dp: standard output: No space left on device: make room, or send it elsewhere\n"


def test_ascii(tmp_path: Path) -> None:
    """A terminal that shows ASCII only has the rest escaped."""
    done = typed(tmp_path, "peft-dp list none/\u00fc", PYTHONIOENCODING="ascii:strict", PYTHONUTF8="0")

    assert done.returncode == 2
    assert done.stderr.startswith("peft-dp: no id starts with 'none/\\xfc'")


def test_workers_that_are_no_number(tmp_path: Path) -> None:
    """A number of workers that is none is refused by its variable's name."""
    done = typed(tmp_path, "peft-dp run embedded/smoke/head/sentiment", PEFT_DP_WORKERS="abc")

    assert done.returncode == 2
    assert done.stderr == "peft-dp: PEFT_DP_WORKERS must be a whole number of at least 1, not 'abc': unset it\n"


def test_without_docstrings(tmp_path: Path) -> None:
    """Python without docstrings, which transformers reads, is refused; without assertions the verbs work."""
    refused, listed = (typed(tmp_path, "peft-dp list khan/", PYTHONOPTIMIZE=level) for level in "21")

    assert (refused.returncode, listed.returncode) == (2, 0)
    assert "Python runs without docstrings" in refused.stderr
