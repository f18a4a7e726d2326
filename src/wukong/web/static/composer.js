// The box that messages are written in, with its keys and the stop button; the chat and the arena have one each.

import { send, typing } from "./api.js";

// say(text) is called with each message. Gives {writing(client), written()}: while the answer of this name is written,
// nothing can be sent, and Esc or the button stops it.
export function composer(say) {
  const form = document.querySelector("#composer");
  const message = form.querySelector("#message");
  const stop = form.querySelector("#stop");
  const help = document.querySelector("#help-dialog");
  let client = null;

  function submit() {
    const text = message.value;
    if (client || !text.trim()) return;
    message.value = "";
    say(text);
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  message.addEventListener("keydown", (event) => {
    // While an input method composes, Enter takes its suggestion.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  });
  const halt = () => client && send("POST", `/api/answers/${client}/stop`).catch(() => {}); // it may have ended by itself
  stop.addEventListener("click", halt);
  document.querySelector("#help").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (help.open) {
      if (event.key === "?") help.close();
    } else if (event.key === "Escape") {
      if (client) halt();
      else if (event.target === message) message.blur();
    } else if (!typing(event) && !event.repeat && event.key === "?") {
      help.showModal();
    } else if (!typing(event) && event.key.toLowerCase() === "c") {
      event.preventDefault();
      message.focus();
    }
  });
  function set(now) {
    client = now;
    stop.hidden = !now;
    form.querySelector("#send").hidden = Boolean(now);
  }
  return { writing: set, written: () => set(null) };
}
