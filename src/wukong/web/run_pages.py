"""What admins see of runs: their steps, live curves, samples, results and reports; and the buttons that start and stop.

Pages are drawn once and kept current by one stream of server-sent events each (`/api/runs/RUN/events`). Reports are
HTML files of their own with scripts inside: they are sent with a policy that takes them out of the studio's origin, so
that whatever stands in them reaches neither its pages nor its cookies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from wukong.errors import WukongError
from wukong.feedback.store.labels import NotFoundError
from wukong.report.contents import (
    AnsweredPrompt,
    StepResult,
    read_answered_prompts,
    read_comparison,
    read_run,
    read_steps,
)
from wukong.report.page import STAGE_NAMES, duration, interval, number, percent
from wukong.serve.events import EventStream, event
from wukong.web.access import Admin, AStore, Form, maybe_person, settings_of
from wukong.web.inputs import Count, Name, text
from wukong.web.pages import page as render_page
from wukong.web.pages import paging
from wukong.web.processes import start, stop
from wukong.web.runs import Watch, curves, overview, run_directories, run_or_404, samples, step_or_404
from wukong.web.texts import language_of, translate

router = APIRouter(include_in_schema=False)
data = APIRouter(prefix="/api/runs", tags=["runs"])
PAGE = 20
NAMES = {**STAGE_NAMES, "report": "Report"}
ANSWERS = 10
LOOK_SECONDS = 0.5
"""Between two looks at the files that grow; the states, which cost more, are looked at every second time."""
BEAT_SECONDS = 15
"""A comment so often keeps proxies from closing a silent stream."""

REPORT_POLICY = (
    "sandbox allow-scripts allow-modals; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of a report, which has its script inside: it runs in an origin of its own, and can fetch and send nothing."""


def _run(request: Request, name: str) -> Path:
    return run_or_404(settings_of(request).runs_dir, name)


# -------------------------------------------------------------------------------------------------------------- pages


@router.get("/runs")
def all_runs(request: Request, person: Admin, page: Count = 1) -> HTMLResponse:
    found = run_directories(settings_of(request).runs_dir)
    place = paging(page, len(found), PAGE)
    rows = [overview(path) for path in found[place.before : place.before + PAGE]]
    return render_page(
        request,
        "runs",
        person=person,
        rows=rows,
        paging=place,
    )


@router.get("/runs/{run}")
def one_run(request: Request, run: Name, person: Admin) -> HTMLResponse:
    root = _run(request, run)
    return render_page(
        request,
        "run",
        person=person,
        run=overview(root),
        names=NAMES,
        duration=duration,
        results=_results(root),
        reports=_reports(root),
    )


@router.get("/runs/{run}/steps/{step:path}")
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
        plotly=_plotly()[1],
    )


@router.get("/runs/{run}/results/{place:path}")
def one_result(
    request: Request, run: Name, place: Name, person: Admin, q: Name = "", source: Name = "", page: Count = 1
) -> HTMLResponse:
    """An evaluation or a comparison: who won, and every model's answers to the same prompts side by side."""
    root = _run(request, run)
    if place not in _results(root):
        raise NotFoundError("there is no such result")
    directory = root / place
    answered = read_answered_prompts(directory / "answers.jsonl")
    sources = sorted({one.source for one in answered if one.source})
    found = [one for one in answered if (not source or one.source == source) and _contains(one, q)]
    shown = paging(page, len(found), ANSWERS)
    compared = directory / "comparison.json"
    evaluation = next((one for one in read_run(root).evaluations if one.name == place), None)
    return render_page(
        request,
        "result",
        person=person,
        run=run,
        place=place,
        evaluation=evaluation.result if evaluation else None,
        comparison=read_comparison(compared) if compared.is_file() else None,
        rows=found[shown.before : shown.before + ANSWERS],
        count=len(found),
        paging=shown,
        q=q,
        source=source,
        sources=sources,
        interval=interval,
        percent=percent,
        number=number,
    )


def _contains(one: AnsweredPrompt, text: str) -> bool:
    return not text or any(text.casefold() in message.content.casefold() for message in one.messages)


def _results(run: Path) -> dict[str, str]:
    """Place in the run directory -> the stage, of what has answers to the same prompts."""
    found: dict[str, str] = {}
    for step in _steps(run):
        if step.stage in ("evaluate", "compare") and step.finished:
            found[step.out.relative_to(run).as_posix()] = step.stage
    for path in sorted(run.glob("*/evaluation.json")):
        found.setdefault(path.parent.relative_to(run).as_posix(), "evaluate")
    return found


def _steps(run: Path) -> list[StepResult]:
    try:
        return read_steps(run).steps
    except WukongError:  # the page says so above
        return []


# ------------------------------------------------------------------------------------------------------------ reports


def _reports(run: Path) -> dict[str, str]:
    """Place of a report's HTML file in the run directory -> the stage that drew it."""
    found = {path.relative_to(run).as_posix(): "report" for path in sorted(run.glob("*.html"))}
    for step in _steps(run):
        if step.stage == "reward-report" and (step.out / "report.html").is_file():
            found[(step.out / "report.html").relative_to(run).as_posix()] = "reward-report"
    return found


@router.get("/runs/{run}/reports/{place:path}")
def one_report(request: Request, run: Name, place: Name, person: Admin) -> Response:
    root = _run(request, run)
    path = root / place if place in _reports(root) else None
    if path is None or not path.resolve().is_relative_to(root.resolve()):  # a link may lead anywhere
        raise NotFoundError("there is no such report")
    headers = {"content-security-policy": REPORT_POLICY, "cross-origin-opener-policy": "unsafe-none"}
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/plotly.js")
def plotly_script(request: Request) -> Response:
    """The script that draws the curves, as the Python package `plotly` brings it; pages name its version."""
    return FileResponse(
        _plotly()[0], media_type="text/javascript", headers={"cache-control": "private, max-age=31536000, immutable"}
    )


@cache
def _plotly() -> tuple[Path, str]:
    import plotly

    return Path(plotly.__file__).parent / "package_data" / "plotly.min.js", plotly.__version__


# --------------------------------------------------------------------------------------------------------- processes


@router.post("/runs/{run}/start")
def start_run(request: Request, run: Name, person: Admin, form: Form) -> Response:
    """Runs the recipe, to the step that the form names or to its end."""
    root = _run(request, run)
    step = text(form, "step") or None
    if step is not None and step not in read_steps(root).planned:
        raise NotFoundError("the recipe has no such step")
    start(root, step, person.name)
    return _back(request, form, run)


@router.post("/runs/{run}/stop")
def stop_run(request: Request, run: Name, person: Admin, form: Form) -> Response:
    stop(_run(request, run))
    return _back(request, form, run)


def _back(request: Request, form: FormData, run: str) -> Response:
    """To the page that the button was on."""
    step = text(form, "from")
    return RedirectResponse(f"/runs/{quote(run)}" + (f"/steps/{quote(step)}" if step else ""), 303)


# ---------------------------------------------------------------------------------------------------------------- data


@data.get("")
def list_runs(request: Request, person: Admin) -> list[dict[str, Any]]:
    """The runs with their steps and states."""
    found = run_directories(settings_of(request).runs_dir)
    return [{"name": path.name, **overview(path).as_json()} for path in found]


@data.get("/{run}/steps/{step:path}/curves")
def step_curves(request: Request, run: Name, step: Name, person: Admin) -> dict[str, Any]:
    """Every metric of a step with its definition, thinned to some hundred points; `at` is for the events."""
    found = curves(step_or_404(_run(request, run), step))
    language = language_of(request)
    for chart in found["charts"]:
        for metric in chart["metrics"]:
            metric |= {key: translate(language, metric[key]) for key in ("definition", "watch")}
        chart["heading"] = translate(language, chart["heading"])
    return found


@data.get("/{run}/steps/{step:path}/samples")
def step_samples(request: Request, run: Name, step: Name, person: Admin) -> list[dict[str, Any]]:
    """What the model wrote while it learnt, by prompt."""
    return samples(step_or_404(_run(request, run), step))


@data.get("/{run}/events")
def events(request: Request, run: Name, store: AStore, person: Admin, step: Name = "", at: Name = "") -> EventStream:
    """What changes, as server-sent events: `state`, `log`, and of a step `lines`, `samples` and `reset`.

    An event's id says how far the reader is; a browser that connects anew sends it back and misses nothing.
    """
    root = _run(request, run)
    place = request.headers.get("last-event-id") or at
    watch = Watch(root, step_or_404(root, step) if step else None, place)

    async def stream() -> AsyncIterator[str]:
        silent = 0.0
        turn = 0
        while not await request.is_disconnected():
            try:
                found = list(await run_in_threadpool(watch.grown))
                if turn % 2 == 0:
                    found += await run_in_threadpool(watch.changed)
            except WukongError as error:  # a damaged file: the reader is told, and asks again later
                yield event(str(error), "problem", watch.place)
                return
            for left, (kind, value) in zip(range(len(found))[::-1], found, strict=True):
                # Only the last one says how far the reader is: whoever is cut off before it gets all of them again.
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
    """Whether whoever opened the stream may still look: accounts are closed, sessions end."""
    person = maybe_person(request)
    return person is not None and person.role == "admin"
