"""`wukong labelstudio`: people compare answers in Label Studio, by file or through the API of a running server.

In:  responses.jsonl or comparisons (export, push); Label Studio's exports (import); its server (pull).
Out: tasks for Label Studio, or comparisons.jsonl for `wukong reward`.

    wukong labelstudio push --data responses.jsonl --project "Kitchen 1" --url http://127.0.0.1:8080
    wukong labelstudio pull --project "Kitchen 1" --url http://127.0.0.1:8080 --out comparisons.jsonl
    wukong labelstudio export --data responses.jsonl --out tasks.json
    wukong labelstudio import --data export.json --out comparisons.jsonl

All four can be repeated: `push` skips tasks that exist already, `pull` fetches changes and updates its result.
"""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from wukong.console import say
from wukong.data.sources import DataOptions, Row
from wukong.data.summary import Dropped
from wukong.errors import DataError, UsageError
from wukong.feedback.labelstudio.api import PAGE, LabelStudio
from wukong.feedback.labelstudio.tasks import (
    CONFIGS,
    BadItems,
    Kind,
    Labels,
    Reading,
    chosen_question,
    judgments,
    read_exports,
    read_items,
    shown_fields,
    tasks_of,
)
from wukong.files import atomic_open, read_json, whole_text, write_json
from wukong.options import Options

KEY_VARIABLE = "LABEL_STUDIO_API_KEY"
OVERLAP = datetime.timedelta(minutes=5)
"""Overlap between pulls: a change in progress during the last one may have an earlier time."""


class LabelStudioOptions(Options, DataOptions):
    """Send answers to Label Studio for comparison, and fetch the judgments."""

    action: Literal["export", "import", "push", "pull"]
    """export: tasks to a file; import: judgments from exported files; push, pull: the same with a running server."""
    data: list[str] = []
    """export, push: responses.jsonl or comparisons in any format; import: exports (JSON)."""
    out: Path | None = None
    """export: the tasks (.json), the labelling configuration beside them (.xml). import, pull: comparisons.jsonl."""
    url: str = "http://127.0.0.1:8080"
    """push, pull: the server's address."""
    project: str | None = None
    """push, pull: the project's title, at least three letters, or its id; push creates a missing project."""
    api_key: str | None = Field(None, repr=False)
    """push, pull: an access token of your account; or set LABEL_STUDIO_API_KEY, which is safer."""
    kind: Literal["auto", "pairwise", "ranker"] = "auto"
    """export, push: auto uses pairwise for two answers per prompt, ranker for more."""
    labels: Labels = "none"
    """export, push: whether to send the records' judgments as predictions or as ground truth."""
    config: Path | None = None
    """import: the project's labelling configuration (XML), which says which text was on the left."""
    predictions: bool = False
    """import, pull: include predictions, with the model version as the annotator."""

    @model_validator(mode="after")
    def _all_that_is_needed(self) -> LabelStudioOptions:
        needs = {"export": ("data", "out"), "import": ("data", "out"), "push": ("data", "project"),
                 "pull": ("project", "out")}[self.action]  # fmt: skip
        if self.project and not self.project.isdecimal() and len(self.project) < 3:
            raise ValueError(f"project: a title has at least three letters, not {self.project!r}")
        missing = [f"--{name}" for name in needs if not getattr(self, name)]
        if missing:
            raise ValueError(f"{self.action} needs {' and '.join(missing)}")
        if self.out and self.action == "export" and self.out.suffix == ".xml":
            raise ValueError("out: the tasks are JSON, and the labelling configuration takes the name with .xml")
        configuration = self.out.with_suffix(".xml") if self.out and self.action == "export" else None
        written = [os.path.abspath(file) for file in (self.out, configuration) if file]
        read = [*self.data, *([str(self.config)] if self.config else [])]
        if any(os.path.abspath(name) in written for name in read):
            raise ValueError(f"out: {self.out} would overwrite an input; choose another name")
        return self


def run(options: LabelStudioOptions) -> None:
    """Raises UsageError or DataError for unusable input or a wrong address or token, RunError if the server fails."""
    actions = {"export": export_tasks, "import": import_files, "push": push, "pull": pull}
    actions[options.action](options)


def export_tasks(options: LabelStudioOptions) -> None:
    assert options.out is not None
    kind, tasks = _tasks(options)
    config = options.out.with_suffix(".xml")
    write_json(options.out, tasks)
    with atomic_open(config) as out:
        out.write(CONFIGS[kind])
    say(
        "export: {n:,} {kind} tasks in {out}; their labelling configuration is {config}",
        n=len(tasks),
        kind=kind,
        out=options.out,
        config=config,
    )


def import_files(options: LabelStudioOptions) -> None:
    assert options.out is not None
    shown, question = {}, options.question
    if options.config:
        config = whole_text(options.config)
        shown = shown_fields(config, str(options.config))
        question = chosen_question(config, str(options.config), question)
    reading = Reading(shown=shown, predictions=options.predictions, question=question)
    records, dropped = read_exports(options.data, reading, options)
    _write(options.out, [record.model_dump_json(exclude_none=True) for record in records])
    answered = f" to {question}" if question else ""
    say(
        "import: {n:,} judgments{answered} in {out}{left_out}",
        n=len(records),
        answered=answered,
        out=options.out,
        left_out=_left_out(dropped),
    )


def push(options: LabelStudioOptions) -> None:
    server = _server(options)
    kind, tasks = _tasks(options)
    name = str(options.project)
    if (project := server.project(name)) is None:
        project, known = server.create(name, CONFIGS[kind]), set()
    else:
        wanted = "Pairwise" if kind == "pairwise" else "Ranker"
        if f"<{wanted}" not in project["label_config"]:
            raise UsageError(
                f"project {name!r} has no {wanted} in its labelling configuration; choose another --project"
            )
        known = {str(task["data"].get("wukong_id")) for task in server.tasks(project["id"])}
    new = [task for task in tasks if task["data"]["wukong_id"] not in known]
    for start in range(0, len(new), PAGE):
        server.add(project["id"], new[start : start + PAGE])
    there = f" ({len(tasks) - len(new):,} were there already)" if len(new) < len(tasks) else ""
    say(
        "push: {n:,} {kind} tasks{there}; label at {url}/projects/{id}/data",
        n=len(new),
        kind=kind,
        there=there,
        url=server.url,
        id=project["id"],
    )


def pull(options: LabelStudioOptions) -> None:
    assert options.out is not None
    server = _server(options)
    if (project := server.project(str(options.project))) is None:
        raise UsageError(f"{server.url}: there is no project {options.project!r}")
    place = f"{server.url}/projects/{project['id']}"
    state_path = Path(f"{options.out}.labelstudio.json")
    state = _state(state_path, options, place)
    shown = shown_fields(project["label_config"], place)
    question = chosen_question(project["label_config"], place, options.question)
    reading = Reading(server.people(), shown, options.predictions, question)
    changed, bad = 0, BadItems(options.skip_bad)
    for task in server.tasks(project["id"], _before(state["until"])):
        found: list[Any] = []
        for one in judgments(Row(place, task["id"], task), reading):
            if isinstance(one, DataError):
                bad.take(one)
                one = Dropped("bad item")
            found.append(one)
        entry = {
            "records": [
                one.model_dump(mode="json", exclude_none=True) for one in found if not isinstance(one, Dropped)
            ],
            "left_out": Counter(one.reason for one in found if isinstance(one, Dropped)),
        }
        changed += state["tasks"].get(str(task["id"])) != entry
        state["tasks"][str(task["id"])] = entry
        state["until"] = max(state["until"] or "", task["updated_at"])
    entries = [state["tasks"][number] for number in sorted(state["tasks"], key=int)]
    write_json(state_path, state)
    lines = [json.dumps(record, ensure_ascii=False) for entry in entries for record in entry["records"]]
    _write(options.out, lines)
    dropped = sum((Counter(entry["left_out"]) for entry in entries), Counter[str]())
    answered = f" to {question}" if options.question else ""
    say(
        "pull: {n:,} judgments of {tasks:,} tasks{answered} in {out}, "
        "{changed:,} tasks new or changed since the last pull{left_out}",
        n=len(lines),
        tasks=len(entries),
        answered=answered,
        out=options.out,
        changed=changed,
        left_out=_left_out(dropped),
    )


def _state(path: Path, options: LabelStudioOptions, place: str) -> dict[str, Any]:
    """The result of earlier pulls. Raises UsageError if --out is something else."""
    asked = {"project": place, "predictions": options.predictions, "question": options.question}
    fresh = {**asked, "until": None, "tasks": {}}
    if not path.exists():
        if options.out is not None and options.out.exists():
            raise UsageError(f"{options.out}: was not written by pull; choose another --out")
        return fresh
    state = read_json(path)
    if not isinstance(state, dict) or not isinstance(state.get("tasks"), dict):
        raise DataError("is not the state of a pull; delete it and the file it belongs to", file=path)
    if {"question": "", **state} | asked != {"question": "", **state}:
        raise UsageError(
            f"{options.out}: was pulled from {state.get('project')} with other options; choose another --out"
        )
    return state


def _before(until: str | None) -> str | None:
    """In the only time format (UTC) accepted by Label Studio's filters."""
    return (datetime.datetime.fromisoformat(until) - OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if until else None


def _tasks(options: LabelStudioOptions) -> tuple[Kind, list[dict[str, Any]]]:
    return tasks_of(read_items(options.data, options), None if options.kind == "auto" else options.kind, options.labels)


def _server(options: LabelStudioOptions) -> LabelStudio:
    key = options.api_key or os.environ.get(KEY_VARIABLE)
    if not key:
        raise UsageError(f"no token: set {KEY_VARIABLE} or --api-key; it is on your account page")
    return LabelStudio(options.url, key)


def _write(path: Path, lines: list[str]) -> None:
    with atomic_open(path) as out:
        out.writelines(line + "\n" for line in lines)


def _left_out(dropped: Counter[str]) -> str:
    return "; left out: " + ", ".join(f"{n:,} {reason}" for reason, n in dropped.items()) if dropped else ""
