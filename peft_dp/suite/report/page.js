"use strict";
// Figures are drawn when they come near the window; the filter hides cells in tables, and points and lines in figures.

const filter = document.getElementById("filter");
const detail = document.getElementById("detail");
const cells = [...document.querySelectorAll("td[data-cell]")];
const byId = new Map(cells.map((cell) => [cell.dataset.cell, cell]));
const templates = new Map([...document.querySelectorAll("template")].map((one) => [one.dataset.of, one]));
const plots = [...document.querySelectorAll(".plot")];
const hidden = new Set(); // ids of cells, and of rows all of whose cells are hidden

// --- figures

/** The same figure with the style sheet's colours in place of their names. */
function coloured(value, style) {
  if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
  if (Array.isArray(value)) return value.map((item) => coloured(item, style));
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, style)]));
  return value;
}

/** A trace without the points of hidden cells: every list as long as its ids loses the same places. */
function kept(value, shown) {
  if (Array.isArray(value)) return value.length === shown.length ? value.filter((_, i) => shown[i]) : value;
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, kept(item, shown)]));
  return value;
}

const drawings = (plot) => (plot.drawings ??= JSON.parse(plot.parentElement.querySelector("script").textContent));
const visible = ({ data }) => data.some(({ ids, meta }) => (ids ?? [meta]).some((id) => !hidden.has(id)));

/** Leaves the reader to choose among drawings with something to show; a figure without any is hidden. */
function offer(plot) {
  const shown = drawings(plot).map(visible);
  const choice = plot.parentElement.querySelector("select");
  plot.parentElement.hidden = !shown.includes(true);
  if (!choice) return;
  shown.forEach((one, place) => (choice.options[place].hidden = choice.options[place].disabled = !one));
  if (!shown[choice.selectedIndex]) choice.selectedIndex = Math.max(shown.indexOf(true), 0);
}

function draw(plot) {
  const figure = plot.parentElement;
  const drawing = drawings(plot)[figure.querySelector("select")?.selectedIndex ?? 0];
  const style = getComputedStyle(document.documentElement);
  const data = drawing.data
    .filter((trace) => !hidden.has(trace.meta))
    .map((trace) => (trace.ids ? kept(trace, trace.ids.map((id) => !hidden.has(id))) : trace));
  const narrow = plot.clientWidth < 480;
  const base = {
    height: 380,
    margin: { l: 56, r: 12, t: 8, b: 48 },
    font: { family: style.getPropertyValue("--font"), size: narrow ? 11 : 12, color: "--ink" },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    legend: { orientation: "h", y: 0, yref: "container", yanchor: "bottom", font: { size: narrow ? 10 : 11 } },
    hoverlabel: { bgcolor: "--raised", bordercolor: "--rule", font: { color: "--ink" }, align: "left" },
    hovermode: "closest",
    dragmode: false,
  };
  const layout = { ...base, ...structuredClone(drawing.layout) };
  for (const name of ["xaxis", "xaxis2", "yaxis", "yaxis2"])
    if (name.length === 5 || layout[name])
      layout[name] = { gridcolor: "--grid", zerolinecolor: "--rule", linecolor: "--rule", zeroline: false, automargin: true, fixedrange: true, ...layout[name] };
  Plotly.react(plot, coloured(data, style), coloured(layout, style), { displayModeBar: false, responsive: true });
  if (!plot.dataset.drawn)
    plot.on("plotly_click", ({ points }) => {
      const id = points[0].id ?? points[0].data.meta;
      const cell = cells.find((one) => `${one.dataset.cell}/`.startsWith(`${id}/`));
      if (cell) location.hash = `cell/${cell.dataset.cell}`;
    });
  plot.dataset.drawn = "yes";
}

const near = new Set();
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) near.delete(target);
      else {
        near.add(target);
        if (target.dataset.drawn !== "yes") draw(target);
      }
    }
  },
  { rootMargin: "300px" },
);
plots.forEach((plot) => watcher.observe(plot));

/** Draws anew what is near, now, and the rest when it comes near. */
function redraw() {
  for (const plot of plots) {
    if (plot.dataset.drawn) plot.dataset.drawn = "stale";
    if (near.has(plot)) draw(plot);
  }
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
for (const plot of plots)
  plot.parentElement.querySelector("select")?.addEventListener("change", () => draw(plot));

// --- filter

const rowOf = (id) => id.slice(0, id.lastIndexOf("/"));

function apply() {
  const wanted = Object.fromEntries([...new FormData(filter)].filter(([, value]) => value));
  const rows = new Set();
  hidden.clear();
  let count = 0;
  for (const cell of cells) {
    const { method, task, verdict, cell: id } = cell.dataset;
    const paper = id.split("/")[0];
    const facts = { paper, method, task, verdict };
    const out = Object.entries(wanted).some(([name, value]) => facts[name] !== value);
    cell.classList.toggle("out", out);
    if (out) hidden.add(id);
    else {
      count += 1;
      rows.add(rowOf(id));
    }
  }
  for (const cell of cells) if (!rows.has(rowOf(cell.dataset.cell))) hidden.add(rowOf(cell.dataset.cell));
  const any = Object.keys(wanted).length > 0;
  for (const row of document.querySelectorAll(".cells tbody tr"))
    row.hidden = any && !row.querySelector("td[data-cell]:not(.out)");
  for (const block of document.querySelectorAll(".block"))
    block.hidden = any && !block.querySelector("td[data-cell]:not(.out)");
  for (const paper of document.querySelectorAll("section.paper"))
    paper.hidden = any && !paper.querySelector(".block:not([hidden])");
  for (const tile of document.querySelectorAll(".tile"))
    tile.setAttribute("aria-pressed", String(tile.dataset.verdict === wanted.verdict));
  plots.forEach(offer);
  document.getElementById("count").textContent = any ? `${count} of ${cells.length} cells` : `${cells.length} cells`;
  redraw();
}
filter.addEventListener("change", apply);
filter.addEventListener("reset", () => setTimeout(apply));
filter.addEventListener("submit", (event) => event.preventDefault());
for (const tile of document.querySelectorAll(".tile"))
  tile.addEventListener("click", () => {
    filter.verdict.value = filter.verdict.value === tile.dataset.verdict ? "" : tile.dataset.verdict;
    apply();
    filter.scrollIntoView({ block: "start" });
  });

// --- sortable tables

function key(row, column) {
  const place = row.cells[column];
  const value = place?.dataset.value ?? place?.textContent.trim() ?? "";
  return value !== "" && !Number.isNaN(Number(value)) ? Number(value) : value;
}

for (const head of document.querySelectorAll(".sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const keyed = [...body.rows].map((row) => [key(row, head.cellIndex), row]);
    keyed.sort(([a], [b]) => {
      if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // empty ones last, either way
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return up ? order : -order;
    });
    body.append(...keyed.map(([, row]) => row));
  });
}

// --- deep links

function open() {
  const id = decodeURIComponent(location.hash).match(/^#cell\/(.+)$/)?.[1];
  document.querySelector("td.here")?.classList.remove("here");
  const cell = byId.get(id);
  if (!cell) {
    detail.close();
    return;
  }
  if (cell.classList.contains("out")) filter.reset();
  cell.classList.add("here");
  detail.querySelector("div").replaceChildren(templates.get(id).content.cloneNode(true));
  detail.show();
  setTimeout(() => cell.scrollIntoView({ block: "start", inline: "center" }));
}
detail.addEventListener("close", () => {
  if (location.hash.startsWith("#cell/")) history.replaceState(null, "", location.pathname + location.search);
  const cell = document.querySelector("td.here");
  cell?.classList.remove("here");
  cell?.querySelector("a").focus({ preventScroll: true });
});
detail.querySelector(".close").addEventListener("click", () => detail.close());
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && detail.open) detail.close();
});
addEventListener("hashchange", open);

apply();
open();
