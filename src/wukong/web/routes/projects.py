"""Projects: made, changed, measured and exported by admins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.datastructures import FormData

from wukong.feedback.agreement import summary
from wukong.feedback.store import exchange
from wukong.feedback.store.exchange import SUFFIX, Judgments, export_file, judgments_of
from wukong.feedback.store.labels import project_of
from wukong.feedback.store.tables import KINDS, Task
from wukong.feedback.store.tasks import add_guidelines, change_project, create_project, guidelines
from wukong.model.architectures import REWARDS
from wukong.run_models import models_in
from wukong.web.access import Admin, Form
from wukong.web.inputs import Id, number, text, whole, writes
from wukong.web.rendering import render_page
from wukong.web.routes.new_tasks import record_files
from wukong.web.state import Studio

pages = APIRouter(include_in_schema=False)
api = APIRouter(prefix="/api/projects/{project_id}", tags=["studio"])
ROUTERS = (pages, api)


@pages.get("/projects/new")
def new_project(request: Request, person: Admin) -> HTMLResponse:
    return render_page(request, "new_project", person=person, kinds=KINDS)


@pages.post("/projects/new")
@writes
def make_project(person: Admin, studio: Studio, form: Form) -> Response:
    with studio.store.write() as session:
        project = create_project(session, text(form, "name"), text(form, "kind"), **_settings(form))
        if text(form, "guidelines").strip():
            add_guidelines(session, project, text(form, "guidelines"), person.id)
        return RedirectResponse(f"/projects/{project.id}", 303)


def _settings(form: FormData) -> dict[str, Any]:
    return {
        "overlap": whole(form, "overlap", 1, 0, 100),
        "gold_rate": number(form, "gold_percent", 0, 0, 100) / 100,
        "lease_seconds": number(form, "lease_minutes", 30, 1 / 6, 7 * 24 * 60) * 60,
        "active_selection": "active_selection" in form,
    }


@pages.get("/projects/{project_id}")
def project_page(request: Request, project_id: Id, studio: Studio, person: Admin) -> HTMLResponse:
    with studio.store.read() as session:
        project = project_of(session, project_id)
        mine = Task.project_id == project_id
        counts = session.execute(
            sa.select(
                sa.func.count(),
                sa.func.count().filter(~Task.open),
                sa.func.count().filter(Task.is_gold),
                sa.func.count().filter(Task.disagreement > 0, ~Task.adjudicated),
                sa.func.coalesce(sa.func.sum(Task.n_labels), 0),
            ).where(mine)
        ).one()
        version = guidelines(session, project_id)
    run = studio.settings.run_dir
    return render_page(
        request,
        "project",
        person=person,
        project=project,
        counts=dict(zip(("tasks", "complete", "gold", "disagreements", "labels"), counts, strict=True)),
        guidelines=version,
        files=[file.name for file in record_files(run)],
        policies=[path.name for path in models_in(run)],
        reward_models=[path.name for path in models_in(run, REWARDS)],
        job=studio.jobs.of(project_id),
    )


@pages.post("/projects/{project_id}/settings")
@writes
def settings(project_id: Id, studio: Studio, person: Admin, form: Form) -> Response:
    with studio.store.write() as session:
        project = project_of(session, project_id)
        change_project(session, project, **_settings(form))
        add_guidelines(session, project, text(form, "guidelines"), person.id)
    return RedirectResponse(f"/projects/{project_id}", 303)


@pages.get("/projects/{project_id}/quality")
def quality_page(request: Request, project_id: Id, studio: Studio, person: Admin) -> HTMLResponse:
    with studio.store.read() as session:
        project = project_of(session, project_id)
        figures = summary(judgments_of(session, project))
    return render_page(request, "quality", person=person, project=project, figures=figures)


# --------------------------------------------------------------------------------------------------------------- API


@api.get("/quality")
def quality(project_id: Id, studio: Studio, person: Admin) -> dict[str, Any]:
    """Agreement, alpha, and each annotator's figures."""
    with studio.store.read() as session:
        return summary(judgments_of(session, project_of(session, project_id)))


@api.get("/export")
def export(
    project_id: Id, studio: Studio, person: Admin, form: exchange.Form = "wukong", judgments: Judgments = "all"
) -> StreamingResponse:
    """The labels as a file, in the form that `wukong reward` and others read."""
    directory = tempfile.TemporaryDirectory(prefix="wukong-export-")
    path = Path(directory.name) / f"labels.{SUFFIX[form]}"
    with studio.store.read() as session:
        project = project_of(session, project_id)
        export_file(session, project, path, form, judgments)
        name = f"project-{project.id}-{form}-{judgments}.{SUFFIX[form]}"

    def parts() -> Iterator[bytes]:
        with directory, path.open("rb") as file:
            while part := file.read(1 << 16):
                yield part

    kind = "text/csv" if form == "csv" else "application/x-ndjson"
    return StreamingResponse(
        parts(), media_type=f"{kind}; charset=utf-8", headers={"content-disposition": f'attachment; filename="{name}"'}
    )
