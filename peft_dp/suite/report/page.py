"""A folder of records as one page: a static file that works from disk and asks nothing of any network.

The template escapes all that records and tables hold. The page runs no script but the two whose hashes its policy
names, and may load nothing from outside. Figures lie in it as JSON; plotly.js draws them when they come into view.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from peft_dp.records import Record, mean
from peft_dp.spec import Privacy, Spec
from peft_dp.suite import papers
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.papers.claim import COUNT, Claim
from peft_dp.suite.papers.table import Row, Table, table_files
from peft_dp.suite.report.figures.drawing import QUANTITIES, Figure, json_values
from peft_dp.suite.report.figures.every import table_figures
from peft_dp.suite.report.figures.values import our_mean
from peft_dp.suite.report.table import SIGNS, side_by_side, spent
from peft_dp.suite.verdicts.cells import Verdict
from peft_dp.suite.verdicts.claims import judge_claim
from peft_dp.suite.verdicts.finding import Status
from peft_dp.suite.verdicts.folder import Folder, by_spec
from peft_dp.suite.verdicts.replay import flat
from peft_dp.validate import Missing

FOLDER = Path(__file__).parent
CLAIMED: dict[Status, str] = {
    "reproduced": "holds",
    "amber": "holds within chance",
    "differs": "does not hold",
    "known difference": "known difference",
    "cannot run": "cannot run",
    "not run": "not run",
}
"""Status of a claim -> how the page says it."""
SHOWN_RUNS = 8
"""Environments shown beside each other; older ones are counted."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One quantity of one cell.

    Attributes:
        ours: Our mean; empty where it did not run.
        theirs: What is expected, as printed where it is; empty where nothing is.
        value: What to sort by.
    """

    ours: str
    theirs: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class Block:
    """One table of one paper.

    Attributes:
        table: Its definition.
        quantities: What its cells show.
        verdicts: Row -> task -> verdict, also of cells that did not run.
        figures: Its figures.
    """

    table: Table
    quantities: Sequence[str]
    verdicts: Mapping[str, Mapping[str, Verdict]]
    figures: Sequence[Figure]

    @property
    def every(self) -> list[Verdict]:
        """The verdicts of the cells that can run."""
        return [verdict for row in self.verdicts.values() for verdict in row.values() if not verdict.cell.row.cited]

    @property
    def counts(self) -> Counter[Status]:
        """How many cells came to each status."""
        return Counter(verdict.status for verdict in self.every)


def page(folder: Folder) -> str:
    """The whole page of a folder's verdicts, as HTML."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), (FOLDER / "page.js").read_text(encoding="utf-8")]
    templates = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    helpers = (about, asked, averages, number, numbers, of_counts, short, shown, side_by_side, trained)
    templates.globals |= {helper.__name__: helper for helper in helpers} | {"counted": Counter}
    blocks = _blocks(folder.verdicts)
    records = [*(record for verdict in folder.verdicts for record in verdict.records), *folder.others]
    return templates.get_template("page.html").render(
        folder=folder,
        papers=_papers(blocks),
        counts=sum((block.counts for block in blocks), Counter[Status]()),
        untouched=_untouched(blocks),
        claims=_claims(folder.verdicts),
        signs=SIGNS,
        units={quantity: title for quantity, (title, _) in QUANTITIES.items()},
        claimed=CLAIMED,
        others=[(alike[0].spec, alike) for alike in by_spec(folder.others).values()],
        runs=_environments(records),
        total=number(len(records)),
        methods=sorted({v.cell.spec.method for block in blocks for v in block.every}),
        tasks=sorted({v.cell.task for block in blocks for v in block.every}),
        data=lambda value: Markup(_in_script(value)),
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
    )


def about(spec: Spec) -> list[tuple[str, str]]:
    """What of a spec a reader asks for first: names and texts."""
    privacy = spec.privacy
    rate = f"{spec.optimiser.name}, rate {spec.optimiser.rate:g}, {spec.optimiser.schedule}"
    return [
        ("method", f"{spec.method} {json.dumps(spec.config) if spec.config else ''}".strip()),
        ("backbone", spec.backbone),
        ("examples", f"{number(spec.train)}" if spec.train else "all"),
        ("training", f"{spec.epochs} epochs, batch {spec.batch:,}, {rate}"),
        (
            "privacy",
            f"epsilon {asked(privacy)}, delta {privacy.delta:g}, clip {privacy.clip:g}" if privacy else "no",
        ),
    ]


def asked(privacy: Privacy) -> str:
    """The epsilon that was asked for; nominal where no accountant covers how batches are drawn."""
    return f"{privacy.epsilon:g}" + " nominal" * (privacy.sampling != "poisson")


def shown(verdict: Verdict, quantities: Sequence[str]) -> list[Shown]:
    """A cell as its table shows it, one entry a quantity."""
    return [_shown(verdict, quantity) for quantity in quantities]


def _shown(verdict: Verdict, quantity: str) -> Shown:
    cell, unit = verdict.cell, QUANTITIES[quantity][1]
    expect, finding = cell.expect.get(quantity), verdict.finding(quantity)
    printed = expect.value if expect else finding.expected if finding else None
    value = our_mean(verdict, quantity)
    return Shown(
        ours="" if value is None else number(value / unit, 1 if value < 1e3 * unit else 0),
        theirs="" if printed is None else number(printed / unit, 1 if printed < 1e3 * unit else 0),
        value=printed if cell.row.cited else value,
    )


def trained(verdict: Verdict) -> float | None:
    """How many values a cell trains: as counted, else as printed."""
    found, expect = our_mean(verdict, "trainable"), verdict.cell.expect.get("trainable")
    return expect.value if found is None and expect else found


def short(value: float | None) -> str:
    """A count in three digits: 26.5K, 7.68M."""
    if value is None or value < 1e3:
        return number(value)
    return f"{value / 1e6:.3g}M" if value >= 999_500 else f"{value / 1e3:.3g}K"


def averages(records: Sequence[Record]) -> list[tuple[float | None, int]]:
    """Mean score, seconds an epoch and peak MB of runs, each with the digits to show; None where a run lacks it."""
    peak = mean(records, "peak_bytes")
    return [(mean(records, "score"), 2), (mean(records, "epoch_seconds"), 2), (peak and peak / 1e6, 0)]


def numbers(record: Record) -> list[str]:
    """One run's line: seed, score, trained values, epsilon, seconds an epoch, peak MB, day."""
    return [
        str(record.spec.seed),
        number(record.values.get("score"), 2),
        number(record.values.get("trainable")),
        spent([record]),
        number(record.cost.get("epoch_seconds"), 2),
        number(record.cost.get("peak_bytes", 0.0) / 1e6),
        str(record.environment.get("date", ""))[:10],
    ]


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands set off; empty for none."""
    return "" if value is None else f"{value:,.{digits}f}"


def _blocks(verdicts: Sequence[Verdict]) -> list[Block]:
    """The tables of which something ran, each whole."""
    ran = {verdict.cell.id: verdict for verdict in verdicts}
    tables = {verdict.cell.table.address: None for verdict in verdicts}
    blocks = []
    for name in tables:
        cells = [*papers.cells(name), *papers.cells(name, cited=True)]
        table = cells[0].table
        by_place = {(cell.row.id, cell.task): cell for cell in cells}
        held = [ran[cell.id] for cell in cells if cell.id in ran]
        scores = any(our_mean(verdict, "score") is not None for verdict in held)
        asked = [name for name in QUANTITIES if any(name in cell.expect for cell in cells)]
        blocks.append(
            Block(
                table=table,
                quantities=asked or (["score"] if scores else [name for name in QUANTITIES if name != "score"]),
                verdicts={row.id: _line(row, table, by_place, ran) for row in table.rows},
                figures=table_figures(held),
            )
        )
    return blocks


def _line(
    row: Row, table: Table, cells: Mapping[tuple[str, str], Cell], ran: Mapping[str, Verdict]
) -> dict[str, Verdict]:
    """Task -> verdict of a row's cells, in the table's order."""
    held = {task: cells[row.id, task] for task in table.tasks if task in row.cells}
    return {task: ran.get(cell.id) or Verdict(cell=cell) for task, cell in held.items()}


def _papers(blocks: Sequence[Block]) -> dict[str, list[Block]]:
    found: dict[str, list[Block]] = {}
    for block in blocks:
        found.setdefault(block.table.paper, []).append(block)
    return found


def _untouched(blocks: Sequence[Block]) -> list[str]:
    """The tables of which nothing ran."""
    touched = {block.table.address for block in blocks}
    return [name for path in table_files() if (name := f"{path.parent.name}/{path.stem}") not in touched]


def of_counts(paper: str) -> Counter[str]:
    """Return how many of a paper's claims are of counts, by what decides them; these need no run."""
    return Counter(claim.basis for claim in papers.claims(paper) if claim.quantity == COUNT)


def _claims(verdicts: Sequence[Verdict]) -> dict[str, list[tuple[Claim, Status, str]]]:
    """Paper -> its claims about our runs, those of counts left out, each with what became of it and the numbers."""
    runs = {verdict.cell.id: verdict.records for verdict in verdicts}
    those = {verdict.cell.table.paper for verdict in verdicts}
    found: dict[str, list[tuple[Claim, Status, str]]] = {}
    for claim in papers.claims():
        if claim.paper not in those or claim.quantity == COUNT:
            continue
        needed = claim.needed
        status: Status = "not run"
        detail = claim.differs
        if claim.differs:
            status = "known difference"
        elif needed and all(cell.id in runs for cell in needed):
            try:
                finding = judge_claim(claim, runs)
            except Missing as missing:
                detail = str(missing)
            else:
                status, detail = finding.status, f"short by {finding.ours:.3g}, allowed {finding.allowed:.3g}"
        found.setdefault(claim.paper, []).append((claim, status, detail))
    return found


@dataclass(frozen=True, kw_only=True)
class Environments:
    """On what the records were made, the newest first.

    Attributes:
        dates: First and last day, and the number of records, of each.
        differ: Field -> its value in each, of fields that are not the same in all.
        same: Field -> value, of the others.
        older: How many are not shown.
    """

    dates: Sequence[tuple[str, str, int]]
    differ: Mapping[str, Sequence[str]]
    same: Mapping[str, str]
    older: int


def _environments(records: Sequence[Record]) -> Environments:
    """The records by what made them: machine, versions, revision and code; not by date or by seeds in one batch."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        made = {k: v for k, v in record.environment.items() if k not in ("date", "seeds_together")}
        groups.setdefault(
            json.dumps(made | {"code": record.sources.get("code")}, sort_keys=True, default=str), []
        ).append(record)

    def dates(runs: Sequence[Record]) -> list[str]:
        return sorted(str(record.environment.get("date", "")) for record in runs)

    ordered = sorted(groups.items(), key=lambda group: dates(group[1])[-1], reverse=True)
    kept = [(flat(json.loads(made)), runs) for made, runs in ordered[:SHOWN_RUNS]]
    fields = dict.fromkeys(name for made, _ in kept for name in made)
    rows = {name: [str(made.get(name, "")) for made, _ in kept] for name in fields}
    return Environments(
        dates=[(dates(runs)[0], dates(runs)[-1], len(runs)) for _, runs in kept],
        differ={name: values for name, values in rows.items() if len({*values}) > 1},
        same={name: values[0] for name, values in rows.items() if len({*values}) == 1},
        older=len(ordered) - len(kept),
    )


def _in_script(value: Any) -> str:
    """JSON that may stand in a script element: no "<" can end it or open a comment."""
    text = json.dumps(json_values(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _policy(scripts: Sequence[str]) -> str:
    """The page's content security policy: these scripts and no others, nothing from outside."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
