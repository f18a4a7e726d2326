// The label page. The next task is fetched while this one is read, and a judgment is sent while the next is shown.
// What was judged lies in the browser's storage until the server has said that it is committed; a lost answer, a
// closed tab or a restarted server only means that it is sent again, with the same id.

import { element, randomId, Refused, send, t, typing } from "./api.js";
import { kinds } from "./kinds.js";

const page = document.querySelector("#label");
const project = page.dataset.project;
const flags = JSON.parse(page.dataset.flags);
const place = document.querySelector("#task");
const saved = document.querySelector("#saved");
const comment = document.querySelector("#comment");
const flag = document.querySelector("#flag");
const skipDialog = document.querySelector("#skip-dialog");
const helpDialog = document.querySelector("#help-dialog");
const storage = `wukong-outbox-${page.dataset.person}-${project}`;

let outbox = JSON.parse(localStorage.getItem(storage) ?? "[]");
let waiting = []; // tasks fetched and not shown yet
let current = null; // {task, widget, shownAt}
let progress = { done: 0, left: 0 };
let sending = null;
let filling = null;
let draftTimer = 0;
const begun = performance.now();
let doneHere = 0;

function keep() {
  localStorage.setItem(storage, JSON.stringify(outbox));
}

// Between two and six seconds: after an outage not all pages come back in the same moment.
const pause = () => new Promise((resolve) => setTimeout(resolve, 2000 + 4000 * Math.random()));

// ------------------------------------------------------------------------------------------------------ the server

function flush() {
  sending ??= sendAll().finally(() => { sending = null; });
  return sending;
}

async function sendAll() {
  while (outbox.length) {
    const { path, body } = outbox[0];
    try {
      ({ progress } = await send("POST", path, body));
      saved.textContent = t("Saved");
    } catch (error) {
      if (!(error instanceof Refused) || error.status >= 500 || error.status === 429 || error.status === 401) {
        saved.textContent = t("Not saved yet, trying again…");
        if (error.status === 401) { location.assign("/login"); return; }
        await pause();
        continue;
      }
      saved.textContent = t("Not saved: {reason}", { reason: error.message });
    }
    outbox.shift();
    keep();
    showPace();
  }
}

function fill() {
  filling ??= fetchTasks().finally(() => { filling = null; });
  return filling;
}

async function fetchTasks() {
  for (;;) {
    try {
      const hand = await send("POST", `/api/projects/${project}/next?count=${Math.min(10, 3 + outbox.length)}`, {});
      // What we judged meanwhile may still be on its way, and what we show is ours already.
      const known = new Set([...outbox.map((one) => one.body.assignment), ...waiting.map((task) => task.assignment), current?.task.assignment, ...justSent]);
      waiting.push(...hand.tasks.filter((task) => !known.has(task.assignment)));
      if (!outbox.length) progress = hand.progress;
      if (!current && waiting.length) show(waiting.shift());
      else if (!current && !outbox.length) say(t("Nothing is left for you here. Thank you!"));
      showPace();
      return;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) { location.assign("/login"); return; }
      saved.textContent = error instanceof Refused ? error.message : t("The server does not answer, trying again…");
      await pause();
    }
  }
}

const justSent = []; // assignments judged lately: an answer that was under way may still name them

// --------------------------------------------------------------------------------------------------------- a task

function turn(message) {
  const names = { system: t("System"), user: t("User"), assistant: t("Assistant") };
  return element("div", { class: `turn ${message.role}` }, element("span", { class: "who" }, names[message.role]), element("div", { class: "said" }, message.content));
}

function show(task) {
  const widget = kinds[task.kind](task.responses, flags, saveDraftSoon, (value) => submit(value));
  current = { task, widget, shownAt: performance.now() };
  if (task.draft) widget.load(task.draft);
  comment.value = "";
  flag.checked = false;
  document.querySelector("#foot").hidden = false;
  document.querySelector("#submit").hidden = task.kind === "pairwise" || task.kind === "thumbs";
  place.replaceChildren(element("div", { class: "conversation" }, ...task.prompt.map(turn)), widget.root);
  place.dataset.assignment = task.assignment;
  place.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function say(text) {
  place.replaceChildren(element("p", { class: "absent" }, text));
}

function showNext() {
  clearTimeout(draftTimer);
  const task = waiting.shift();
  if (task) {
    show(task);
  } else {
    current = null;
    document.querySelector("#foot").hidden = true;
    delete place.dataset.assignment;
    say(t("One moment…"));
  }
  if (waiting.length < 2) flush().then(fill);
}

function showPace() {
  const minutes = (performance.now() - begun) / 60000;
  const pace = doneHere > 2 ? " · " + t("{n} an hour", { n: Math.round((doneHere / minutes) * 60) }) : "";
  document.querySelector("#pace").textContent = t("{done} done · {left} left", progress) + pace;
  const bar = document.querySelector("#progress");
  bar.max = Math.max(1, progress.done + progress.left);
  bar.value = progress.done;
}

function act(path, more) {
  if (!current) return;
  clearTimeout(draftTimer);
  const seconds = (performance.now() - current.shownAt) / 1000;
  const assignment = current.task.assignment;
  outbox.push({ path, body: { assignment, client_id: randomId(), seconds, flagged: flag.checked, ...more } });
  keep();
  justSent.push(assignment);
  if (justSent.length > 20) justSent.shift();
  doneHere += 1;
  saved.textContent = t("Saving…");
  showNext();
  flush();
}

function submit(value = current?.widget.value()) {
  if (!value) {
    saved.textContent = t("Not finished yet");
    return;
  }
  act("/api/labels", { value, comment: comment.value });
}

async function undo() {
  await flush();
  try {
    const hand = await send("POST", `/api/projects/${project}/undo`, { client_id: randomId() });
    const back = hand.tasks[0];
    progress = hand.progress;
    waiting = waiting.filter((task) => task.assignment !== back.assignment);
    if (current) waiting.unshift({ ...current.task, draft: current.widget.draft() });
    const at = justSent.indexOf(back.assignment);
    if (at >= 0) justSent.splice(at, 1);
    show(back);
    saved.textContent = t("Taken back");
    showPace();
  } catch (error) {
    saved.textContent = error.message;
  }
}

function saveDraftSoon() {
  clearTimeout(draftTimer);
  const { task, widget } = current ?? {};
  if (!widget?.draft()) return;
  draftTimer = setTimeout(async () => {
    try {
      await send("PUT", `/api/assignments/${task.assignment}/draft`, { draft: widget.draft() });
      if (current?.task === task) saved.textContent = t("Draft saved");
    } catch {
      // The draft is a convenience; the judgment itself is sent until it is heard.
    }
  }, 400);
}

// ------------------------------------------------------------------------------------------------- keys and buttons

const actions = {
  s: () => current && skipDialog.showModal(),
  f: () => { flag.checked = !flag.checked; },
  c: () => comment.focus(),
  z: undo,
  g: () => { const box = document.querySelector("#guidelines"); if (box) box.open = !box.open; },
  "?": () => helpDialog.showModal(),
  Enter: () => submit(),
};

document.addEventListener("keydown", (event) => {
  if (skipDialog.open) {
    skipDialog.querySelectorAll("[data-reason]")[Number.parseInt(event.key, 10) - 1]?.click();
    return;
  }
  if (helpDialog.open) {
    if (event.key === "?") helpDialog.close();
    return;
  }
  if (event.target === comment && (event.key === "Escape" || event.key === "Enter")) {
    event.preventDefault();
    place.focus({ preventScroll: true });
    return;
  }
  if (typing(event) || (event.key === "Enter" && event.target.matches("button, summary, a, [type=checkbox]"))) return;
  const name = event.key.length === 1 && !event.shiftKey ? event.key.toLowerCase() : event.key;
  if (current?.widget.key(event)) event.preventDefault();
  else if (actions[name] && !event.repeat) {
    event.preventDefault();
    actions[name]();
  }
});

document.querySelector("#undo").addEventListener("click", undo);
document.querySelector("#skip").addEventListener("click", actions.s);
document.querySelector("#help").addEventListener("click", actions["?"]);
document.querySelector("#submit").addEventListener("click", () => submit());
for (const button of skipDialog.querySelectorAll("[data-reason]")) {
  button.addEventListener("click", () => {
    skipDialog.close();
    act("/api/skips", { reason: button.dataset.reason });
  });
}
window.addEventListener("beforeunload", (event) => { if (outbox.length) event.preventDefault(); });

flush().then(fill);
