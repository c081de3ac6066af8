"""`peft-dp list`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import peft_dp
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main

from .made_up import add


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
