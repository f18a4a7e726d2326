"""What admins see and send: projects, their tasks, quality and disagreements, people.

Lists are paged and filtered by the database; no page loads more rows than it shows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast, get_args

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy.orm import selectinload
from starlette.datastructures import FormData, UploadFile

from wukong.console import say
from wukong.data.readers import check_unpacked
from wukong.errors import DataError, Text, UsageError, WukongError
from wukong.feedback.agreement import summary
from wukong.feedback.selection import pair_uncertainty
from wukong.feedback.store import people
from wukong.feedback.store.database import Store
from wukong.feedback.store.exchange import judgments_of
from wukong.feedback.store.importing import Use, import_file
from wukong.feedback.store.labels import NotFoundError, current
from wukong.feedback.store.tables import (
    KINDS,
    Annotator,
    Invitation,
    Label,
    PromptRow,
    Task,
    TaskResponse,
    now,
)
from wukong.feedback.store.tasks import add_guidelines, change_project, create_project, guidelines
from wukong.feedback.store.values import FLAGS
from wukong.files import disk_errors, read_json
from wukong.records import Message, Prompt, as_messages, write_records
from wukong.web.access import LARGEST_FILE, Admin, AStore, Form, settings_of
from wukong.web.api import project_or_404
from wukong.web.inputs import ONE_OF, Count, Id, Name, Words, number, text, texts, whole, writes
from wukong.web.jobs import Job, Jobs
from wukong.web.pages import page as render_page
from wukong.web.pages import paging

router = APIRouter(include_in_schema=False)
PAGE = 50
MOST_LINES = 20
"""So many lines about an import are shown."""


# ----------------------------------------------------------------------------------------------------------- projects


@router.get("/projects/new")
def new_project(request: Request, person: Admin) -> HTMLResponse:
    return render_page(request, "new_project", person=person, kinds=KINDS)


@router.post("/projects/new")
@writes
def make_project(person: Admin, store: AStore, form: Form) -> Response:
    with store.write() as session:
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


@router.get("/projects/{project_id}")
def project_page(request: Request, project_id: Id, store: AStore, person: Admin) -> HTMLResponse:
    with store.read() as session:
        project = project_or_404(session, project_id)
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
    run = settings_of(request).run_dir
    return render_page(
        request,
        "project",
        person=person,
        project=project,
        counts=dict(zip(("tasks", "complete", "gold", "disagreements", "labels"), counts, strict=True)),
        guidelines=version,
        files=[file.name for file in _record_files(run)],
        policies=[path.name for path in models(run, "GPT2LMHeadModel")],
        reward_models=[path.name for path in models(run, "GPT2ForSequenceClassification")],
        job=jobs_of(request).of(project_id),
    )


@router.post("/projects/{project_id}/settings")
@writes
def settings(project_id: Id, store: AStore, person: Admin, form: Form) -> Response:
    with store.write() as session:
        project = project_or_404(session, project_id)
        change_project(session, project, **_settings(form))
        add_guidelines(session, project, text(form, "guidelines"), person.id)
    return RedirectResponse(f"/projects/{project_id}", 303)


# ------------------------------------------------------------------------------------------------------- adding tasks


def _record_files(run: Path | None) -> list[Path]:
    return sorted(run.glob("*.jsonl")) if run else []


def models(run: Path | None, architecture: str) -> list[Path]:
    """The run's model directories of a kind, by what their config.json says."""
    found = []
    for config in sorted(run.glob("*/config.json")) if run else []:
        try:
            if architecture in read_json(config).get("architectures", []):
                found.append(config.parent)
        except (WukongError, AttributeError):  # a directory that is no model of ours
            continue
    return found


def _chosen(names: list[str], offered: list[Path]) -> list[Path]:
    """The offered paths of these names: a name never becomes a path, so none can lead out of the run."""
    by_name = {path.name: path for path in offered}
    if missing := [name for name in names if name not in by_name]:
        raise NotFoundError("the run has no {name!r}", name=missing[0])
    return [by_name[name] for name in names]


def jobs_of(request: Request) -> Jobs:
    return request.app.state.jobs


@router.post("/projects/{project_id}/import")
def add_file(request: Request, project_id: Id, store: AStore, person: Admin, form: Form) -> Response:
    """Tasks from an uploaded file, or from one of the run: read and added behind the page."""
    use = text(form, "use") or "tasks"
    if use not in get_args(Use):
        raise UsageError(ONE_OF, name="use", value=use, values=", ".join(get_args(Use)))
    per_prompt, skip_bad = whole(form, "per_prompt", 0), whole(form, "skip_bad", 0)
    with store.read() as session:
        project_or_404(session, project_id)
    upload, directory = form.get("file"), ExitStack()

    def work(job: Job) -> list[str]:
        with directory:
            how = {"use": use, "per_prompt": per_prompt, "skip_bad": skip_bad}
            return _import(store, project_id, path, job, largest, **how)

    try:
        if isinstance(upload, UploadFile) and upload.filename:
            place = directory.enter_context(tempfile.TemporaryDirectory(prefix="wukong-import-"))
            path, largest = _kept(upload, Path(place)), LARGEST_FILE
        else:
            path, largest = _chosen([text(form, "run_file")], _record_files(settings_of(request).run_dir))[0], None
        jobs_of(request).start(project_id, "import", work)
    except BaseException:  # there is no job that would remove it
        directory.close()
        raise
    return RedirectResponse(f"/projects/{project_id}", 303)


def _kept(upload: UploadFile, directory: Path) -> Path:
    """The upload as a file, for the request's own goes with the request. Errors name it as its owner does, as far as
    that is harmless; its suffixes tell the format."""
    path = directory / (re.sub(r"[^\w.-]+", "_", Path(upload.filename or "").name)[-60:].lstrip(".") or "upload.jsonl")
    with disk_errors(path), path.open("wb") as out:
        shutil.copyfileobj(upload.file, out)
    return path


def _import(store: Store, project_id: int, path: Path, job: Job, largest: int | None, **how: Any) -> list[str]:
    """Imports a file, of at most so many bytes once unpacked; returns what became of it, in lines that do not tell
    where the file lay."""
    try:
        if largest is not None:
            check_unpacked(path, largest)
        found = import_file(store, project_id, path, tell=job.tell, **how)
    except DataError as error:
        raise _with_short_name(error) from None
    happened = [_without_place(line, f"{path.parent}{os.sep}") for line in found.happened]
    counts = [Text("{n} new tasks", n=found.added), Text("{n} records read", n=found.read)]
    more = [Text("{n} more lines like these", n=len(happened) - MOST_LINES)] if len(happened) > MOST_LINES else []
    return [*counts, *happened[:MOST_LINES], *more]


def _with_short_name(error: DataError) -> DataError:
    file = Path(error.file).name if error.file else None
    return DataError(error.problem, file=file, line=error.line, field=error.field, hint=error.hint)


def _without_place(line: str, place: str) -> str:
    """A line about a file without the directory that the file was kept in."""
    if not isinstance(line, Text):
        return line.replace(place, "")
    shorter = {
        name: _with_short_name(value) if isinstance(value, DataError) else value for name, value in line.values.items()
    }
    return Text(line.template, **shorter)


@router.post("/projects/{project_id}/generate")
def generate(request: Request, project_id: Id, store: AStore, person: Admin, form: Form) -> Response:
    """Tasks whose answers models of the run give now, by `wukong sample`, in a process of its own."""
    run = settings_of(request).run_dir
    chosen = _chosen(texts(form, "models"), models(run, "GPT2LMHeadModel"))
    prompts = [line.strip() for line in text(form, "prompts").splitlines() if line.strip()]
    if not chosen or not prompts:
        raise UsageError("choose a model, and write a prompt a line")
    options = {
        "--responses-per-prompt": str(whole(form, "responses", 4, 1, 64)),
        "--max-new-tokens": str(whole(form, "max_new_tokens", 112, 1)),
        "--seed": str(int(now())),
    }
    if text(form, "temperature"):
        options["--temperatures"] = str(number(form, "temperature", 1.0, 0, 10))
    jobs_of(request).start(project_id, "sample", lambda job: _sample(store, project_id, chosen, prompts, options, job))
    return RedirectResponse(f"/projects/{project_id}", 303)


def _sample(
    store: Store, project_id: int, chosen: list[Path], prompts: list[str], options: dict[str, str], job: Job
) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="wukong-sample-") as directory:
        asked, out = Path(directory) / "prompts.jsonl", Path(directory) / "responses.jsonl"
        write_records(asked, [Prompt(messages=as_messages(text), source="studio") for text in prompts])
        command = [sys.executable, "-m", "wukong", "sample", "--models", *map(str, chosen), "--prompts", str(asked)]
        command += ["--out", str(out), *(word for pair in options.items() for word in pair)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
        if done.returncode:
            raise UsageError((done.stderr.strip().splitlines() or ["wukong sample failed"])[-1])
        return _import(store, project_id, out, job, None)


@router.post("/projects/{project_id}/uncertainty")
def uncertainty(request: Request, project_id: Id, store: AStore, person: Admin, form: Form) -> Response:
    """Has reward models of the run say how unsure they are of each open task (see `feedback.selection`)."""
    run = settings_of(request).run_dir
    chosen = _chosen(texts(form, "models"), models(run, "GPT2ForSequenceClassification"))
    if not chosen:
        raise UsageError("choose a reward model")
    jobs_of(request).start(project_id, "uncertainty", lambda job: [rate_uncertainty(store, project_id, chosen)])
    return RedirectResponse(f"/projects/{project_id}", 303)


def rate_uncertainty(store: Store, project_id: int, reward_models: list[Path]) -> str:
    """Sets the uncertainty of the project's open tasks with two answers or more."""
    with store.read() as session:
        answers = selectinload(Task.responses).selectinload(TaskResponse.response)
        tasks = session.scalars(
            sa.select(Task).where(Task.project_id == project_id, Task.open).options(selectinload(Task.prompt), answers)
        ).all()
        items = [([Message.model_validate(m) for m in t.prompt.messages], t.texts) for t in tasks]
    items_of = {task.id: item for task, item in zip(tasks, items, strict=True) if len(item[1]) > 1 and item[0]}
    scores = [_scores(path, list(items_of.values())) for path in reward_models]
    with store.write() as session:
        count = 0
        for number, task_id in enumerate(items_of):
            per_model = [one[number] for one in scores]
            if any(found is None for found in per_model):
                continue  # too long for a model: it stays where it is
            value = pair_uncertainty(cast(list[list[float]], per_model))
            session.execute(sa.update(Task).where(Task.id == task_id).values(uncertainty=value))
            count += 1
        project_or_404(session, project_id).active_selection = True
    say(f"studio: {count} tasks rated by {len(reward_models)} reward models")
    return Text("{n} tasks rated", n=count)


def _scores(path: Path, items: list[tuple[list[Message], list[str]]]) -> list[list[float] | None]:
    """The reward of each answer; None for a task of which one is longer than the model's context."""
    from wukong.model.hub import load_reward
    from wukong.stages.common import scores_of
    from wukong.stages.pairs import answers_ids
    from wukong.training.compute import compute_for

    model, tokenizer = load_reward(str(path))
    compute = compute_for("auto", "auto")
    model.to(compute.device).eval()
    rows = [
        answers_ids(tokenizer, [(prompt, text) for text in texts], model.config.n_positions) for prompt, texts in items
    ]
    flat = [ids for row in rows if all(row) for ids in row if ids]
    scores = iter(scores_of(model, flat, compute, 8192) if flat else [])
    return [[next(scores) for _ in row] if all(row) else None for row in rows]


# -------------------------------------------------------------------------------------------------------------- lists


FILTERS = {
    "all": sa.true(),
    "open": Task.open,
    "complete": ~Task.open,
    "gold": Task.is_gold,
    "disagreement": sa.and_(Task.disagreement > 0, ~Task.adjudicated),
    "adjudicated": Task.adjudicated,
}


@router.get("/projects/{project_id}/tasks")
def tasks(
    request: Request, project_id: Id, store: AStore, person: Admin, show: Name = "all", q: Words = "", page: Count = 1
) -> HTMLResponse:
    if show not in FILTERS:
        raise UsageError(ONE_OF, name="show", value=show, values=", ".join(FILTERS))
    with store.read() as session:
        project = project_or_404(session, project_id)
        query = sa.select(Task).where(Task.project_id == project_id, FILTERS[show])
        if q:
            found = sa.select(PromptRow.id).where(PromptRow.text.icontains(q, autoescape=True))
            query = query.where(Task.prompt_id.in_(found))
        count = session.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0
        order = Task.disagreement.desc() if show == "disagreement" else Task.id
        place = paging(page, count, PAGE)
        query = query.order_by(order, Task.id).limit(PAGE).offset(place.before)
        rows = session.scalars(query.options(selectinload(Task.prompt))).all()
    return render_page(
        request,
        "tasks",
        person=person,
        project=project,
        rows=rows,
        count=count,
        paging=place,
        show=show,
        filters=list(FILTERS),
        q=q,
    )


@router.get("/tasks/{task_id}")
def task_page(request: Request, task_id: Id, store: AStore, person: Admin) -> HTMLResponse:
    """One task with every judgment of it, those that were taken back too, and the place to decide."""
    with store.read() as session:
        task = session.get(Task, task_id)
        if task is None:
            raise NotFoundError("there is no such task")
        texts, messages, project = task.texts, task.prompt.messages, task.project
        sources = [one.response.model for one in task.responses]
        loaded = (
            sa.select(Label).where(Label.task_id == task_id).order_by(Label.id).options(selectinload(Label.annotator))
        )
        rows = session.scalars(loaded).all()
        counting = set(session.scalars(sa.select(Label.id).where(Label.task_id == task_id, current())))
        following = session.scalar(
            sa.select(Task.id)
            .where(Task.project_id == project.id, FILTERS["disagreement"], Task.id != task_id)
            .order_by(Task.disagreement.desc(), Task.id)
            .limit(1)
        )
    return render_page(
        request,
        "task",
        person=person,
        task=task,
        project=project,
        texts=texts,
        sources=sources,
        messages=messages,
        rows=rows,
        counting=counting,
        following=following,
        flags=FLAGS,
    )


@router.get("/projects/{project_id}/quality")
def quality(request: Request, project_id: Id, store: AStore, person: Admin) -> HTMLResponse:
    with store.read() as session:
        project = project_or_404(session, project_id)
        figures = summary(judgments_of(session, project))
    return render_page(request, "quality", person=person, project=project, figures=figures)


# ------------------------------------------------------------------------------------------------------------- people


@router.get("/people")
def everybody(request: Request, store: AStore, person: Admin, page: Count = 1) -> HTMLResponse:
    return _people(request, store, person, page)


def _people(request: Request, store: Store, person: Annotator, page: int = 1, link: str = "") -> HTMLResponse:
    with store.read() as session:
        counts = sa.select(Label.annotator_id, sa.func.count().label("n")).where(current()).group_by(Label.annotator_id)
        labels = counts.subquery()
        count = session.scalar(sa.select(sa.func.count()).select_from(Annotator)) or 0
        place = paging(page, count, PAGE)
        rows = session.execute(
            sa.select(Annotator, sa.func.coalesce(labels.c.n, 0))
            .outerjoin(labels, labels.c.annotator_id == Annotator.id)
            .order_by(Annotator.id)
            .limit(PAGE)
            .offset(place.before)
        ).all()
        waiting = session.scalars(
            sa.select(Invitation)
            .where(Invitation.used_at.is_(None), Invitation.expires_at > now())
            .order_by(Invitation.created_at.desc())
            .limit(PAGE)
        ).all()
    return render_page(
        request,
        "people",
        person=person,
        rows=rows,
        waiting=waiting,
        link=link,
        paging=place,
        count=count,
    )


@router.post("/people/invite")
@writes
def invite(request: Request, store: AStore, person: Admin, form: Form) -> HTMLResponse:
    """A new link, shown once: the store keeps no copy that would let anyone in."""
    with store.write() as session:
        known = session.get(Annotator, whole(form, "annotator", 0))
        days = number(form, "days", 7, 0.01, 90)
        role = text(form, "role") or "annotator"
        token = people.invite(session, role, note=text(form, "note"), annotator=known, seconds=days * 86400)
    return _people(request, store, person, link=str(request.base_url) + f"invite/{token}")


@router.post("/people/renew")
@writes
def renew(request: Request, store: AStore, person: Admin, form: Form) -> HTMLResponse:
    """Another link for an invitation that waits; the one before lets nobody in any more."""
    with store.write() as session:
        token = people.renew(session, text(form, "invitation"))
    return _people(request, store, person, link=str(request.base_url) + f"invite/{token}")


@router.post("/people/withdraw")
@writes
def withdraw(store: AStore, person: Admin, form: Form) -> Response:
    with store.write() as session:
        session.execute(sa.delete(Invitation).where(Invitation.id == text(form, "invitation")))
    return RedirectResponse("/people", 303)


@router.post("/people/active")
@writes
def active(store: AStore, person: Admin, form: Form) -> Response:
    """Closes an account, or opens it again; an admin cannot lock themselves out."""
    with store.write() as session:
        other = session.get(Annotator, whole(form, "annotator", 0))
        if other is None or other.id == person.id:
            raise NotFoundError("there is no other such person")
        people.set_active(session, other, text(form, "active") == "yes")
    return RedirectResponse("/people", 303)
