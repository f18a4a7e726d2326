// Buttons that open an answer as tokens: any element with data-tokens, the address that takes it apart, and perhaps
// data-body, what to send there.

import { element, send, t, troubled } from "./api.js";
import { answerHeading, tokenView } from "./shared/view.js";

const place = element("div", {});
const close = element("form", { method: "dialog" }, element("button", {}, t("Back"), " ", element("kbd", {}, "Esc")));
const dialog = element("dialog", { class: "glass-dialog", "aria-label": t("The answer as tokens") }, place, close);
document.body.append(dialog);

async function open(button) {
  button.disabled = true;
  try {
    const { responses } = await send("POST", button.dataset.tokens, JSON.parse(button.dataset.body ?? "{}"));
    const view = tokenView(t, (one) => answerHeading(t, one));
    place.replaceChildren(view.root);
    dialog.showModal();
    view.show(responses);
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
