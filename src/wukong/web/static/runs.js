// Keeps a page of a run current: states, buttons and the log, told by one stream of events. A hidden tab lets go of its
// stream, because a browser has few for one server, and goes on later from where it was.

import { t } from "./api.js";

const page = document.querySelector("#run");
const { run, step = "" } = page.dataset;
const log = document.querySelector("#log");
const listeners = { state: [showState], log: [showLog], problem: [showProblem] };
let source = null;
let place = "";

export const address = `/api/runs/${encodeURIComponent(run)}`;

// Calls back with the data of each event of a kind.
export function on(kind, listener) {
  (listeners[kind] ??= []).push(listener);
}

// Opens the stream, from a place that the server named.
export function watch(at = "") {
  place = at;
  open();
  document.addEventListener("visibilitychange", () => (document.hidden ? source?.close() : open()));
}

function open() {
  source?.close();
  source = new EventSource(`${address}/events?${new URLSearchParams({ step, at: place })}`);
  for (const [kind, all] of Object.entries(listeners)) {
    source.addEventListener(kind, (event) => {
      place = event.lastEventId;
      for (const listener of all) listener(JSON.parse(event.data));
    });
  }
  const own = source;
  source.addEventListener("error", () => { // refused, by a proxy or because the session has ended: not tried again by itself
    if (own.readyState === EventSource.CLOSED && own === source) setTimeout(() => document.hidden || own !== source || open(), 5000);
  });
}

const names = {
  waiting: () => t("waiting"), running: () => t("running"), stopped: () => t("stopped"), done: () => t("done"), failed: () => t("failed"),
};

function showState(state) {
  for (const one of state.steps) {
    const row = page.querySelector(`[data-name="${CSS.escape(one.name)}"]`);
    if (!row) continue;
    const chip = row.querySelector(".state");
    chip.className = `state ${one.state}`;
    chip.textContent = names[one.state]();
    row.querySelector(".problem").textContent = one.problem;
    row.querySelector(".time").textContent = one.time;
    const start = row.querySelector(".start");
    if (start) start.hidden = state.running || one.state === "done";
  }
  const controls = page.querySelector("#controls");
  const own = state.steps.find((one) => one.name === controls.dataset.step);
  const startable = own ? own.planned && own.state !== "done" : state.startable;
  controls.querySelector(".start").hidden = state.running || !startable;
  controls.querySelector(".stop").hidden = !state.stoppable;
  controls.querySelector(".gently").hidden = state.asked > 0;
  controls.querySelector(".hard").hidden = state.asked === 0;
  page.querySelector("#elsewhere").hidden = !state.running || state.stoppable;
  showProblem(state.problem);
}

function showProblem(problem) {
  const place = page.querySelector("#problem");
  place.textContent = problem;
  place.hidden = !problem;
}

const LONGEST = 200000;

function showLog({ new: anew, text }) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  log.textContent = ((anew ? "" : log.textContent) + text).slice(-LONGEST);
  if (atEnd) log.scrollTop = log.scrollHeight;
}

if (!step) watch();
