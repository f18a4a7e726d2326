"""New tasks for a project, and how uncertain reward models are of them: background jobs of the project's page."""

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
from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import selectinload
from starlette.datastructures import UploadFile

from wukong.console import say
from wukong.data.readers import check_unpacked
from wukong.errors import DataError, Text, UsageError
from wukong.feedback.selection import pair_uncertainty
from wukong.feedback.store.database import Store
from wukong.feedback.store.importing import Use, import_file
from wukong.feedback.store.labels import NotFoundError, project_of
from wukong.feedback.store.tables import Task, TaskResponse, now
from wukong.files import disk_errors
from wukong.model.architectures import REWARDS
from wukong.records import Message, Prompt, as_messages, write_records
from wukong.run_models import models_in
from wukong.web.access import Admin, Form
from wukong.web.guard import LARGEST_FILE
from wukong.web.inputs import ONE_OF, Id, number, text, texts, whole
from wukong.web.jobs import Job
from wukong.web.state import Studio

pages = APIRouter(include_in_schema=False, prefix="/projects/{project_id}")
ROUTERS = (pages,)
MOST_LINES = 20
"""Lines about an import that are shown."""


def record_files(run: Path | None) -> list[Path]:
    return sorted(run.glob("*.jsonl")) if run else []


def _chosen(names: list[str], offered: list[Path]) -> list[Path]:
    """The offered paths of these names: a name never becomes a path, so a name cannot lead out of the run."""
    by_name = {path.name: path for path in offered}
    if missing := [name for name in names if name not in by_name]:
        raise NotFoundError("the run has no {name!r}", name=missing[0])
    return [by_name[name] for name in names]


@pages.post("/import")
def add_file(project_id: Id, studio: Studio, person: Admin, form: Form) -> Response:
    """Tasks from an uploaded file, or from one of the run: read and added behind the page."""
    use = text(form, "use") or "tasks"
    if use not in get_args(Use):
        raise UsageError(ONE_OF, name="use", value=use, values=", ".join(get_args(Use)))
    per_prompt, skip_bad = whole(form, "per_prompt", 0), whole(form, "skip_bad", 0)
    store = studio.store
    with store.read() as session:
        project_of(session, project_id)
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
            path, largest = _chosen([text(form, "run_file")], record_files(studio.settings.run_dir))[0], None
        studio.jobs.start(project_id, "import", work)
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


@pages.post("/generate")
def generate(project_id: Id, studio: Studio, person: Admin, form: Form) -> Response:
    """Tasks whose answers models of the run give now, by `wukong sample`, in a separate process."""
    run = studio.settings.run_dir
    chosen = _chosen(texts(form, "models"), models_in(run))
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
    studio.jobs.start(
        project_id, "sample", lambda job: _sample(studio.store, project_id, chosen, prompts, options, job)
    )
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


@pages.post("/uncertainty")
def uncertainty(project_id: Id, studio: Studio, person: Admin, form: Form) -> Response:
    """Has reward models of the run say how unsure they are of each open task (see `feedback.selection`)."""
    run = studio.settings.run_dir
    chosen = _chosen(texts(form, "models"), models_in(run, REWARDS))
    if not chosen:
        raise UsageError("choose a reward model")
    studio.jobs.start(project_id, "uncertainty", lambda job: [rate_uncertainty(studio.store, project_id, chosen)])
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
        project_of(session, project_id).active_selection = True
    say("studio: {count} tasks rated by {n} reward models", count=count, n=len(reward_models))
    return Text("{n} tasks rated", n=count)


def _scores(path: Path, items: list[tuple[list[Message], list[str]]]) -> list[list[float] | None]:
    """The reward of each answer; None for a task of which one is longer than the model's context."""
    from wukong.data.answers import answers_ids
    from wukong.model.hub import load_reward
    from wukong.scoring import scores_of
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
