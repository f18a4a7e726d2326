"""Results and reports of runs, for admins.

Reports are separate HTML files with scripts inside: they are sent with a policy that takes them out of the studio's
origin, so that whatever is in them reaches neither its pages nor its cookies.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

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
from wukong.report.formatting import interval, number, percent
from wukong.web.access import Admin
from wukong.web.inputs import Count, Name
from wukong.web.rendering import paging, render_page
from wukong.web.runs.states import run_or_404
from wukong.web.state import state_of

pages = APIRouter(include_in_schema=False, prefix="/runs/{run}")
ROUTERS = (pages,)
ANSWERS = 10

REPORT_POLICY = (
    "sandbox allow-scripts allow-modals; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of a report, which has its script inside: it runs in a separate origin, and can fetch and send nothing."""


def _run(request: Request, name: str) -> Path:
    return run_or_404(state_of(request).settings.runs_dir, name)


@pages.get("/results/{place:path}")
def one_result(
    request: Request, run: Name, place: Name, person: Admin, q: Name = "", source: Name = "", page: Count = 1
) -> HTMLResponse:
    """An evaluation or a comparison: who won, and every model's answers to the same prompts side by side."""
    root = _run(request, run)
    if place not in results_in(root):
        raise NotFoundError("there is no such result")
    directory = root / place
    answered = read_answered_prompts(directory / "answers.jsonl")
    sources = sorted({one.source for one in answered if one.source})
    found = [(n, one) for n, one in enumerate(answered) if source in ("", one.source) and _contains(one, q)]
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


def results_in(run: Path) -> dict[str, str]:
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


def reports_in(run: Path) -> dict[str, str]:
    """Place of a report's HTML file in the run directory -> the stage that drew it."""
    found = {path.relative_to(run).as_posix(): "report" for path in sorted(run.glob("*.html"))}
    for step in _steps(run):
        if step.stage == "reward-report" and (step.out / "report.html").is_file():
            found[(step.out / "report.html").relative_to(run).as_posix()] = "reward-report"
    return found


@pages.get("/reports/{place:path}")
def one_report(request: Request, run: Name, place: Name, person: Admin) -> Response:
    root = _run(request, run)
    path = root / place if place in reports_in(root) else None
    if path is None or not path.resolve().is_relative_to(root.resolve()):  # a link may lead anywhere
        raise NotFoundError("there is no such report")
    headers = {"content-security-policy": REPORT_POLICY, "cross-origin-opener-policy": "unsafe-none"}
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)
