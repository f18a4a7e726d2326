// A widget for each kind of task. make(kind, responses, flags, onChange, onDone) gives an object with
//   root       the element to show
//   value()    the judgment, or null while it is unfinished
//   draft()    what is worth keeping of an unfinished one, or null
//   load(d)    shows a draft or a judgment
//   key(event) true when the key meant something
// onDone(value) is called where one key or click is the whole judgment.

import { element, t } from "./api.js";

function answer(name, text, ...more) {
  return element("article", { class: "answer", "aria-label": name }, element("h2", { class: "small" }, name), ...more, element("div", { class: "said" }, text));
}

function pairwise(responses, flags, onChange, onDone) {
  const choices = [
    [{ winner: 0, strength: 3 }, t("Left much better"), "⇧←", "«‹"],
    [{ winner: 0, strength: 2 }, t("Left better"), "←", "‹‹"],
    [{ winner: 0, strength: 1 }, t("Left slightly better"), ",", "‹"],
    [{ winner: null, verdict: "tie" }, t("Equally good"), "T", "="],
    [{ winner: 1, strength: 1 }, t("Right slightly better"), ".", "›"],
    [{ winner: 1, strength: 2 }, t("Right better"), "→", "››"],
    [{ winner: 1, strength: 3 }, t("Right much better"), "⇧→", "»›"],
    [{ winner: null, verdict: "both bad" }, t("Both bad"), "X", "✕"],
  ];
  const same = (a, b) => a.winner === b.winner && (a.winner === null ? a.verdict === b.verdict : a.strength === (b.strength ?? 2));
  let chosen = null;
  const buttons = choices.map(([value, name, key, sign]) =>
    element("button", { type: "button", "aria-pressed": "false", "aria-label": name, title: name, onclick: () => pick(value) }, element("span", { class: "name" }, name), element("span", { class: "sign", "aria-hidden": "true" }, sign), element("kbd", {}, key)));
  function pick(value) {
    show(value);
    onChange();
    onDone?.(value);
  }
  function show(value) {
    chosen = value;
    choices.forEach(([one], i) => buttons[i].setAttribute("aria-pressed", String(value !== null && same(one, value))));
  }
  const keys = { ArrowLeft: 1, ArrowRight: 5, ",": 2, ".": 4, t: 3, "=": 3, x: 7 };
  return {
    root: element("div", {}, element("div", { class: "pair" }, answer(t("Left"), responses[0]), answer(t("Right"), responses[1])), element("div", { class: "choices", role: "group", "aria-label": t("Which is better?") }, ...buttons)),
    value: () => chosen,
    draft: () => null,
    load: show,
    key(event) {
      const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      let place = keys[name];
      if (place === undefined) return false;
      if (event.shiftKey && name === "ArrowLeft") place = 0;
      if (event.shiftKey && name === "ArrowRight") place = 6;
      pick(choices[place][0]);
      return true;
    },
  };
}

function ranking(responses, flags, onChange) {
  let groups = [];
  let tie = false; // the next answer joins the last group
  const strip = element("ol", { class: "strip", "aria-label": t("Your order, best first"), "aria-live": "polite" });
  const cards = responses.map((text, i) => {
    const place = element("span", { class: "place", "aria-hidden": "true" });
    const card = answer(t("Answer {n}", { n: i + 1 }), text, place);
    const choose = element("button", { type: "button", class: "quiet", onclick: () => (ranked(i) ? remove(i) : add(i)) }, element("kbd", {}, String(i + 1)));
    card.prepend(choose);
    return { card, place, choose };
  });
  const ranked = (i) => groups.some((group) => group.includes(i));
  function remove(i) {
    groups = groups.map((group) => group.filter((one) => one !== i)).filter((group) => group.length);
    tie = false;
    changed();
  }
  function add(i) {
    if (tie && groups.length) groups[groups.length - 1].push(i);
    else groups.push([i]);
    tie = false;
    changed();
  }
  // Drops answer i into a group (a tie), or before one.
  function move(i, target, before) {
    const anchor = groups[target];
    groups = groups.map((group) => (group === anchor ? group : group.filter((one) => one !== i)));
    if (before) {
      const at = groups.indexOf(anchor);
      groups[at] = anchor.filter((one) => one !== i);
      groups.splice(at, 0, [i]);
    } else if (!anchor.includes(i)) anchor.push(i);
    groups = groups.filter((group) => group.length);
    changed();
  }
  function changed() {
    render();
    onChange();
  }
  function chip(i) {
    return element("span", { class: "chip", draggable: "true", ondragstart: (event) => event.dataTransfer.setData("text/plain", String(i)) }, String(i + 1));
  }
  function gap(target) {
    return element("span", { class: "gap", "aria-hidden": "true", ondragover: (event) => event.preventDefault(), ondrop: (event) => { event.preventDefault(); drop(event, target, true); } }, "›");
  }
  function drop(event, target, before) {
    const i = Number.parseInt(event.dataTransfer.getData("text/plain"), 10);
    if (Number.isInteger(i) && i >= 0 && i < responses.length) move(i, target, before);
  }
  function render() {
    strip.replaceChildren(...groups.flatMap((group, place) => [
      element("li", { ondragover: (event) => event.preventDefault(), ondrop: (event) => { event.preventDefault(); drop(event, place, false); } }, gap(place), ...group.flatMap((i, n) => (n ? [" = ", chip(i)] : [chip(i)]))),
    ]), element("li", { class: "waiting" }, tie ? "= …" : groups.flat().length < responses.length ? "…" : "✓"));
    cards.forEach(({ card, place, choose }, i) => {
      const at = groups.findIndex((group) => group.includes(i));
      place.textContent = at < 0 ? "" : `${at + 1}.`;
      card.classList.toggle("ranked", at >= 0);
      choose.setAttribute("aria-label", at < 0 ? t("Rank answer {n} next", { n: i + 1 }) : t("Answer {n}, place {place}: take it out", { n: i + 1, place: at + 1 }));
    });
  }
  render();
  const equal = element("button", { type: "button", onclick: () => { tie = groups.length > 0; render(); } }, t("As good as the last"), " ", element("kbd", {}, "="));
  const back = element("button", { type: "button", onclick: () => groups.length && remove(groups.at(-1).at(-1)) }, t("Take back"), " ", element("kbd", {}, "⌫"));
  return {
    root: element("div", {}, element("div", { class: "ranking" }, ...cards.map(({ card }) => card)), element("div", { class: "choices order" }, strip, equal, back)),
    value: () => (groups.flat().length === responses.length ? { groups } : null),
    draft: () => ({ groups }),
    load(draft) {
      groups = (draft?.groups ?? []).map((group) => [...group]);
      tie = false;
      render();
    },
    key(event) {
      const digit = Number.parseInt(event.key, 10);
      if (digit >= 1 && digit <= responses.length) {
        if (!ranked(digit - 1)) add(digit - 1);
        return true;
      }
      if (event.key === "=") equal.click();
      else if (event.key === "Backspace") back.click();
      else return false;
      return true;
    },
  };
}

function likert(responses, flags, onChange) {
  const ratings = responses.map(() => ({ score: null, flags: [] }));
  let marked = 0;
  const letters = "ABCDEFGHIJK";
  const rows = responses.map((text, i) => {
    const scores = [1, 2, 3, 4, 5, 6, 7].map((n) => element("button", { type: "button", "aria-pressed": "false", onclick: () => { mark(i); score(n); } }, String(n)));
    const boxes = flags.map((flag, n) => element("label", { class: "check" }, element("input", { type: "checkbox", onchange: () => { mark(i); toggle(flag); } }), t(flag), " ", element("kbd", {}, `⇧${letters[n]}`)));
    const root = answer(t("Answer {n}", { n: i + 1 }), text);
    root.append(element("div", { class: "scores", role: "group", "aria-label": t("Rating from 1 to 7 of answer {n}", { n: i + 1 }) }, ...scores), element("details", {}, element("summary", {}, t("Flags")), ...boxes));
    return { root, scores, boxes };
  });
  function mark(i) {
    marked = Math.max(0, Math.min(i, responses.length - 1));
    rows.forEach(({ root }, n) => root.classList.toggle("marked", n === marked && responses.length > 1));
  }
  function score(n) {
    ratings[marked].score = n;
    changed();
    if (marked < responses.length - 1 && ratings[marked + 1].score === null) mark(marked + 1);
    rows[marked].root.scrollIntoView({ block: "nearest" });
  }
  function toggle(flag) {
    const have = ratings[marked].flags;
    ratings[marked].flags = have.includes(flag) ? have.filter((one) => one !== flag) : [...have, flag];
    changed();
  }
  function changed() {
    render();
    onChange();
  }
  function render() {
    rows.forEach(({ scores, boxes, root }, i) => {
      scores.forEach((button, n) => button.setAttribute("aria-pressed", String(ratings[i].score === n + 1)));
      boxes.forEach((box, n) => { box.querySelector("input").checked = ratings[i].flags.includes(flags[n]); });
      if (ratings[i].flags.length) root.querySelector("details").open = true;
    });
  }
  mark(0);
  return {
    root: element("div", { class: "likert" }, ...rows.map(({ root }) => root)),
    value: () => (ratings.every((one) => one.score !== null) ? { ratings } : null),
    draft: () => ({ ratings }),
    load(draft) {
      draft?.ratings?.forEach((one, i) => Object.assign(ratings[i], { score: one.score, flags: [...(one.flags ?? [])] }));
      render();
    },
    key(event) {
      const digit = Number.parseInt(event.key, 10);
      const letter = letters.indexOf(event.key);
      if (digit >= 1 && digit <= 7) score(digit);
      else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        mark(marked + (event.key === "ArrowDown" ? 1 : -1));
        rows[marked].root.scrollIntoView({ block: "nearest" });
      } else if (event.shiftKey && letter >= 0 && letter < flags.length) toggle(flags[letter]);
      else return false;
      return true;
    },
  };
}

function thumbs(responses, flags, onChange, onDone) {
  let vote = null;
  const buttons = [[1, "👍", t("Good"), "↑"], [-1, "👎", t("Not good"), "↓"]].map(([value, sign, name, key]) =>
    element("button", { type: "button", "aria-pressed": "false", onclick: () => pick(value) }, element("span", { "aria-hidden": "true" }, sign), " ", name, " ", element("kbd", {}, key)));
  function show(value) {
    vote = value;
    buttons.forEach((button, n) => button.setAttribute("aria-pressed", String(value === (n ? -1 : 1))));
  }
  function pick(value) {
    show(value);
    onChange();
    onDone?.({ vote: value });
  }
  return {
    root: element("div", {}, answer(t("Answer"), responses[0]), element("div", { class: "choices two" }, ...buttons)),
    value: () => (vote === null ? null : { vote }),
    draft: () => null,
    load: (draft) => show(draft?.vote ?? null),
    key(event) {
      if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return false;
      pick(event.key === "ArrowUp" ? 1 : -1);
      return true;
    },
  };
}

export const kinds = { pairwise, ranking, likert, thumbs };
