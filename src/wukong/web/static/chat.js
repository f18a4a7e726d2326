// The chat. A conversation is a tree of turns, of which the page shows one path; a message that was edited, or an answer
// that was drawn again, is another child of the same parent. The server keeps the tree: after each change it is read again.

import { element, events, randomId, send, t, troubled, typing } from "./api.js";
import { composer } from "./composer.js";
import { kinds } from "./kinds.js";

const place = document.querySelector("#turns");
const saved = document.querySelector("#saved");
const model = document.querySelector("#model");
const list = document.querySelector("#conversations");
const examples = document.querySelector("#examples");
const everybody = document.querySelector("#everybody");
const fields = [...document.querySelectorAll("#sampling input")];
const narrow = matchMedia("(max-width: 60rem)");

let conversation = "";
let turns = [];
let mine = true;
let busy = false;
let pair = null; // {assignment, widget, old, place, parent, shownAt}: two answers that wait to be judged
const chosen = new Map(); // parent -> the child that is shown; the newest, where none was chosen

// -------------------------------------------------------------------------------------------------- the conversation

function begin(name) {
  conversation = name ?? randomId();
  turns = [];
  mine = true;
  pair = null;
  chosen.clear();
  saved.textContent = "";
  history.replaceState(null, "", name ? `/chat/${name}` : "/chat");
  render();
  mark();
}

async function load() {
  ({ turns, mine } = await send("GET", `/api/chats/${conversation}`));
  render();
}

const children = (parent) => turns.filter((turn) => turn.parent === parent);
const shown = (parent) => children(parent).find((turn) => turn.id === chosen.get(parent)) ?? children(parent).at(-1);

function path() {
  const found = [];
  for (let turn = shown(null); turn; turn = shown(turn.id)) found.push(turn);
  return found;
}

function sampling() {
  const given = fields.filter((field) => field.value !== "").map((field) => [field.name, Number(field.value)]);
  return { model: model.value, ...Object.fromEntries(given) };
}

// Has the server write an answer; `said` are the elements that the text goes into, by place. Gives the last event.
async function write(body, said) {
  const invalid = fields.find((field) => !field.checkValidity());
  if (invalid) {
    document.querySelector("#sampling").open = true;
    invalid.reportValidity();
    return null;
  }
  const client = randomId();
  let last = null;
  busy = true;
  box.writing(client);
  place.setAttribute("aria-busy", "true");
  saved.textContent = t("Writing…");
  try {
    let into = null;
    for await (const event of events(`/api/chats/${conversation}/answers`, { client_id: client, ...sampling(), ...body })) {
      if (event.error) throw new Error(event.error);
      if ("asked" in event) {
        into = said(event.place);
        saved.textContent = event.shortened ? t("The conversation is longer than the model can read: its oldest turns were left out.") : t("Writing…");
      }
      if (event.text) {
        into.append(event.text);
        into.scrollIntoView({ block: "nearest" });
      }
      if ("turn" in event) last = event;
    }
    if (saved.textContent === t("Writing…")) saved.textContent = last?.finish_reason === "stopped" ? t("Stopped") : "";
  } catch (error) {
    saved.textContent = error.constructor === Error ? error.message : troubled(error);
  } finally {
    busy = false;
    box.written();
    place.removeAttribute("aria-busy");
  }
  return last;
}

async function reload() {
  try {
    await load();
    history.replaceState(null, "", `/chat/${conversation}`);
  } catch (error) {
    if (error.status !== 404) saved.textContent = troubled(error); // 404: the very first message was refused
  }
  await listConversations();
}

// A message below `parent`, and the answer to it.
async function say(content, parent = path().at(-1)?.id ?? null) {
  const last = await ask({ content, parent }, parent, content);
  if (!last && !turns.some((turn) => turn.content === content)) document.querySelector("#message").value = content;
}

async function ask(body, parent, content) {
  pair = null;
  const said = element("div", { class: "said" });
  const until = path().findIndex((turn) => turn.id === parent) + 1;
  place.replaceChildren(
    ...path().slice(0, until).map(turnElement),
    element("article", { class: "turn user" }, element("span", { class: "who" }, t("You")), element("div", { class: "said" }, content)),
    element("article", { class: "turn assistant" }, element("span", { class: "who" }, model.value), said),
  );
  const last = await write(body, () => said);
  chosen.delete(parent);
  await reload();
  return last;
}

// ----------------------------------------------------------------------------------------------------- drawn again

async function again(old) {
  const widget = kinds.pairwise(["", ""], [], () => {}, judge);
  const said = widget.root.querySelectorAll(".said");
  widget.root.classList.add("unready");
  pair = { widget, old, parent: old.parent, assignment: null };
  const last = await write({ parent: old.parent, against: old.id }, (where) => {
    render();
    said[1 - where].append(old.content);
    pair.place = where;
    return said[where];
  });
  chosen.delete(old.parent);
  if (!last?.assignment) {
    pair = null;
    await reload();
    if (last && last.finish_reason !== "stopped") saved.textContent = t("There is nothing to compare: the answers are equal, or one is empty.");
    return;
  }
  Object.assign(pair, { assignment: last.assignment, shownAt: performance.now(), next: last.turn });
  widget.root.classList.remove("unready");
  saved.textContent = t("Which is better?");
  await reload();
  place.focus({ preventScroll: true });
}

async function judge(value) {
  if (!pair?.assignment) return;
  const { assignment, old, place: where, parent, shownAt, next } = pair;
  pair.assignment = null;
  try {
    const seconds = (performance.now() - shownAt) / 1000;
    await send("POST", "/api/labels", { assignment, client_id: `chat-${assignment}-${randomId()}`, value, seconds });
    chosen.set(parent, value.winner === 1 - where ? old.id : next);
    pair = null;
    saved.textContent = t("Saved");
    render();
  } catch (error) {
    pair.assignment = assignment;
    saved.textContent = t("Not saved: {reason}", { reason: troubled(error) });
  }
}

// ------------------------------------------------------------------------------------------------------------ turns

function render() {
  const shownTurns = path();
  const at = pair ? shownTurns.findIndex((turn) => turn.parent === pair.parent) : -1;
  place.replaceChildren(...(at < 0 ? shownTurns : shownTurns.slice(0, at)).map(turnElement), ...(pair && at >= 0 ? [pair.widget.root] : []));
  if (!shownTurns.length) place.append(element("p", { class: "absent" }, t("Say something to the model.")));
  document.querySelector("#composer").hidden = !mine;
  examples.hidden = shownTurns.length > 0 || !examples.children.length;
}

function turnElement(turn) {
  const said = element("div", { class: "said" }, turn.content);
  const tools = element("div", { class: "turntools" });
  const root = element("article", { class: `turn ${turn.role}`, "data-turn": turn.id }, element("span", { class: "who" }, turn.role === "user" ? t("You") : turn.model), said, tools);
  const siblings = children(turn.parent);
  if (siblings.length > 1) tools.append(...branches(turn, siblings));
  if (turn.role === "user") {
    if (mine) tools.append(element("button", { type: "button", class: "quiet edit", onclick: () => edit(turn, root) }, t("Edit")));
    if (mine && !children(turn.id).length) { // the model was busy, or the page was closed
      tools.append(element("button", { type: "button", class: "quiet", onclick: () => { if (!busy) ask({ parent: turn.id }, turn.parent, turn.content); } }, t("Answer")));
    }
    return root;
  }
  if (!turn.content) said.append(element("em", { class: "fine" }, t("(no answer: the model ended its turn at once)")));
  if (turn.finish_reason === "length") tools.append(element("span", { class: "fine" }, t("(cut)")));
  if (mine) {
    tools.append(...[[1, "👍", t("Good")], [-1, "👎", t("Not good")]].map(([value, sign, name]) =>
      element("button", { type: "button", class: "quiet thumb", "aria-pressed": String(turn.vote === value), onclick: () => vote(turn, turn.vote === value ? 0 : value) }, element("span", { "aria-hidden": "true" }, sign), " ", name)));
    tools.append(element("button", { type: "button", class: "quiet again", onclick: () => { if (!busy) again(turn); } }, t("Answer again")));
  }
  tools.append(element("button", { type: "button", class: "quiet", "data-tokens": `/api/turns/${turn.id}/tokens` }, t("As tokens")));
  const { temperature, top_p, top_k, seed } = turn.sampling;
  tools.append(element("span", { class: "fine drawn" }, t("temperature {temperature}, top-p {top_p}, top-k {top_k}, seed {seed}", { temperature, top_p, top_k, seed })));
  if (turn.vote && mine) root.append(reasonForm(turn));
  else if (turn.vote) root.append(element("p", { class: "fine" }, turn.vote > 0 ? "👍 " : "👎 ", turn.reason));
  return root;
}

function branches(turn, siblings) {
  const at = siblings.indexOf(turn);
  const go = (step) => { if (!busy) { pair = null; chosen.set(turn.parent, siblings[at + step].id); render(); } };
  return [
    element("button", { type: "button", class: "quiet", "aria-label": t("Version before"), disabled: at === 0, onclick: () => go(-1) }, "‹"),
    element("span", { class: "fine" }, `${at + 1} / ${siblings.length}`),
    element("button", { type: "button", class: "quiet", "aria-label": t("Next version"), disabled: at === siblings.length - 1, onclick: () => go(1) }, "›"),
  ];
}

function reasonForm(turn) {
  const input = element("input", { name: "reason", maxlength: "4000", value: turn.reason, placeholder: t("Why? (optional)"), "aria-label": t("Why? (optional)") });
  const submit = (event) => { event.preventDefault(); vote(turn, turn.vote, input.value); };
  return element("form", { class: "row reason", onsubmit: submit }, input, element("button", { class: "quiet" }, t("Save")));
}

async function vote(turn, value, reason = "") {
  try {
    await send("POST", `/api/turns/${turn.id}/vote`, { client_id: randomId(), vote: value, reason });
    Object.assign(turn, { vote: value, reason });
    saved.textContent = t("Saved");
    if (!busy) render();
  } catch (error) {
    saved.textContent = t("Not saved: {reason}", { reason: troubled(error) });
  }
}

function edit(turn, root) {
  if (busy) return;
  const text = element("textarea", { rows: "3", maxlength: "20000", required: true, "aria-label": t("Your message") });
  text.value = turn.content;
  const submit = () => { if (text.value.trim() && !busy) say(text.value, turn.parent); };
  const form = element("form", { class: "composer", onsubmit: (event) => { event.preventDefault(); submit(); } }, text,
    element("button", { class: "main" }, t("Send")), element("button", { type: "button", onclick: render }, t("Back")));
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
    if (event.key === "Escape") { event.stopPropagation(); render(); place.focus({ preventScroll: true }); }
  });
  root.querySelector(".turntools").hidden = true;
  root.querySelector(".said").replaceWith(form);
  text.focus();
}

// -------------------------------------------------------------------------------------------------- the conversations

async function listConversations(page = 1) {
  try {
    const found = await send("GET", `/api/chats?page=${page}${everybody?.checked ? "&everybody=true" : ""}`);
    const rows = found.map((one) => element("li", {}, element("a", { href: `/chat/${one.conversation}`, "data-conversation": one.conversation }, one.title), everybody?.checked ? element("span", { class: "fine" }, ` ${one.annotator}`) : ""));
    if (page === 1) list.replaceChildren(...rows);
    else list.append(...rows);
    const more = document.querySelector("#more");
    more.hidden = found.length < 50;
    more.onclick = () => listConversations(page + 1);
    mark();
  } catch (error) {
    saved.textContent = troubled(error);
  }
}

function mark() {
  for (const link of list.querySelectorAll("a")) {
    if (link.dataset.conversation === conversation) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// ------------------------------------------------------------------------------------------------- keys and buttons

const box = composer(say);
examples.addEventListener("click", (event) => {
  const example = event.target.closest("button");
  if (example && !busy) say(example.textContent);
});
const lastOf = (role) => path().findLast((turn) => turn.role === role);
const click = (turn, selector) => turn && place.querySelector(`[data-turn="${turn.id}"] ${selector}`)?.click();
const actions = {
  n: () => { if (!busy) { begin(); document.querySelector("#message").focus(); } },
  r: () => click(lastOf("assistant"), ".again"),
  e: () => click(lastOf("user"), ".edit"),
  ArrowUp: () => click(lastOf("assistant"), ".thumb"),
  ArrowDown: () => click(lastOf("assistant"), ".thumb + .thumb"),
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || typing(event)) return;
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (pair?.assignment && pair.widget.key(event)) event.preventDefault();
  else if (actions[name] && !event.repeat) {
    event.preventDefault();
    actions[name]();
  }
});
document.querySelector("#new").addEventListener("click", actions.n);
everybody?.addEventListener("change", () => listConversations());
document.querySelector("#history").open = !narrow.matches;

begin(/^\/chat\/(\w+)$/.exec(location.pathname)?.[1]);
if (location.pathname !== "/chat") load().catch((error) => { saved.textContent = troubled(error); });
listConversations();
