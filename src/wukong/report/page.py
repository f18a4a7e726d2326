"""The report's page: its sections in order, and the HTML file.

A section is one function, which makes its content from the run, and one partial template, sections/NAME.html.jinja,
which shows it. The page is self-contained: style, script and Plotly are inlined, and its content security policy keeps
browsers from fetching anything else. Text by models and people is untrusted and escaped by Jinja.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from wukong.errors import Text
from wukong.language import LANGUAGES, counted, current, recognised
from wukong.report.answers import changed_words, side_by_side
from wukong.report.bilingual import both, closed_up, label, t
from wukong.report.charts import Charts
from wukong.report.contents import RunContents
from wukong.report.diagnosis.diagnose import diagnose
from wukong.report.diagnosis.panel import panel_of
from wukong.report.diagnosis.records import RunRecords
from wukong.report.formatting import duration, equal_length, interval, number, percent
from wukong.report.glass import SHARED, glass_assets, glass_boxes, script_texts
from wukong.report.inspected import Inspect, inspected_answers
from wukong.report.pipeline import pipeline
from wukong.report.plain_words import plain_words
from wukong.report.records import data_tables, provenance, reward_models, samples
from wukong.report.results import headline, results
from wukong.report.training import training

TEMPLATES = Path(__file__).parents[1] / "templates" / "report"


@dataclass(frozen=True)
class View:
    """What the reader of a page asked for."""

    title: str | None = None
    """The page's title. Default: the run's name."""
    pinned: Sequence[str] = ()
    """Prompts to show first, if the evaluation has them."""
    prompts_shown: int = 12
    """The number of prompts shown with all answers."""
    seed: int = 0
    """For the random choice among the others."""
    language: str | None = None
    """The language in which the page opens. Default: the terminal's."""
    inspect: Inspect | None = None
    """Reads the shown answers as tokens. Default: they cannot be opened as tokens."""


@dataclass(frozen=True)
class Section:
    """A part of the page; its template gets what `make` returns as `content`."""

    name: str
    title: Text
    make: Callable[[RunContents, Charts, View], Any]
    optional: bool = False
    """Whether it is left out without content; the others then say how to get it."""


def _answers(run: RunContents, charts: Charts, view: View) -> list[dict[str, Any]]:
    return [side_by_side(e, view.pinned, view.prompts_shown, view.seed) for e in run.evaluations if e.answered]


SECTIONS = (
    Section("pipeline", Text("Pipeline"), lambda run, charts, view: pipeline(run)),
    Section("doctor", Text("Doctor"), lambda run, charts, view: panel_of(diagnose(RunRecords(run)))),
    Section("results", Text("Results"), lambda run, charts, view: results(run, charts)),
    Section("answers", Text("Answers"), _answers),
    Section("training", Text("Training"), lambda run, charts, view: training(run, charts)),
    Section("glass", Text("Glass box"), lambda run, charts, view: glass_boxes(run), optional=True),
    Section("reward", Text("Reward model"), lambda run, charts, view: reward_models(run, charts)),
    Section("samples", Text("Samples of pretraining"), lambda run, charts, view: samples(run), optional=True),
    Section("data", Text("Data"), lambda run, charts, view: data_tables(run)),
    Section("provenance", Text("Provenance"), lambda run, charts, view: provenance(run)),
)


def render(run: RunContents, view: View | None = None) -> str:
    """Renders the page as self-contained HTML. The same run directory and view give the same page."""
    view, charts = view or View(), Charts()
    finished = [str(step.record["finished"]) for step in run.steps if step.record.get("finished")]
    sections = [(section, section.make(run, charts, view)) for section in SECTIONS]
    made = {section.name: found for section, found in sections}
    content = {
        "title": view.title or run.name,
        "run": run,
        "view": view,
        "finished": max(finished, default="").replace("T", " ").replace("Z", " UTC"),
        "headline": headline(run),
        "words": plain_words(run),
        "sections": [(section, found) for section, found in sections if found or not section.optional],
        "traced": [box["data"] for box in made["glass"]],
        "tokens": inspected_answers(run, made["answers"], view.inspect) if view.inspect else [],
        "view_of_tokens": glass_assets(),
        "style_of_doctor": Markup((SHARED / "doctor.css").read_text(encoding="utf-8")),
        "script_texts": script_texts(),
    }
    return fill("page.html.jinja", content, charts, view.language)


def fill(template: str, content: Mapping[str, Any], charts: Charts, language: str | None = None) -> str:
    """Renders a template with content, style, charts and the script that draws them, as a self-contained page.

    language: that in which the page opens. Default: the terminal's.
    """
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "percent": percent, "equal_length": equal_length, "interval": interval,
        "duration": duration, "reasons": _reasons, "recognised": recognised, "t": t, "said": Text,
    }  # fmt: skip
    environment.globals |= {
        "t": t, "label": label, "changed_words": changed_words, "counted": counted, "languages": LANGUAGES,
    }  # fmt: skip
    assets = {
        "language": language or current(),
        "style": _asset("report.css"),
        "script": _asset("report.js"),
        "plotly": Markup(get_plotlyjs()) if charts.by_id else "",
        "charts": both(charts.by_id),
    }
    return closed_up(environment.get_template(template).render({**content, **assets}))


def _asset(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _reasons(counts: Any, template: str) -> Iterable[Markup]:
    """{"duplicate": 3} -> ["dropped 3 duplicate"] for the template "dropped {n} {reason}"."""
    found = counts.items() if isinstance(counts, dict) else ()
    return [t(template, n=number(n), reason=recognised(str(reason))) for reason, n in found]
