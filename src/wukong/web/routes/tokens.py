"""Any answer as tokens: of the chat, of a judged battle, and of a run's evaluation (`wukong.inspection`)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from wukong.feedback.store import chats
from wukong.feedback.store.chats import SpokenAnswer
from wukong.feedback.store.labels import NotFoundError
from wukong.report.contents import read_run
from wukong.report.inspected import AnsweringModel, answering_model
from wukong.web.access import CHANGE, Admin, Person
from wukong.web.inputs import Body, Id, Name
from wukong.web.runs.states import run_or_404
from wukong.web.state import State, Studio

api = APIRouter(prefix="/api", tags=["tokens"])
ROUTERS = (api,)


class Evaluated(Body):
    """An answer of an evaluation: the line of answers.jsonl from 0, and the model's name there."""

    line: int = Field(ge=0, le=10_000_000)
    model: Name


@api.post("/turns/{turn_id}/tokens", dependencies=CHANGE)
async def of_turn(turn_id: Id, studio: Studio, person: Person) -> dict[str, Any]:
    """An answer of the chat as tokens: log-probs, KL to the reference, the reward model's score up to each token."""

    def find() -> SpokenAnswer:
        with studio.store.read() as session:
            return chats.spoken(session, person, turn_id)

    answer = await run_in_threadpool(find)
    return {"responses": [await _inspected(studio, answer)]}


@api.post("/arena/battles/{assignment_id}/tokens", dependencies=CHANGE)
async def of_battle(assignment_id: Id, studio: Studio, person: Person) -> dict[str, Any]:
    """Both answers of a battle, from left to right; only once it is judged."""

    def find() -> list[SpokenAnswer]:
        with studio.store.read() as session:
            return chats.spoken_in_pair(session, person, assignment_id)

    answers = await run_in_threadpool(find)
    return {"responses": [await _inspected(studio, answer) for answer in answers if answer.text or answer.finished]}


async def _inspected(studio: State, answer: SpokenAnswer) -> dict[str, Any]:
    source = studio.models.sources().get(answer.model)
    if source is None:
        raise NotFoundError("there is no model {name!r} here", name=answer.model)
    return await studio.inspectors.inspect(source, answer)


@api.post("/runs/{run}/evaluations/{place:path}/tokens", dependencies=CHANGE)
async def of_evaluation(
    request: Request, run: Name, place: Name, body: Evaluated, studio: Studio, person: Admin
) -> dict[str, Any]:
    """An answer of an evaluation as tokens."""
    model, answer = await run_in_threadpool(_evaluated, studio, run, place, body)
    found = await studio.inspectors.inspect(model.source, answer, model.reference, model.reward_model, model.raw)
    return {"responses": [found]}


def _evaluated(studio: State, run: str, place: str, body: Evaluated) -> tuple[AnsweringModel, SpokenAnswer]:
    """The model and its answer. Raises NotFoundError."""
    contents = read_run(run_or_404(studio.settings.runs_dir, run))
    found = next((one for one in contents.evaluations if one.name == place), None)
    if found is None or body.line >= len(found.answered):
        raise NotFoundError("there is no such result")
    asked, name = found.answered[body.line], body.model
    model = answering_model(contents, place, name)
    if model is None or name not in asked.answers:
        raise NotFoundError("there is no model {name!r} here", name=name)
    answer = asked.answers[name]
    spoken = SpokenAnswer(name, asked.messages, answer.text, answer.finish_reason == "stop", model.temperature)
    return model, spoken
