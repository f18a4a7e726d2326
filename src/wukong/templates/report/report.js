// Draws the charts of #charts when they come into view, in the reader's theme; all of them before printing. Switches the
// language, and shows the definitions of terms.
"use strict";
(() => {
  const root = document.documentElement;
  const charts = JSON.parse(document.getElementById("charts")?.textContent ?? "{}");
  const places = Object.keys(charts).map((id) => document.getElementById(id)).filter(Boolean);
  const drawn = new Set();
  const touch = window.matchMedia("(pointer: coarse)").matches;

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Plotly cannot read style sheets: replace "var(--name)" anywhere in a figure by its colour. A text with two languages
  // is replaced by that of the page.
  function themed(value) {
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object") {
      if ("en" in value && "zh" in value) return value[root.lang];
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, themed(one)]));
    }
    const name = typeof value === "string" && value.match(/^var\((--[\w-]+)\)$/);
    return name ? css(name[1]) : value;
  }

  function template() {
    const size = "paper" in root.dataset ? 9 : 12;
    const axis = {
      automargin: true,
      gridcolor: css("--rule"),
      linecolor: css("--rule"),
      zerolinecolor: css("--rule"),
      ticklabelstandoff: 6,
      tickfont: { color: css("--ink-soft") },
      title: { font: { size, color: css("--ink-soft") }, standoff: 8 },
      fixedrange: touch, // a finger on a chart scrolls the page
    };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: css("--sans"), size, color: css("--ink") },
        margin: { l: 8, r: 20, t: 12, b: 8 },
        hoverlabel: { bgcolor: css("--card"), bordercolor: css("--rule"), font: { color: css("--ink") } },
        legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom" },
        dragmode: touch ? false : "zoom",
        xaxis: axis,
        yaxis: axis,
      },
    };
  }

  function draw(place) {
    const figure = themed(charts[place.id]);
    const layout = { ...figure.layout, template: template(), autosize: true, height: figure.height };
    drawn.add(place);
    return Plotly.react(place, figure.data, layout, { responsive: true, displayModeBar: false });
  }

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          watcher.unobserve(entry.target);
          draw(entry.target);
        }
      }
    },
    { rootMargin: "400px" },
  );
  places.forEach((place) => watcher.observe(place));

  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));

  // ------------------------------------------------------------------------------------------------------- language
  const change = document.getElementById("switch");
  function speak(language) {
    root.lang = language;
    document.querySelectorAll("[data-en]").forEach((one) => one.setAttribute("aria-label", one.dataset[language]));
    drawn.forEach(draw);
  }
  change.hidden = false;
  change.addEventListener("click", () => speak(root.lang === "en" ? "zh" : "en"));
  speak(/^zh/i.test(navigator.language) ? "zh" : root.lang);  // a reader whose browser is Chinese reads Chinese

  // ----------------------------------------------------------------------------------------------------- definitions
  // One at a time. It stays beside its words while the page moves, as it still does where a tap ends a fling or comes
  // during the smooth scrolling to a section, and closes when they leave the window.
  const tip = document.getElementById("tip");
  let explained = null;
  function place() {
    const [at, width, height] = [explained.getBoundingClientRect(), tip.offsetWidth, tip.offsetHeight];
    const room = root.clientWidth - width - 8;
    tip.style.left = `${Math.max(8, Math.min(at.left, room))}px`;
    tip.style.top = `${at.bottom + height + 12 < window.innerHeight ? at.bottom + 6 : Math.max(8, at.top - height - 6)}px`;
    return at.bottom > 0 && at.top < window.innerHeight;
  }
  function explain(term) {
    explained = term;
    tip.textContent = term.dataset.about;
    tip.hidden = false;
    place();
    term.setAttribute("aria-describedby", "tip");
  }
  function close() {
    explained?.removeAttribute("aria-describedby");
    explained = null;
    tip.hidden = true;
  }
  for (const term of document.querySelectorAll("abbr.term")) {
    term.dataset.about = term.title;
    term.removeAttribute("title"); // the browser's own, which a finger cannot open
    for (const event of ["mouseenter", "focus", "click"]) term.addEventListener(event, () => explain(term));
    for (const event of ["mouseleave", "blur"]) term.addEventListener(event, close);
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && close());
  document.addEventListener("click", (event) => event.target.closest("abbr.term") || close()); // a tap elsewhere is no blur everywhere
  window.addEventListener("scroll", () => explained && !place() && close(), { passive: true });

  // Print on white, with everything unfolded.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    root.dataset.paper = "";
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((one) => (one.open = true));
    places.forEach(draw);
  });
  window.addEventListener("afterprint", () => {
    delete root.dataset.paper;
    folded.forEach((one) => (one.open = false));
    drawn.forEach(draw);
  });
})();
