// Responses as tokens: coloured text, a table, and curves along the response. The report has it inside its page, the
// studio imports it. Nothing is computed here: all numbers come with the responses (wukong.report.traces), in lists with
// one entry per token; a list that is missing is not shown.

import { element } from "./element.js";

export const shown = (value, digits = 4) => (Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "–");

// Of each list its name, what it means, and how far a value is from nothing special (what colours are made of).
function columns(t) {
  return [
    ["logprobs", "log π", t("Log-probability of the token under the policy, in nats, before the update."), (x) => x],
    ["reference_logprobs", "log π_ref", t("The same under the frozen reference, the SFT model."), (x) => x],
    ["kl", "KL", t("log π − log π_ref: how far the policy is from the reference at this token."), (x) => x],
    ["end_scores", t("score if it ended here"), t("The reward model's score of the response up to this token."), (x) => x],
    ["rewards", t("reward"), t("−β × KL; at the last token also the score."), (x) => x],
    ["values", t("value V"), t("The value model's prediction of the rewards from here on."), (x) => x],
    ["advantages", t("advantage"), t("How much better this token was than expected, as the loss takes it."), (x) => x],
    ["returns", t("return"), t("What the value model is trained towards: the advantage before whitening, plus the value."), (x) => x],
    ["new_logprobs", t("log π after"), t("Log-probability under the policy after the update."), (x) => x],
    ["ratios", t("ratio"), t("π after / π before the update."), (x) => Math.log(x)],
    ["clipped", t("clipped"), t("Whether the ratio is outside 1 ± the clip range."), Number],
    ["policy_losses", t("policy loss"), t("What the token contributes to the policy's loss, after the update."), (x) => x],
    ["value_losses", t("value loss"), t("The same for the value model's loss."), (x) => x],
    ["entropies", t("entropy"), t("How undecided the policy was, in nats."), (x) => x],
  ];
}

const COLOURS = ["advantages", "kl", "end_scores", "rewards", "values", "logprobs", "ratios"];

function visible(text) {
  return text.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t") || "∅";
}

// One page or dialog of tokens. `t` translates; `heading(response)` gives what is written above one.
//   root     the element
//   show(responses, keep)  shows these; keep: the same place stays selected
export function tokenView(t, heading) {
  const known = columns(t);
  let responses = [];
  let chosen = 0;
  let colour = "";
  const buttons = element("div", { class: "glass-colours", role: "group", "aria-label": t("Colour the tokens by") });
  const legend = element("p", { class: "glass-fine glass-legend" });
  const list = element("div", { class: "glass-answers" });
  const charts = element("div", { class: "glass-chart", role: "img", "aria-label": t("The quantities along the response") });
  const table = element("table", { class: "glass-table" });
  const place = element("div", { class: "glass-scroll", tabindex: "0", role: "region", "aria-label": t("Tokens of the response") }, table);
  const root = element("div", { class: "glass-tokens" }, buttons, legend, list, charts, place);

  const has = (name) => responses.some((one) => one[name]);
  const distance = (name) => known.find(([own]) => own === name)[3];
  const offered = () => COLOURS.filter(has);

  function paintButtons() {
    if (!offered().includes(colour)) colour = offered()[0];
    buttons.replaceChildren(...offered().map((name) => element("button", { type: "button", "aria-pressed": String(name === colour), "data-colour": name, onclick: () => { colour = name; paint(); } },
      known.find(([own]) => own === name)[1])));
  }

  // The strongest colour is the largest value on the page, so that responses can be compared; roots, since the score at
  // the end of a response dwarfs the KL penalties before it.
  function paint() {
    paintButtons();
    const far = distance(colour);
    const most = Math.max(1e-9, ...responses.flatMap((one) => (one[colour] ?? []).map((x) => Math.abs(far(x)))));
    responses.forEach((one, i) => {
      const spans = list.children[i].querySelectorAll(".glass-token");
      one.tokens.forEach((_, n) => {
        const value = far(one[colour]?.[n] ?? NaN);
        const share = Number.isFinite(value) ? Math.sqrt(Math.abs(value) / most) : 0;
        spans[n].style.setProperty("--share", `${Math.round(70 * share)}%`);
        spans[n].classList.toggle("minus", value < 0);
      });
    });
    const [, name, meaning] = known.find(([own]) => own === colour);
    const end = colour === "ratios" ? Math.exp(most) : most;
    legend.replaceChildren(element("span", { class: "glass-token minus glass-full" }, colour === "ratios" ? shown(1 / end, 2) : shown(-end, 2)), " ",
      element("span", { class: "glass-token" }, colour === "ratios" ? "1" : "0"), " ",
      element("span", { class: "glass-token glass-full" }, shown(end, 2)), ` ${t("{what}: {name}", { what: name, name: meaning })}`);
  }

  function card(one, i) {
    const tokens = element("div", { class: "glass-text", onclick: (event) => pick(event, i) },
      ...one.tokens.map((text, n) => element("span", { class: "glass-token", "data-n": n }, visible(text))));
    const choose = element("button", { type: "button", class: "glass-choose", "aria-pressed": String(i === chosen), onclick: () => select(i) }, t("Show its numbers"));
    return element("article", { class: "glass-answer" }, element("header", {}, ...heading(one), choose), tokens);
  }

  function pick(event, i) {
    const token = event.target.closest(".glass-token");
    select(i);
    if (token) markRow(Number(token.dataset.n));
  }

  function markRow(n) {
    for (const one of root.querySelectorAll(".glass-marked")) one.classList.remove("glass-marked");
    const row = table.tBodies[0].rows[n];
    row.classList.add("glass-marked");
    list.children[chosen].querySelectorAll(".glass-token")[n].classList.add("glass-marked");
    place.scrollTop = row.offsetTop - place.clientHeight / 2;
  }

  function select(i) {
    chosen = i;
    [...list.children].forEach((one, k) => {
      one.classList.toggle("glass-chosen", k === i);
      one.querySelector(".glass-choose").setAttribute("aria-pressed", String(k === i));
    });
    fillTable();
    draw();
  }

  const cell = (name, value) => (name === "clipped" ? (value ? "✕" : "") : shown(value));

  function fillTable() {
    const one = responses[chosen];
    const own = known.filter(([name]) => one[name]);
    const head = element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "#"), element("th", { scope: "col" }, t("token")),
      ...own.map(([, name, meaning]) => element("th", { scope: "col", class: "num", title: meaning }, name))));
    const rows = one.tokens.map((text, n) => element("tr", {}, element("td", { class: "num" }, String(n + 1)), element("th", { scope: "row" }, element("code", {}, visible(text))),
      ...own.map(([name]) => element("td", { class: "num", "data-column": name }, cell(name, one[name][n])))));
    table.replaceChildren(head, element("tbody", {}, ...rows));
  }

  // Curves need Plotly, which may come later than the page, or not at all.
  function draw() {
    charts.hidden = !window.Plotly;
    if (!window.Plotly || !responses.length) return;
    const one = responses[chosen];
    const rows = [["values", "returns", "advantages"], ["rewards", "end_scores"], ["logprobs", "reference_logprobs", "new_logprobs"], ["kl"]]
      .map((names) => names.filter((name) => one[name])).filter((names) => names.length);
    const style = getComputedStyle(root);
    const css = (name) => style.getPropertyValue(name).trim();
    const [ink, rule] = [style.color, css("--rule")];
    const x = one.tokens.map((_, n) => n + 1);
    const data = rows.flatMap((names, row) => names.map((name, i) => ({
      type: name === "kl" || name === "rewards" ? "bar" : "scatter", mode: "lines", x, y: one[name], name: known.find(([own]) => own === name)[1],
      line: { width: 1.6, color: css(`--glass-${i}`) }, marker: { color: css(`--glass-${i}`) }, customdata: one.tokens.map((text) => visible(text).replaceAll("<", "&lt;")),
      hovertemplate: "%{x}. %{customdata}: %{y:.4f}", yaxis: row ? `y${row + 1}` : "y",
    })));
    const space = 0.06;
    const height = (1 - space * (rows.length - 1)) / rows.length;
    const axis = { gridcolor: rule, linecolor: rule, zerolinecolor: rule, tickfont: { color: ink, size: 11 }, automargin: true };
    const axes = Object.fromEntries(rows.map((names, row) => [row ? `yaxis${row + 1}` : "yaxis",
      { ...axis, domain: [1 - (row + 1) * height - row * space, 1 - row * (height + space)], fixedrange: true }]));
    const layout = {
      ...axes, xaxis: { ...axis, anchor: rows.length > 1 ? `y${rows.length}` : "y", title: { text: t("token"), font: { size: 11, color: ink } }, fixedrange: true },
      height: 60 + 130 * rows.length, autosize: true, margin: { l: 10, r: 10, t: 10, b: 30 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: css("--sans"), size: 12, color: ink }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, hovermode: "closest", bargap: 0.1,
      hoverlabel: { bgcolor: css("--card"), bordercolor: rule, font: { color: ink } }, dragmode: false,
    };
    window.Plotly.react(charts, data, layout, { responsive: true, displayModeBar: false });
  }

  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  function show(given, keep) {
    responses = given;
    chosen = keep && chosen < responses.length ? chosen : 0;
    list.replaceChildren(...responses.map(card));
    paint();
    select(chosen);
  }
  return { root, show, draw };
}

// Above an answer that was taken apart (wukong.inspection).
export function answerHeading(t, one) {
  const parts = [t("{n} tokens", { n: one.tokens.length })];
  if (one.kl) parts.push(t("KL {x} nats to {name}", { x: shown(one.kl.reduce((a, b) => a + b, 0)), name: one.reference }));
  if (one.end_scores) parts.push(t("score {x} by {name}", { x: shown(one.end_scores.at(-1)), name: one.reward_model }));
  parts.push(t("at temperature {x}", { x: one.temperature }));
  return [element("p", { class: "glass-fine" }, `${one.model} · ${parts.join(" · ")}`), element("p", { class: "glass-prompt" }, one.messages.at(-1)?.content ?? "")];
}

// ------------------------------------------------------------------------------------------------ a training step

function said(t, one) {
  const kind = one.pinned ? t("pinned prompt") : t("response {n} of the batch", { n: one.row + 1 });
  const parts = [t("score {x}", { x: shown(one.score) }), t("KL {x} nats", { x: shown(one.kl.reduce((a, b) => a + b, 0)) }), t("{n} tokens", { n: one.tokens.length })];
  if (one.score !== one.reward) parts.push(t("reward {x}, but it never ended", { x: shown(one.reward) }));
  if (!one.trained && !one.pinned) parts.push(t("not trained on"));
  return [element("p", { class: "glass-fine" }, `${kind} · ${parts.join(" · ")}`),
    element("p", { class: "glass-prompt" }, one.messages.at(-1)?.content ?? "")];
}

// The traced iterations of a run, with a slider. `steps`: their numbers; `load(step)`: a promise of
// {responses, means}, or of null; `means` are [name, value] pairs that are shown above. Gives root, show(step) and update(found).
export function iterationView(t, steps, total, load) {
  const view = tokenView(t, (one) => said(t, one));
  const slider = element("input", { type: "range", min: "0", max: String(steps.length - 1), step: "1", "aria-label": t("Iteration"), oninput: () => go(Number(slider.value)) });
  const at = element("output", { class: "glass-at" });
  const tiles = element("dl", { class: "glass-tiles" });
  const root = element("div", { class: "glass" }, element("div", { class: "glass-bar", hidden: steps.length < 2 }, slider, at), tiles, view.root);
  const wanted = { at: -1 };

  function update({ responses, means }) {
    tiles.replaceChildren(...means.map(([name, value]) => element("div", { "data-mean": name }, element("dt", {}, element("code", {}, name)), element("dd", {}, shown(value)))));
    view.show(responses, true);
  }

  async function go(i) {
    wanted.at = i;
    slider.value = String(i);
    at.textContent = total ? t("iteration {n} of {total}", { n: steps[i], total }) : t("iteration {n}", { n: steps[i] });
    slider.setAttribute("aria-valuetext", at.textContent);
    const found = await load(steps[i]);
    if (found && wanted.at === i) update(found); // the slider may have moved on meanwhile
  }
  return { root, update, draw: view.draw, show: (step) => go(Math.max(0, steps.indexOf(step))) };
}
