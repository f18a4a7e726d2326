// The arena: both answers are written side by side; only when one was judged better does the server tell whose they are.

import { element, events, randomId, send, t, troubled, typing } from "./api.js";
import { composer } from "./composer.js";
import { kinds } from "./kinds.js";

const place = document.querySelector("#battle");
const saved = document.querySelector("#saved");
let battle = null; // {widget, assignment, shownAt}, assignment null while it is written and once it is judged

async function fight(prompt) {
  const widget = kinds.pairwise(["", ""], [], () => {}, judge);
  const said = widget.root.querySelectorAll(".said");
  battle = { widget, assignment: null, shownAt: 0 };
  widget.root.classList.add("unready");
  place.replaceChildren(element("div", { class: "turn user" }, element("div", { class: "said" }, prompt)), widget.root);
  place.setAttribute("aria-busy", "true");
  saved.textContent = t("Writing…");
  const client = randomId();
  box.writing(client);
  try {
    for await (const event of events("/api/arena/battles", { client_id: client, prompt })) {
      if (event.text) said[event.place].append(event.text);
      if (event.error) throw new Error(event.error);
      if (event.same) saved.textContent = t("Both say the same. Ask something else.");
      if (event.stopped) saved.textContent = t("Stopped");
      if (event.assignment) {
        battle = { widget, assignment: event.assignment, shownAt: performance.now() };
        widget.root.classList.remove("unready");
        saved.textContent = t("Which is better?");
        place.focus({ preventScroll: true });
      }
    }
  } catch (error) {
    saved.textContent = error.constructor === Error ? error.message : troubled(error);
  } finally {
    place.removeAttribute("aria-busy");
    box.written();
  }
}

async function judge(value) {
  const { widget, assignment, shownAt } = battle ?? {};
  if (!assignment) return;
  battle.assignment = null;
  saved.textContent = t("Saving…");
  try {
    const seconds = (performance.now() - shownAt) / 1000;
    await send("POST", "/api/labels", { assignment, client_id: `arena-${assignment}-${randomId()}`, value, seconds });
    const names = await send("GET", `/api/arena/battles/${assignment}`);
    widget.root.querySelectorAll(".answer h2").forEach((heading, i) => heading.append(": ", element("strong", { class: "name" }, names[i])));
    for (const button of widget.root.querySelectorAll(".choices button")) button.disabled = true;
    saved.replaceChildren(t("Left: {left}. Right: {right}.", { left: names[0], right: names[1] }), " ",
      element("button", { type: "button", class: "quiet", "data-tokens": `/api/arena/battles/${assignment}/tokens` }, t("As tokens")));
    await showRatings();
  } catch (error) {
    battle.assignment = assignment;
    saved.textContent = t("Not saved: {reason}", { reason: troubled(error) });
  }
}

async function showRatings() {
  const rows = await send("GET", "/api/arena/ratings");
  document.querySelector("#ratings").hidden = !rows.length;
  document.querySelector("#no-ratings").hidden = rows.length > 0;
  document.querySelector("#ratings tbody").replaceChildren(...rows.map((row) => {
    const figures = [Math.round(row.rating), row.interval ? row.interval.map(Math.round).join(" – ") : "–", row.battles, `${Math.round(100 * row.win_rate)} %`];
    return element("tr", {}, element("td", {}, row.model), ...figures.map((figure) => element("td", { class: "num" }, String(figure))));
  }));
}

const box = document.querySelector("#composer") && composer(fight);
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || typing(event)) return;
  if (battle?.assignment && battle.widget.key(event)) event.preventDefault();
});
showRatings().catch((error) => { if (saved) saved.textContent = troubled(error); });
