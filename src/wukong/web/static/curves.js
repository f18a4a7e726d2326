// The curves and samples of a step: fetched once, thinned by the server, and then grown line by line.

import { element, send, t } from "./api.js";
import { address, on, watch } from "./runs.js";

const page = document.querySelector("#run");
const place = document.querySelector("#curves");
const own = `${address}/steps/${page.dataset.step.split("/").map(encodeURIComponent).join("/")}`;
const MOST = 1000; // points of a curve; with more, the thinned ones are fetched again
const SMOOTH_FROM = 40;
const touch = window.matchMedia("(pointer: coarse)").matches;
let charts = new Map(); // names of its metrics -> {metrics, chart, lasts, visible}
let lastStep = -1;
let loading = null;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const shown = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)))).replace("-", "−");

// ------------------------------------------------------------------------------------------------------------ drawing

// The mean of the neighbours on both sides, a tenth of the curve in all and fewer towards its ends.
function smoothed(ys) {
  const sums = [0];
  for (const y of ys) sums.push(sums.at(-1) + y);
  const half = Math.max(1, Math.floor(ys.length / 20));
  return ys.map((_, i) => {
    const reach = Math.min(half, i, ys.length - 1 - i);
    return (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1);
  });
}

function draw(one) {
  if (!one.visible || !window.Plotly) return;
  const data = one.metrics.flatMap((metric, i) => {
    const { name } = metric;
    const [x, y] = [[...metric.x], [...metric.y]]; // Plotly takes an array it has seen for unchanged
    const color = css(`--curve-${i % 2}`);
    const hovertemplate = `${name} %{y}<extra></extra>`;
    const both = { type: "scatter", x, name };
    if (y.length < SMOOTH_FROM) return [{ ...both, y, mode: "lines+markers", line: { color, width: 2 }, marker: { size: 5, color }, hovertemplate }];
    return [
      { ...both, y, mode: "lines", line: { color, width: 1 }, opacity: 0.35, hovertemplate },
      { ...both, y: smoothed(y), mode: "lines", line: { color, width: 2 }, hoverinfo: "skip" },
    ];
  });
  const axis = { gridcolor: css("--rule"), linecolor: css("--rule"), zerolinecolor: css("--rule"), tickfont: { color: css("--soft") }, fixedrange: touch };
  const title = (text) => ({ text, font: { size: 12, color: css("--soft") }, standoff: 8 });
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: css("--sans"), size: 12, color: css("--ink") },
    margin: { l: 64, r: 12, t: 8, b: 44 }, showlegend: false, autosize: true, hovermode: "x", dragmode: touch ? false : "zoom",
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--rule"), font: { color: css("--ink") } },
    xaxis: { ...axis, rangemode: "tozero", title: title(t("step")) }, yaxis: { ...axis, title: title(one.metrics[0].unit) },
  };
  window.Plotly.react(one.chart, data, layout, { responsive: true, displayModeBar: false });
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const one = [...charts.values()].find(({ chart }) => chart === entry.target);
    if (!one) continue;
    one.visible = entry.isIntersecting;
    draw(one);
  }
}, { rootMargin: "400px" });

// `name` in a definition as a code element.
function withCode(text) {
  return text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
}

function figure(metrics) {
  const chart = element("div", { class: "chart", role: "img", "aria-label": t("Curve of {names}", { names: metrics.map((one) => one.name).join(", ") }) });
  const lasts = metrics.map(() => element("span", { class: "fine" }));
  const entries = metrics.flatMap((one, i) => [
    element("dt", {}, element("span", { class: `dot of-${i % 2}`, "aria-hidden": "true" }), element("code", {}, one.name), " ", lasts[i]),
    element("dd", {}, ...withCode(one.definition), " ", element("span", { class: "watch" }, ...withCode(one.watch))),
  ]);
  const root = element("figure", {}, chart, element("figcaption", {}, element("dl", {}, ...entries)));
  return { metrics, chart, lasts, root, visible: false };
}

function sayLast(one) {
  one.metrics.forEach(({ y, unit }, i) => {
    one.lasts[i].textContent = t("last {value}", { value: shown(y.at(-1)) }) + (unit ? ` · ${unit}` : "");
  });
}

function sayStep(step) {
  lastStep = step;
  document.querySelector("#last-step").textContent = t("step {n}", { n: step.toLocaleString("en") });
}

// ------------------------------------------------------------------------------------------------------------ loading

const keyOf = ({ metrics }) => metrics.map(({ name }) => name).join(" ");

async function load() {
  const found = await send("GET", `${own}/curves`);
  if (found.charts.map(keyOf).join() !== [...charts.keys()].join() || !found.charts.length) arrange(found.charts);
  for (const { metrics } of found.charts) {
    const one = charts.get(keyOf({ metrics }));
    one.metrics = metrics;
    sayLast(one);
    draw(one);
  }
  place.setAttribute("aria-busy", "false");
  if (found.step === null) lastStep = -1;
  else sayStep(found.step);
  return found.at;
}

// Figures under their headings; those that are there already move with what was drawn in them.
function arrange(wanted) {
  const before = charts;
  charts = new Map(wanted.map((one) => [keyOf(one), before.get(keyOf(one)) ?? figure(one.metrics)]));
  const blocks = [];
  for (const heading of new Set(wanted.map((one) => one.heading))) {
    const all = wanted.filter((one) => one.heading === heading);
    if (heading) blocks.push(element("h3", {}, heading));
    blocks.push(element("div", { class: "charts" }, ...all.map((one) => charts.get(keyOf(one)).root)));
  }
  if (!blocks.length) blocks.push(element("p", { class: "absent" }, t("Nothing was logged yet; curves appear here when there is something.")));
  place.replaceChildren(...blocks);
  for (const one of charts.values()) watcher.observe(one.chart);
}

// One at a time; what was asked for meanwhile is a second one.
function reload() {
  loading = (loading ?? Promise.resolve()).then(load).catch((error) => {
    charts = new Map();
    place.replaceChildren(element("p", { class: "error" }, error.message));
    return "";
  });
  return loading;
}

on("reset", reload);

on("lines", async (lines) => {
  await loading;
  const changed = new Set();
  for (const line of lines.filter(({ step }) => step > lastStep)) {
    for (const [name, value] of Object.entries(line)) {
      if (name === "step" || !Number.isFinite(value)) continue;
      const one = [...charts.values()].find(({ metrics }) => metrics.some((metric) => metric.name === name));
      const metric = one?.metrics.find((own) => own.name === name);
      if (!metric || metric.x.length >= MOST) {
        reload();
        return;
      }
      metric.x.push(line.step);
      metric.y.push(value);
      changed.add(one);
    }
    sayStep(line.step);
  }
  for (const one of changed) {
    sayLast(one);
    draw(one);
  }
});

// ------------------------------------------------------------------------------------------------------------ samples

const KNOWN = new Set(["step", "prompt", "text"]);

function sample(line) {
  const more = Object.entries(line).filter(([name]) => !KNOWN.has(name)).map(([name, value]) => `${name} ${typeof value === "number" ? shown(value) : value}`);
  return [
    element("dt", {}, t("step {n}", { n: line.step.toLocaleString("en") }), ...(more.length ? [element("br"), more.join(" · ")] : [])),
    element("dd", {}, element("div", { class: "said" }, line.text ?? "")),
  ];
}

async function showSamples() {
  const groups = await send("GET", `${own}/samples`).catch(() => []);
  document.querySelector("#samples-section").hidden = groups.length === 0;
  document.querySelector("#samples").replaceChildren(...groups.flatMap(({ prompt, lines }) => [
    ...(prompt ? [element("h3", {}, prompt)] : []),
    element("dl", { class: "growth" }, ...lines.flatMap((line) => (prompt === null && line.prompt
      ? [element("dt", {}), element("dd", { class: "who" }, line.prompt), ...sample(line)] : sample(line)))),
  ]));
}

on("samples", showSamples);
showSamples();
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(draw));
window.addEventListener("load", () => charts.forEach(draw)); // Plotly's script may come after the figures
reload().then((at) => watch(at ? `${at}.` : ""));
