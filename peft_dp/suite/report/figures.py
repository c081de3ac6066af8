"""The figures of a table's verdicts, as plotly reads them: traces and layout in plain JSON values.

A colour is the name of a variable of the page's style sheet, such as "--ok": the page puts in the value that holds
when it draws, light or dark. A point's cell, or row, is in `ids`, a line's in `meta`, so that a filter can leave it
out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from itertools import accumulate
from math import inf, isfinite, log10
from statistics import fmean
from typing import Any

from peft_dp.records import Record, mean
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.verdicts.cells import Status, Verdict

Plot = dict[str, Any]
"""One drawing: `data` and `layout` as plotly.js takes them."""

COLOURS: dict[Status, tuple[str, str]] = {
    "reproduced": ("--ok", "circle"),
    "undecided": ("--unsure", "circle-open"),
    "amber": ("--amber", "triangle-up"),
    "differs": ("--off", "x"),
    "known difference": ("--known", "diamond"),
}
"""Status -> colour and marker: neither alone tells two of them apart."""
SERIES = tuple(f"--series-{number}" for number in range(1, 9))
PLAIN, PRIVATE, PRINTED = "--plain", "--private", "--printed"
UNITS = {
    "score": ("score, times 100", 1.0),
    "epoch_seconds": ("seconds an epoch", 1.0),
    "peak_bytes": ("peak memory, MB", 1e6),
}
"""Quantity -> title of its axis with the unit, and what a value is divided by."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure, or what it is missing.

    Attributes:
        name: Short name, unique in its table.
        title: What it shows.
        note: How to read it.
        alt: The same for those who do not see it, with what there is to be seen.
        plots: What is drawn -> the drawing; the reader chooses where there are several; empty where nothing is to show.
        needs: Which records it is made of.
        paper: The paper's figure that it follows.
    """

    name: str
    title: str
    note: str = ""
    alt: str
    plots: Mapping[str, Plot] = field(default_factory=dict)
    needs: str
    paper: str = ""


def of_table(verdicts: Sequence[Verdict]) -> list[Figure]:
    """The figures of one table from the verdicts of its cells that ran."""
    return [
        agreement(verdicts),
        parameters(verdicts),
        cost(verdicts),
        price(verdicts, "score"),
        price(verdicts, "epoch_seconds"),
        bias(verdicts),
        learning(verdicts),
        spending(verdicts),
    ]


def ours(verdict: Verdict, quantity: str) -> float | None:
    """Mean of a quantity over a cell's runs; None where a run lacks it, or scores a backbone that was never trained."""
    if quantity == "score" and any(record.spec.weights == "random" for record in verdict.records):
        return None
    return mean(verdict.records, quantity)


def agreement(verdicts: Sequence[Verdict]) -> Figure:
    """Our scores against what was expected, each beside its band."""
    found = [(verdict, finding) for verdict in verdicts if (finding := verdict.finding("score"))]
    traces: list[dict[str, Any]] = []
    for name, width, colour in (("allowed at 0.1 %", "allowed", "--band"), ("usual at 5 %", "unusual", "--band-inner")):
        traces.append(
            _points(
                [(verdict, finding.expected, finding.expected) for verdict, finding in found],
                name=name,
                mode="markers",
                hoverinfo="skip",
                marker={"color": colour, "symbol": "square", "size": 5},
                error_y={
                    "type": "data",
                    "array": [getattr(finding, width) for _, finding in found],
                    "color": colour,
                    "thickness": 5,
                    "width": 0,
                },
            )
        )
    for status, (colour, symbol) in COLOURS.items():
        of_status = [(verdict, finding) for verdict, finding in found if verdict.status == status]
        points = [(verdict, finding.expected, finding.ours) for verdict, finding in of_status]
        if points:
            text = [
                f"{_text(verdict.cell)}<br>expected {finding.expected:.2f}, ours {finding.ours:.2f}, "
                f"allowed ±{finding.allowed:.2f}<br>{verdict.status}"
                for verdict, finding in of_status
            ]
            marker = {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": colour}}
            traces.append(_points(points, name=status, mode="markers", text=text, hoverinfo="text", marker=marker))
    scores = [score for _, finding in found for score in (finding.ours, finding.expected) if isfinite(score)]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    edge = 0.1 * (high - low) + 1
    axis = {"range": [low - edge, high + edge]}
    diagonal = {
        "type": "line",
        "x0": low - edge,
        "y0": low - edge,
        "x1": high + edge,
        "y1": high + edge,
        "line": {"color": "--rule", "width": 1},
    }
    layout = {
        "xaxis": axis | {"title": {"text": "expected: printed or recorded, times 100"}},
        "yaxis": axis | {"title": {"text": "ours, times 100"}},
        "shapes": [diagonal | {"layer": "below"}],
    }
    counts = Counter(verdict.status for verdict, _ in found)
    summary = ", ".join(f"{counts[status]} {status}" for status in COLOURS if counts[status])
    return Figure(
        name="agreement",
        title="Expected against ours",
        alt=f"Scatter plot of {len(found)} cells, expected score across and ours up, beside the diagonal: {summary}.",
        plots=_one({"data": traces, "layout": layout}, found),
        needs="cells with a printed or a recorded score",
    )


def parameters(verdicts: Sequence[Verdict]) -> Figure:
    """Mean score of each row against the number of trained values."""
    tasks, rows = _rows(verdicts, "score", "trainable")
    ordered = sorted(rows.values(), key=lambda row: (_mean(row, "trainable"), -_mean(row, "score")))
    best = [*accumulate((_mean(row, "score") for row in ordered), max)]
    # Names of all would cover each other, and so would those of neighbours on one side.
    named = [row[0].cell.row.id for i, row in enumerate(ordered) if not i or best[i] > best[i - 1]]
    sides = {name: "top right" if i % 2 else "top left" for i, name in enumerate(named)}
    traces = []
    for private, colour in ((False, PLAIN), (True, PRIVATE)):
        for printed in (True, False):
            points = [
                (row[0], _mean(row, "trainable"), score)
                for row in ordered
                if _private(row[0]) == private
                and (score := _printed_mean(row) if printed else _mean(row, "score")) is not None
            ]
            if not points:
                continue
            symbol = ("diamond" if private else "circle") + "-open" * printed
            traces.append(
                _points(
                    points,
                    whole_rows=True,
                    name=f"{'expected' if printed else 'ours'}, {'with' if private else 'without'} DP",
                    mode="markers" if printed else "markers+text",
                    text=[_text(row.cell, task=False) if row.cell.row.id in sides else "" for row, _, _ in points],
                    textposition=[sides.get(row.cell.row.id, "top center") for row, _, _ in points],
                    hovertext=[
                        f"{_text(row.cell, task=False)}<br>{x:,.0f} trained values, score {y:.2f}"
                        for row, x, y in points
                    ],
                    hoverinfo="text",
                    marker={"color": colour, "symbol": symbol, "size": 8},
                )
            )
    axis = {"type": "log", "title": {"text": "trained values"}, "exponentformat": "SI", "dtick": 1}
    if ordered:  # room for the names at both ends
        ends = [log10(_mean(row, "trainable")) for row in (ordered[0], ordered[-1])]
        axis["range"] = [ends[0] - 1, ends[1] + 0.5]
    highest = f"; {named[-1]} is highest with {best[-1]:.1f}" if named else ""
    return Figure(
        name="parameters",
        title="Score against trained values",
        note=f"{_over(tasks)}; named are the rows that none smaller beats",
        alt=f"Scatter plot of {len(rows)} rows, trained values across on a logarithmic axis and score up{highest}.",
        plots=_one(
            {"data": traces, "layout": {"xaxis": axis, "yaxis": {"title": {"text": UNITS["score"][0]}}}}, ordered
        ),
        needs="records of rows on the same tasks",
        paper="SLaSh, Figure 1",
    )


def cost(verdicts: Sequence[Verdict]) -> Figure:
    """Seconds an epoch and peak memory of each row, and their ratio to the row that trains most."""
    tasks, rows = _rows(verdicts, "epoch_seconds", "peak_bytes", "trainable")
    names = [*rows][::-1]
    largest: dict[tuple[bool, str], list[Verdict]] = {}  # whether private, backbone -> the row
    for row in rows.values():
        held = largest.setdefault(_kind(row[0]), row)
        if _mean(row, "trainable") > _mean(held, "trainable"):
            largest[_kind(row[0])] = row
    traces: list[dict[str, Any]] = []
    for axis, quantity in (("", "epoch_seconds"), ("2", "peak_bytes")):
        title, unit = UNITS[quantity]
        for private, colour in ((False, PLAIN), (True, PRIVATE)):
            points = [
                (rows[name][0], _mean(rows[name], quantity) / unit, escape(name))
                for name in names
                if _private(rows[name][0]) == private
            ]
            if points:
                wholes = [_mean(largest[_kind(verdict)], quantity) / unit for verdict, _, _ in points]
                traces.append(
                    _points(
                        points,
                        whole_rows=True,
                        type="bar",
                        orientation="h",
                        name="ours, with DP" if private else "ours, without DP",
                        legendgroup=str(private),
                        showlegend=not axis,
                        text=[
                            f"{value / whole:.2g}x" if whole else ""
                            for (_, value, _), whole in zip(points, wholes, strict=True)
                        ],
                        hovertemplate=f"%{{y}}: %{{x:.4g}} {title}<extra></extra>",
                        textposition="auto",
                        marker={"color": colour},
                        xaxis=f"x{axis}",
                    )
                )
        printed = [
            (rows[name][0], fmean(values) / unit, escape(name))
            for name in names
            if (values := [v.cell.expect[quantity].value for v in rows[name] if quantity in v.cell.expect])
        ]
        if printed:
            traces.append(
                _points(
                    printed,
                    whole_rows=True,
                    name="paper",
                    mode="markers",
                    legendgroup="paper",
                    showlegend=not axis,
                    hovertemplate=f"%{{y}}: paper %{{x:.4g}} {title}<extra></extra>",
                    marker={"color": PRINTED, "symbol": "diamond-open", "size": 9},
                    xaxis=f"x{axis}",
                )
            )
    layout = _panels(UNITS["epoch_seconds"][0], UNITS["peak_bytes"][0], [escape(name) for name in names]) | {
        "barmode": "overlay"
    }
    against = " and ".join(_text(row[0].cell, task=False) for row in largest.values())
    return Figure(
        name="cost",
        title="Time and memory",
        note=f"{_over(tasks)}; labels: times that of {against}",
        alt=f"Bar charts of {len(rows)} rows: seconds an epoch on the left, peak memory in MB on the right.",
        plots=_one({"data": traces, "layout": layout}, rows),
        needs="records with costs",
        paper="SLaSh, Table 5; DP-BiTFiT's ratios",
    )


def price(verdicts: Sequence[Verdict], quantity: str) -> Figure:
    """A quantity with and without privacy, and its relative change, for each pair of cells alike in all else."""
    pairs: dict[str, list[tuple[Verdict, float, float]]] = defaultdict(list)
    for plain, private in paired(verdicts):
        without, with_dp = ours(plain, quantity), ours(private, quantity)
        if without and with_dp is not None:
            pairs[plain.cell.task].append((private, without, with_dp))
    title, _ = UNITS[quantity]
    plots = {}
    for task, found in pairs.items():
        found = found[::-1]
        names = [escape(private.cell.row.id) for private, _, _ in found]
        lines = [
            {
                "type": "scatter",
                "mode": "lines",
                "x": [without, with_dp],
                "y": [name, name],
                "meta": private.cell.id,
                "line": {"color": "--rule", "width": 3},
                "hoverinfo": "skip",
                "showlegend": False,
            }
            for name, (private, without, with_dp) in zip(names, found, strict=True)
        ]
        markers = [
            _points(
                [(trio[0], trio[place], name) for name, trio in zip(names, found, strict=True)],
                name=words,
                mode="markers",
                hovertemplate=f"%{{y}}, {words}: %{{x:.4g}}<extra></extra>",
                marker={"color": colour, "symbol": symbol, "size": 9},
            )
            for place, words, colour, symbol in (
                (1, "without DP", PLAIN, "circle"),
                (2, "with DP", PRIVATE, "diamond"),
            )
        ]
        changes = [
            (private, 100 * (with_dp - without) / without, name)
            for name, (private, without, with_dp) in zip(names, found, strict=True)
        ]
        bars = _points(
            changes,
            type="bar",
            orientation="h",
            name="relative change",
            xaxis="x2",
            text=[f"{change:+.{int(abs(change) < 10)}f}" for _, change, _ in changes],
            textposition="auto",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:+.2f} %<extra></extra>",
            marker={"color": "--change"},
        )
        layout = _panels(title, "change by DP, %", names)
        ends = [f([0.0, *(change for _, change, _ in changes)]) for f in (min, max)]
        room = 0.4 * (ends[1] - ends[0])  # for the words beside the bars
        layout["xaxis2"] |= {
            "zeroline": True,
            "range": [ends[0] - room * (ends[0] < 0), ends[1] + room * (ends[1] > 0)],
        }
        plots[task] = {"data": [*lines, *markers, bars], "layout": layout}
    every = [(with_dp - without) / without for found in pairs.values() for _, without, with_dp in found]
    mean = f"; the mean change is {fmean(every):+.1%}" if every else ""
    what = "Score" if quantity == "score" else "Epoch time"
    return Figure(
        name=f"price-{quantity.replace('_', '-')}",
        title=f"{what} without and with DP, and its change",
        alt=f"{what} of {len(every)} pairs of cells alike but for privacy, and the relative change as bars{mean}.",
        plots=plots,
        needs="records of cells alike in method, settings and task, with and without privacy",
        paper="Khan, Figures 3 and 4" if quantity == "score" else "Khan, Figures 5 and 6",
    )


def paired(verdicts: Sequence[Verdict]) -> list[tuple[Verdict, Verdict]]:
    """(without privacy, with) for every private cell whose like ran too: same task, model, method and settings.

    What privacy itself sets may differ: batches, epochs, examples, optimiser.
    """

    def like(cell: Cell) -> tuple[object, ...]:
        spec = cell.spec
        return cell.task, spec.backbone, spec.method, repr(sorted(spec.config.items())), spec.head, spec.readout

    plain = {like(v.cell): v for v in verdicts if not _private(v)}
    return [(plain[key], v) for v in verdicts if _private(v) and (key := like(v.cell)) in plain]


def bias(verdicts: Sequence[Verdict]) -> Figure:
    """How far each term of biases and scales moved in each layer; one map a cell."""
    plots = {}
    for verdict in verdicts:
        moved = [record.moved for record in verdict.records if record.moved]
        if not moved:
            continue
        terms = list(moved[0])
        mean = [
            [fmean(layer) for layer in zip(*(one[term] for one in moved if term in one), strict=False)]
            for term in terms
        ]
        plots[_text(verdict.cell)] = {
            "data": [
                {
                    "type": "heatmap",
                    "meta": verdict.cell.id,
                    "z": mean,
                    "x": [str(layer + 1) for layer in range(max(map(len, mean)))],
                    "y": [escape(term) for term in terms],
                    "colorscale": [[0, "--heat-0"], [0.5, "--heat-1"], [1, "--heat-2"]],
                    "colorbar": {"title": {"text": "mean |change|", "side": "right"}, "thickness": 12},
                    "hovertemplate": "layer %{x}, %{y}: %{z:.3g}<extra></extra>",
                }
            ],
            "layout": {
                "height": 150 + 24 * len(terms),
                "xaxis": {"title": {"text": "layer, lowest first"}, "type": "category"},
                "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            },
        }
    return Figure(
        name="bias",
        title="How far biases and scales moved",
        alt=f"Heat maps of {len(plots)} cells: layers across, terms down, mean absolute change as colour.",
        plots=plots,
        needs="records of methods that train biases or scales",
        paper="BitFit+, Figures 4 to 15",
    )


def learning(verdicts: Sequence[Verdict]) -> Figure:
    """Training loss over epochs, the mean over seeds; one drawing a task."""
    plots: dict[str, Plot] = {}
    for task, found in _by_task(verdicts).items():
        curves = [_curve(verdict, lambda epoch: epoch.loss)[1] for verdict in found]
        lines = [
            _line(verdict, number, [*range(1, len(curve) + 1)], curve)
            for number, (verdict, curve) in enumerate(zip(found, curves, strict=True))
        ]
        layout = {
            "xaxis": {"title": {"text": "epochs"}, "dtick": 1 if max(map(len, curves)) <= 12 else None},
            "yaxis": {"title": {"text": "mean training loss"}},
        }
        plots |= _one({"data": lines, "layout": _tall(layout, len(lines))}, [line for line in lines if line["y"]], task)
    return Figure(
        name="learning",
        title="Learning curves",
        alt=f"Lines of training loss over epochs for {len(verdicts)} cells, one drawing for each task; dotted with DP.",
        plots=plots,
        needs="records with a trail of epochs",
    )


def spending(verdicts: Sequence[Verdict]) -> Figure:
    """Share of clipped examples and the epsilon spent, over steps; one drawing a task."""
    plots: dict[str, Plot] = {}
    private = [verdict for verdict in verdicts if _private(verdict)]
    for task, found in _by_task(private).items():
        lines = []
        for number, verdict in enumerate(found):
            share = _line(verdict, number, *_curve(verdict, lambda epoch: epoch.clipped))
            steps, epsilons = spent(verdict.records[0])
            lines += [share, _line(verdict, number, steps, epsilons) | {"yaxis": "y2", "showlegend": False}]
        layout = {
            "xaxis": {"title": {"text": "steps"}, "anchor": "y2", "rangemode": "tozero"},
            "yaxis": {"domain": [0.56, 1], "title": {"text": "clipped share"}, "tickformat": ".0%", "range": [0, 1.05]},
            "yaxis2": {"domain": [0, 0.44], "title": {"text": "epsilon spent"}, "rangemode": "tozero"},
        }
        plots |= _one({"data": lines, "layout": _tall(layout, len(found), 400)}, lines, task)
    return Figure(
        name="spending",
        title="Clipped share and epsilon over steps",
        alt=f"Lines of {len(private)} private cells over steps: share of examples clipped above, epsilon spent below.",
        plots=plots,
        needs="private records",
    )


def spent(record: Record) -> tuple[list[int], list[float]]:
    """Steps and the epsilon spent by then, by the ledger's accountant: at the start, two epochs' ends, and the end."""
    ledger = record.ledger
    if not ledger:
        return [], []
    ends = list(accumulate(epoch.steps for epoch in record.trail))[:-1]
    between = sorted({ends[len(ends) * part // 4] for part in (0, 2)}) if ends else []
    known = (ledger["noise_multiplier"], ledger["sample_rate"], ledger["delta"], ledger["accountant"])
    return (
        [0, *between, ledger["steps"]],
        [0.0, *(_epsilon(steps, *known) for steps in between), ledger["epsilon"]],
    )


@cache
def _epsilon(steps: int, noise: float, rate: float, delta: float, accountant: str) -> float:
    from peft_dp.privacy.plan import Plan, spent

    plan = Plan(
        examples=1,
        batch=1,
        steps=steps,
        steps_per_epoch=steps,
        sampling="poisson",
        sample_rate=rate,
        noise_multiplier=noise,
        delta=delta,
        accountant=accountant,
    )
    return spent(plan, steps)


def plain(value: Any) -> Any:
    """The same in JSON's values: numbers to six digits, and null for what is no number."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _private(verdict: Verdict) -> bool:
    return verdict.cell.spec.privacy is not None


def _kind(verdict: Verdict) -> tuple[bool, str]:
    return _private(verdict), verdict.cell.spec.backbone


def _text(cell: Cell, *, task: bool = True) -> str:
    return escape(f"{cell.row.id} {cell.task}" if task else cell.row.id)


def _points(points: Sequence[tuple[Verdict, Any, Any]], *, whole_rows: bool = False, **more: Any) -> dict[str, Any]:
    """A trace of (cell, x, y), or of one cell that stands for its row."""
    ids = [verdict.cell.id for verdict, _, _ in points]
    return {
        "type": "scatter",
        "ids": [name.rpartition("/")[0] for name in ids] if whole_rows else ids,
        "x": [x for _, x, _ in points],
        "y": [y for _, _, y in points],
    } | more


def _line(verdict: Verdict, number: int, x: Sequence[float], y: Sequence[float | None]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": escape(verdict.cell.row.id),
        "legendgroup": verdict.cell.id,
        "meta": verdict.cell.id,
        "x": x,
        "y": y,
        "line": {"color": SERIES[number % len(SERIES)], "width": 1.5, "dash": "dot" if _private(verdict) else "solid"},
        "marker": {"size": 5, "symbol": number // len(SERIES)},
        "hovertemplate": f"{_text(verdict.cell)}<br>%{{x:,}}: %{{y:.4g}}<extra></extra>",
    }


def _curve(verdict: Verdict, quantity: Callable[[Any], float | None]) -> tuple[list[int], list[float | None]]:
    """Steps at the ends of epochs, of the first run, and the mean over the runs of what an epoch gave."""
    steps = list(accumulate(epoch.steps for epoch in verdict.records[0].trail))
    epochs = zip(*(map(quantity, record.trail) for record in verdict.records), strict=False)
    means = [fmean(known) if (known := [v for v in seeds if v is not None]) else None for seeds in epochs]
    return ([], []) if all(mean is None for mean in means) else (steps, means)


def _by_task(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.cell.task, []).append(verdict)
    return found


def _rows(verdicts: Sequence[Verdict], *quantities: str) -> tuple[frozenset[str], dict[str, list[Verdict]]]:
    """The set of tasks that most rows ran on, and row -> its cells on these: means over other sets do not compare."""
    rows: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if all(isfinite(value) for q in quantities if (value := _known(verdict, q)) is not None):
            rows.setdefault(verdict.cell.row.id, []).append(verdict)
    sets = Counter(frozenset(verdict.cell.task for verdict in row) for row in rows.values())
    tasks = max(sets, key=lambda some: (sets[some], len(some)), default=frozenset[str]())
    held = {name: [verdict for verdict in row if verdict.cell.task in tasks] for name, row in rows.items()}
    return tasks, {name: row for name, row in held.items() if len(row) == len(tasks)}


def _known(verdict: Verdict, quantity: str) -> float:
    value = ours(verdict, quantity)
    return inf if value is None else value


def _mean(row: Sequence[Verdict], quantity: str) -> float:
    return fmean(_known(verdict, quantity) for verdict in row)


def _printed_mean(row: Sequence[Verdict]) -> float | None:
    """The mean of what is expected of a row's scores; None where one is not."""
    found = [verdict.finding("score") for verdict in row]
    known = [finding.expected for finding in found if finding]
    return fmean(known) if len(known) == len(found) else None


def _over(tasks: Iterable[str]) -> str:
    names = sorted(tasks)
    return f"{'mean over ' * (len(names) > 1)}{', '.join(names)}"


def _one(plot: Plot, shown: Any, name: str = "") -> dict[str, Plot]:
    """The drawing by its name, or none where there is nothing to show."""
    return {name: plot} if shown else {}


def _panels(left: str, right: str, names: Sequence[str]) -> dict[str, Any]:
    """Two panels beside each other that share their lines."""
    return {
        "height": 130 + 22 * len(names),
        "xaxis": {"domain": [0, 0.56], "title": {"text": left}, "rangemode": "normal"},
        "xaxis2": {"domain": [0.62, 1], "title": {"text": right}, "anchor": "y"},
        "yaxis": {"type": "category", "categoryarray": names, "categoryorder": "array", "automargin": True, "dtick": 1},
    }


def _tall(layout: dict[str, Any], lines: int, height: int = 320) -> dict[str, Any]:
    """Room for a legend of so many lines below."""
    return layout | {"height": height + 20 * -(-lines // 4)}
