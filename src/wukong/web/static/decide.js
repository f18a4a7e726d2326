// An admin's decision about one task, with the same widgets as the label page; answers are in their stored order.

import { randomId, send, t, typing } from "./api.js";
import { kinds } from "./kinds.js";

const section = document.querySelector("#decide");
const { kind, task, next } = section.dataset;
const widget = kinds[kind](JSON.parse(section.dataset.responses), JSON.parse(section.dataset.flags), () => {}, null);
let said = "";
let client = "";
const saved = document.querySelector("#saved");
section.querySelector("#task").append(widget.root);

async function decide() {
  const value = widget.value();
  if (!value) {
    saved.textContent = t("Not finished yet");
    return;
  }
  const decision = { value, comment: section.querySelector("#comment").value };
  if (JSON.stringify(decision) !== said) { // a second try of the same decision has the same id, another decision its own
    said = JSON.stringify(decision);
    client = randomId();
  }
  try {
    await send("POST", `/api/tasks/${task}/adjudication`, { client_id: client, ...decision });
    location.assign(next || location.pathname);
  } catch (error) {
    saved.textContent = t("Not saved: {reason}", { reason: error.message });
  }
}

section.querySelector("#submit").addEventListener("click", decide);
document.addEventListener("keydown", (event) => {
  if (typing(event)) return;
  if (widget.key(event)) event.preventDefault();
  else if (event.key === "Enter" && !event.target.matches("button, summary, a")) decide();
});
