// The glass box of a step: traced iterations as tokens, and sliders under which the server computes them again.

import { element, send, t, troubled } from "./api.js";
import { iterationView } from "./shared/view.js";

const place = document.querySelector("#glass");
const form = document.querySelector("#settings");
const said = document.querySelector("#said");
const address = `/api/runs/${encodeURIComponent(place.dataset.run)}/glass/${place.dataset.step.split("/").map(encodeURIComponent).join("/")}`;
const loaded = new Map(); // iteration -> what the server said of it
let sliders = [];
let shown = null; // the iteration on the page
let asked = 0; // number of the last request: answers to earlier ones come too late

const NAMES = { kl_coef: t("β, the KL coefficient"), gamma: t("γ, the discount factor"), lam: t("λ of GAE"), clip_range: t("Clip range of the ratio") };
const readable = (value) => String(Number(value.toPrecision(4)));

function settingsOf(found) {
  const limits = { kl_coef: Math.max(0.5, 4 * found.settings.kl_coef), gamma: 1, lam: 1, clip_range: Math.max(1, found.settings.clip_range) };
  const lowest = { clip_range: 0.001 };
  sliders = Object.entries(found.settings).map(([name, value]) => {
    const input = element("input", { type: "range", name, min: lowest[name] ?? 0, max: limits[name], step: "any", oninput: changed });
    input.defaultValue = String(value);
    return { name, input, output: element("output"), recorded: value, moved: false };
  });
  form.querySelector(".glass-settings").replaceChildren(...sliders.map(({ name, input, output }) => element("label", {}, NAMES[name], output, input)));
  form.hidden = false;
  write();
}

function write() {
  for (const one of sliders) one.output.textContent = readable(one.moved ? one.input.valueAsNumber : one.recorded);
}

function changed(event) {
  sliders.find(({ input }) => input === event.target).moved = true;
  write();
  compute();
}

// At most one request at a time; what was moved meanwhile is a second one.
let busy = false;
async function compute() {
  asked += 1;
  if (busy) return;
  busy = true;
  place.setAttribute("aria-busy", "true");
  said.textContent = t("One moment…"); // the server may have to load what it computes with
  for (let mine = 0; mine !== asked;) {
    mine = asked;
    const changes = Object.fromEntries(sliders.filter(({ moved }) => moved).map(({ name, input }) => [name, input.valueAsNumber]));
    try {
      const found = Object.keys(changes).length ? await send("POST", address, { iteration: shown, ...changes }) : loaded.get(shown);
      if (mine === asked) view.update(found);
      said.textContent = "";
    } catch (error) {
      said.textContent = troubled(error);
    }
  }
  busy = false;
  place.setAttribute("aria-busy", "false");
}

form.addEventListener("reset", () => {
  for (const one of sliders) one.moved = false;
  requestAnimationFrame(write); // once the form has put its fields back
  compute();
});
form.addEventListener("submit", (event) => event.preventDefault());

async function load(step) {
  place.setAttribute("aria-busy", "true");
  try {
    return await found(step);
  } catch (error) {
    said.textContent = troubled(error);
    return null;
  } finally {
    place.setAttribute("aria-busy", "false");
  }
}

async function found(step) {
  if (!loaded.has(step)) loaded.set(step, await send("GET", `${address}?iteration=${step}`));
  const recorded = loaded.get(step);
  shown = step;
  said.textContent = "";
  for (const one of sliders) {
    one.recorded = recorded.settings[one.name];
    one.input.defaultValue = String(one.recorded);
  }
  write();
  const moved = sliders.filter((one) => one.moved).map(({ name, input }) => [name, input.valueAsNumber]);
  return moved.length ? send("POST", address, { iteration: step, ...Object.fromEntries(moved) }) : recorded;
}

let view = null;
try {
  const last = await send("GET", address);
  loaded.set(last.step, last);
  settingsOf(last);
  view = iterationView(t, last.steps, null, load);
  place.replaceChildren(view.root);
  await view.show(last.step);
} catch (error) {
  place.replaceChildren(element("p", { class: "error" }, troubled(error)));
}
place.setAttribute("aria-busy", "false");
performance.mark("tokens"); // the page can be read from here on
// Plotly's script may come after the tokens, or before them.
document.querySelector("script[async]").addEventListener("load", () => view?.draw());
