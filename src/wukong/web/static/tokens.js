// Buttons that open an answer as tokens: any element with data-tokens, the address that takes it apart, and perhaps
// data-body, what to send there.

import { element, send, t, troubled } from "./api.js";
import { shown, tokenView } from "./glass/view.js";

const place = element("div", {});
const close = element("form", { method: "dialog" }, element("button", {}, t("Back"), " ", element("kbd", {}, "Esc")));
const dialog = element("dialog", { class: "glass-dialog", "aria-label": t("The answer as tokens") }, place, close);
document.body.append(dialog);

function heading(one) {
  const parts = [t("{n} tokens", { n: one.tokens.length })];
  if (one.kl) parts.push(t("KL {x} nats to {name}", { x: shown(one.kl.reduce((a, b) => a + b, 0)), name: one.reference }));
  if (one.end_scores) parts.push(t("score {x} by {name}", { x: shown(one.end_scores.at(-1)), name: one.reward_model }));
  parts.push(t("at temperature {x}", { x: one.temperature }));
  return [element("p", { class: "glass-fine" }, `${one.model} · ${parts.join(" · ")}`), element("p", { class: "glass-prompt" }, one.messages.at(-1)?.content ?? "")];
}

async function open(button) {
  button.disabled = true;
  try {
    const { responses } = await send("POST", button.dataset.tokens, JSON.parse(button.dataset.body ?? "{}"));
    const view = tokenView(t, heading);
    place.replaceChildren(view.root);
    dialog.showModal();
    view.show(responses.map((one) => Object.fromEntries(Object.entries(one).filter(([, value]) => value !== null))));
  } catch (error) {
    place.replaceChildren(element("p", { class: "error" }, troubled(error)));
    dialog.showModal();
  } finally {
    button.disabled = false;
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-tokens]");
  if (button) open(button);
});
