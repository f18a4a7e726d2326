"""The glass box, for admins: traced iterations of training as tokens, recomputed under other settings."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import Field

from wukong.feedback.store.labels import NotFoundError
from wukong.report.contents import StepResult
from wukong.report.glass import view_of
from wukong.report.names import STAGE_NAMES
from wukong.report.traces import FILE, TracedIteration, TracedResponse, has_trace, parsed, token_means, traced_lines
from wukong.web.access import CHANGE, Admin
from wukong.web.inputs import Body, Id, Name
from wukong.web.rendering import render_page
from wukong.web.routes.runs import plotly_script
from wukong.web.runs.states import run_or_404, step_or_404
from wukong.web.state import state_of

pages = APIRouter(include_in_schema=False)
api = APIRouter(prefix="/api/runs", tags=["runs"])
ROUTERS = (pages, api)
BATCH_MEANS = (
    "score", "kl", "advantage_std", "value_mean", "value_error", "explained_variance", "return_mean", "baseline",
    "kept_score",
)  # fmt: skip
"""Metrics of the whole batch that other settings may change."""


class Changes(Body):
    """Other settings; what is absent stays as it was recorded."""

    iteration: Id
    kl_coef: Annotated[float, Field(ge=0, le=1e6)] | None = None
    gamma: Annotated[float, Field(ge=0, le=1)] | None = None
    lam: Annotated[float, Field(ge=0, le=1)] | None = None
    clip_range: Annotated[float, Field(gt=0, le=1e6)] | None = None


def _step(request: Request, run: str, step: str) -> StepResult:
    return step_or_404(run_or_404(state_of(request).settings.runs_dir, run), step)


@pages.get("/runs/{run}/glass/{step:path}")
def glass_page(request: Request, run: Name, step: Name, person: Admin) -> HTMLResponse:
    found = _step(request, run, step)
    if not has_trace(found.out):
        raise NotFoundError("this step has no trace: train it with --trace")
    return render_page(
        request, "glass", person=person, run=run, step=found, stage=STAGE_NAMES.get(found.stage, found.stage),
        plotly=plotly_script(),
    )  # fmt: skip


@api.get("/{run}/glass/{step:path}")
def traced_iteration(
    request: Request, run: Name, step: Name, person: Admin, iteration: Id | None = None
) -> dict[str, Any]:
    """One traced iteration, by default the last: its responses as tokens, the settings that can be changed, means of
    metrics.jsonl and of the tokens, and the numbers of all traced `steps`."""
    found = _step(request, run, step)
    lines, one = _iteration(found, iteration)
    logged = next((line for line in found.metrics if line.get("step") == one.step), {})
    means = {name: logged[name] for name in BATCH_MEANS if name in logged} | token_means(one.responses)
    shown = _shown(one, one.responses, means)
    return shown | {"steps": list(lines), "settings": one.settings, "algorithm": one.algorithm}


@api.post("/{run}/glass/{step:path}", dependencies=CHANGE)
def recomputed(request: Request, run: Name, step: Name, body: Changes, person: Admin) -> dict[str, Any]:
    """The same iteration under other settings (`wukong.studies.glass`)."""
    from wukong.studies.glass import recompute  # torch takes seconds, and most visitors only label

    _, one = _iteration(_step(request, run, step), body.iteration)
    found = recompute(one, body.model_dump(exclude={"iteration"}, exclude_none=True))
    return _shown(one, found.responses, found.means)


def _shown(one: TracedIteration, responses: list[TracedResponse], means: dict[str, float]) -> dict[str, Any]:
    return {"step": one.step, "responses": [view_of(response) for response in responses], "means": list(means.items())}


def _iteration(step: StepResult, number: int | None) -> tuple[dict[int, dict[str, Any]], TracedIteration]:
    """All lines of the trace, and one of them. Raises NotFoundError, DataError."""
    if not has_trace(step.out):
        raise NotFoundError("this step has no trace: train it with --trace")
    status = (step.out / FILE).stat()
    lines = _lines(step.out, status.st_mtime_ns, status.st_size)
    number = max(lines, default=None) if number is None else number
    if number not in lines:
        raise NotFoundError("iteration {n} was not traced", n=number)
    return lines, parsed(lines[number], step.out)


@lru_cache(maxsize=4)
def _lines(out: Path, written: int, size: int) -> dict[int, dict[str, Any]]:
    """The file as it was at a time: a slider asks for many of its lines."""
    return traced_lines(out)
