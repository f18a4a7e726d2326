// Requests with the CSRF token, and texts in the page's language.

export { element } from "./shared/element.js";

const texts = JSON.parse(document.body.dataset.texts);

export function t(text, values = {}) {
  return (texts[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: { "content-type": "application/json", "x-csrf-token": document.querySelector("meta[name=csrf]").content },
    body: body && JSON.stringify(body),
  });
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, said.error ?? answer.statusText);
  }
  return answer;
}

// The answer's JSON. Throws Refused when the server said no, TypeError when it was not reached.
export async function send(method, path, body) {
  const answer = await request(method, path, body);
  return answer.status === 204 ? null : answer.json();
}

// The server-sent events of an answer, as they come. Throws as `send`.
export async function* events(path, body) {
  const reader = (await request("POST", path, body)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}

export function troubled(error) {
  if (error instanceof Refused && error.status === 401) location.assign("/login");
  return error instanceof Refused ? error.message : t("The server does not answer. Try again.");
}

// Random, also where the page is not in a secure context and crypto.randomUUID is missing.
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function typing(event) {
  const at = event.target;
  return at.matches("input:not([type=checkbox]):not([type=radio]), textarea, select") || event.ctrlKey || event.metaKey || event.altKey;
}
