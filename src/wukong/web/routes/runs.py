"""Runs for admins: their steps, live curves, samples and log, and the buttons that start and stop.

Pages are drawn once and kept current by one stream of server-sent events each (`/api/runs/RUN/events`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from wukong.errors import WukongError
from wukong.feedback.store.labels import NotFoundError
from wukong.language import translate
from wukong.report.contents import read_run, read_steps
from wukong.report.diagnosis.diagnose import diagnose
from wukong.report.diagnosis.panel import Panel, panel_of
from wukong.report.diagnosis.records import RunRecords
from wukong.report.formatting import duration
from wukong.report.names import STAGE_NAMES
from wukong.report.traces import has_trace
from wukong.serve.events import EventStream, event
from wukong.web.access import Admin, Form, maybe_person
from wukong.web.inputs import Count, Name, text
from wukong.web.language import language_of
from wukong.web.rendering import paging, render_page
from wukong.web.routes.results import reports_in, results_in
from wukong.web.runs.processes import start, stop
from wukong.web.runs.states import overview, run_directories, run_or_404, step_or_404
from wukong.web.runs.tails import Watch, curves, samples
from wukong.web.state import state_of

pages = APIRouter(include_in_schema=False)
api = APIRouter(prefix="/api/runs", tags=["runs"])
ROUTERS = (pages, api)
PAGE = 20
NAMES = {**STAGE_NAMES, "report": "Report"}
LOOK_SECONDS = 0.5
"""Between two looks at the files that grow; the states, which cost more, are looked at every second time."""
BEAT_SECONDS = 15
"""A comment so often keeps proxies from closing a silent stream."""


def _run(request: Request, name: str) -> Path:
    return run_or_404(state_of(request).settings.runs_dir, name)


# -------------------------------------------------------------------------------------------------------------- pages


@pages.get("/runs")
def all_runs(request: Request, person: Admin, page: Count = 1) -> HTMLResponse:
    found = run_directories(state_of(request).settings.runs_dir)
    place = paging(page, len(found), PAGE)
    rows = [overview(path) for path in found[place.before : place.before + PAGE]]
    return render_page(
        request,
        "runs",
        person=person,
        rows=rows,
        paging=place,
    )


@pages.get("/runs/{run}")
def one_run(request: Request, run: Name, person: Admin) -> HTMLResponse:
    root = _run(request, run)
    return render_page(
        request,
        "run",
        person=person,
        run=overview(root),
        names=NAMES,
        duration=duration,
        results=results_in(root),
        reports=reports_in(root),
        diagnosis=_diagnosis(root),
    )


def _diagnosis(root: Path) -> Panel | None:
    """What the doctor says; None before anything was logged, or where a damaged file is shown as the run's problem."""
    try:
        records = RunRecords(read_run(root))
    except WukongError:
        return None
    return panel_of(diagnose(records)) if any(step.metrics for step in records.contents.steps) else None


@pages.get("/runs/{run}/steps/{step:path}")
def one_step(request: Request, run: Name, step: Name, person: Admin) -> HTMLResponse:
    root = _run(request, run)
    now = overview(root)
    state = next((one for one in now.steps if one.name == step), None)
    if state is None:
        raise NotFoundError("there is no such step")
    return render_page(
        request,
        "step",
        person=person,
        run=now,
        step=state,
        names=NAMES,
        duration=duration,
        plotly=plotly_script(),
        traced=has_trace(step_or_404(root, step).out),
    )


@pages.get("/plotly.js")
def plotly_js(request: Request) -> Response:
    """The script that draws the curves, as the Python package `plotly` brings it; pages name its version."""
    return FileResponse(
        plotly_script().file,
        media_type="text/javascript",
        headers={"cache-control": "private, max-age=31536000, immutable"},
    )


class PlotlyScript(NamedTuple):
    """`own_styles`: the ids of elements for which it looks before it adds an inline style sheet, which the content
    security policy forbids; a page that has them is left alone."""

    file: Path
    version: str
    own_styles: tuple[str, ...]


@cache
def plotly_script() -> PlotlyScript:
    """The script that the Python package `plotly` brings."""
    import plotly

    file = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    own_styles = re.findall(r'getElementById\("([0-9a-f]{64})"\)', file.read_text(encoding="utf-8"))
    return PlotlyScript(file, plotly.__version__, tuple(own_styles))


# --------------------------------------------------------------------------------------------------------- processes


@pages.post("/runs/{run}/start")
def start_run(request: Request, run: Name, person: Admin, form: Form) -> Response:
    """Runs the recipe, to the step that the form names or to its end."""
    root = _run(request, run)
    step = text(form, "step") or None
    if step is not None and step not in read_steps(root).planned:
        raise NotFoundError("the recipe has no such step")
    start(root, step, person.name)
    return _back(request, form, run)


@pages.post("/runs/{run}/stop")
def stop_run(request: Request, run: Name, person: Admin, form: Form) -> Response:
    stop(_run(request, run))
    return _back(request, form, run)


def _back(request: Request, form: FormData, run: str) -> Response:
    """To the page that the button was on."""
    step = text(form, "from")
    return RedirectResponse(f"/runs/{quote(run)}" + (f"/steps/{quote(step)}" if step else ""), 303)


# ---------------------------------------------------------------------------------------------------------------- data


@api.get("")
def list_runs(request: Request, person: Admin) -> list[dict[str, Any]]:
    """The runs with their steps and states."""
    found = run_directories(state_of(request).settings.runs_dir)
    return [{"name": path.name, **overview(path).as_json(partial(translate, language_of(request)))} for path in found]


@api.get("/{run}/steps/{step:path}/curves")
def step_curves(request: Request, run: Name, step: Name, person: Admin) -> dict[str, Any]:
    """Every metric of a step with its definition, thinned to some hundred points; `at` is for the events."""
    found = curves(step_or_404(_run(request, run), step))
    language = language_of(request)
    for chart in found["charts"]:
        for metric in chart["metrics"]:
            metric |= {key: translate(language, metric[key]) for key in ("unit", "definition", "watch")}
        chart["heading"] = translate(language, chart["heading"])
    return found


@api.get("/{run}/steps/{step:path}/samples")
def step_samples(request: Request, run: Name, step: Name, person: Admin) -> list[dict[str, Any]]:
    """What the model wrote while it learnt, by prompt."""
    return samples(step_or_404(_run(request, run), step))


@api.get("/{run}/events")
def events(request: Request, run: Name, person: Admin, step: Name = "", at: Name = "") -> EventStream:
    """What changes, as server-sent events: `state`, `log`, and of a step `lines`, `samples` and `reset`.

    An event's id says how far the reader is; a browser that reconnects sends it back and misses nothing.
    """
    root = _run(request, run)
    place, t = request.headers.get("last-event-id") or at, partial(translate, language_of(request))
    watch = Watch(root, step_or_404(root, step) if step else None, place, t)

    async def stream() -> AsyncIterator[str]:
        silent = 0.0
        turn = 0
        while not await request.is_disconnected():
            try:
                found = list(await run_in_threadpool(watch.grown))
                if turn % 2 == 0:
                    found += await run_in_threadpool(watch.changed)
            except WukongError as error:  # a damaged file: the reader is told, and asks again later
                yield event(t(error), "problem", watch.place)
                return
            for left, (kind, value) in zip(range(len(found))[::-1], found, strict=True):
                # Only the last one says how far the reader is: one that is cut off before it gets all of them again.
                yield event(value, kind, None if left else watch.place)
            silent = 0 if found else silent + LOOK_SECONDS
            if silent >= BEAT_SECONDS:
                yield ": still here\n\n"
                silent = 0
            turn += 1
            if turn % 20 == 0 and not await run_in_threadpool(_still_admin, request):
                return
            await asyncio.sleep(LOOK_SECONDS)

    return EventStream(stream())


def _still_admin(request: Request) -> bool:
    """Whether the person who opened the stream may still look: accounts are closed, sessions end."""
    person = maybe_person(request)
    return person is not None and person.role == "admin"
