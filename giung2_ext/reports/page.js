"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const views = {};

function rowsOf(chart) {
  const rows = chart.values.map((v) => Object.fromEntries(chart.columns.map((c, i) => [c, v[i]])));
  return rows.map((r) => Object.fromEntries(Object.entries(r).filter(([, v]) => v !== null)));
}

function enabled(kind) {
  return new Set([...document.querySelectorAll(`input[data-${kind}]:checked`)].map((box) => box.value));
}

function filter() {
  const several = document.querySelector("input[data-trial]") !== null;
  const series = enabled("series"), trials = enabled("trial");
  return {
    series: (name) => series.has(name),
    trial: (number) => !several || trials.has(String(number)),
  };
}

function shown(row, wanted) {
  const names = [row.series, row.panel, row.run, row.other].filter((name) => report.series.includes(name));
  return names.every(wanted.series) && (row.trial === undefined || wanted.trial(row.trial));
}

async function draw(name) {
  const chart = report.charts[name], place = document.getElementById(`chart-${name}`);
  const wanted = filter();
  const spec = structuredClone(chart.spec);
  spec.datasets = { rows: rowsOf(chart).filter((row) => shown(row, wanted)) };
  const theme = root.dataset.theme === "dark" ? "dark" : "light";
  const config = structuredClone(report.themes[theme]);
  if (window.innerWidth < 800) {
    const inner = spec.spec ?? spec;
    if (spec.columns) spec.columns = 1;
    if (inner.width) inner.width = Math.min(inner.width, window.innerWidth - 150);
    config.legend.columns = 2;
  }
  const patch = (vega) => { // a dash would break the outlines of a legend's symbols
    for (const legend of vega.legends ?? []) if (legend.symbolType !== "stroke") delete legend.strokeDash;
    return vega;
  };
  const options = { actions: false, patch, renderer: "svg", config, tooltip: { theme } };
  if (views[name]) views[name].finalize();
  delete views[name];
  if (!spec.datasets.rows.length) {
    place.firstElementChild.textContent = "Nothing is chosen above.";
    return;
  }
  views[name] = await vegaEmbed(place.firstElementChild, spec, options);
}

async function drawAll() {
  for (const name of Object.keys(report.charts)) await draw(name);
  root.dataset.ready = "yes";
}

function setTheme(theme) {
  root.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
}

function cell(text) {
  const td = document.createElement("td");
  td.textContent = text ?? "–";
  if (typeof text === "string") td.className = "text";
  return td;
}

function fill(details) {
  const chart = report.charts[details.dataset.of], table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const column of chart.columns) {
    const th = document.createElement("th");
    th.scope = "col";
    th.textContent = column;
    head.append(th);
  }
  const body = table.createTBody();
  for (const row of chart.values) body.insertRow().append(...row.map(cell));
  const scroll = details.querySelector(".scroll");
  scroll.replaceChildren(table);
  makeSortable(table);
}

function value(td) {
  const text = td.textContent.replace(/,/g, ""), number = parseFloat(text);
  return Number.isNaN(number) ? text : number;
}

function sort(table, column, button) {
  const th = button.parentElement, down = th.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a.cells[column]), value(b.cells[column])];
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
  });
  table.tBodies[0].append(...rows);
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((th, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = th.textContent;
    th.replaceChildren(button);
    button.addEventListener("click", () => sort(table, column, button));
  });
}

function filterTables() {
  const wanted = filter(), words = document.getElementById("words").value.toLowerCase().split(/\s+/);
  for (const row of document.querySelectorAll("tr[data-series]")) {
    const text = [...row.cells].map((td) => td.textContent.toLowerCase()).join(" ");
    const named = words.every((word) => text.includes(word));
    row.hidden = !wanted.series(row.dataset.series) || !wanted.trial(row.dataset.ofTrial) || !named;
  }
}

function csv(chart) {
  const quote = (v) => (v === null ? "" : /[",\n]/.test(String(v)) ? `"${String(v).replace(/"/g, '""')}"` : v);
  return [chart.columns, ...chart.values].map((row) => row.map(quote).join(",")).join("\n");
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
document.getElementById("theme").addEventListener("click", () => {
  setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  drawAll();
});
let onScreen; // all of it is drawn before the browser prints: nothing waits for a timer
addEventListener("beforeprint", () => { onScreen = root.dataset.theme; setTheme("light"); drawAll(); });
addEventListener("afterprint", () => { setTheme(onScreen); drawAll(); });
document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("input[data-series], input[data-trial]").forEach((box) =>
  box.addEventListener("change", () => { filterTables(); drawAll(); }));
document.getElementById("words").addEventListener("input", filterTables);
for (const details of document.querySelectorAll("details[data-of]"))
  details.addEventListener("toggle", () => fill(details), { once: true });
for (const link of document.querySelectorAll("a[data-csv]"))
  link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(csv(report.charts[link.dataset.csv]))}`;
drawAll();
