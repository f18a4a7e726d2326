"""Argilla's exports: records with fields, and responses of several people to one or more questions.

Version 1 groups a record's responses by person, version 2 by question; `to_list(flatten=True)` writes them in columns.
Only comparing questions are read: a choice or a ranking among the record's answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from wukong.data.fields import judged, prompt_field
from wukong.data.formats import OBJECT, Check, Fields, Format
from wukong.data.row import Row, is_missing, is_text, shown
from wukong.data.summary import Dropped
from wukong.errors import DataError
from wukong.records import Messages, Preference, Ranking

PROMPTS = ("prompt", "instruction", "question", "messages", "chat", "context", "input")
TIES = {"tie", "equal", "both", "same", "neither", "none", "draw"}


def _is_argilla(r: Fields) -> bool:
    responses = r["responses"]
    if isinstance(responses, list):  # version 1: [{user_id, status, values: {question: {value}}}]
        return all(isinstance(one, dict) and isinstance(one.get("values"), dict) for one in responses)
    return isinstance(responses, dict) and all(  # version 2: {question: [{value, user_id, status}]}
        isinstance(answers, list) and all(isinstance(one, dict) and "value" in one for one in answers)
        for answers in responses.values()
    )


def _answers(row: Row) -> Iterator[tuple[str, str, str, Any, str]]:
    """(where, question, person, value, status) of each answer to a question."""
    responses = row.fields["responses"]
    if isinstance(responses, dict):
        for question, answers in responses.items():
            for i, one in enumerate(answers):
                where = f"responses.{question}[{i}]"
                yield where, question, _name(one.get("user_id")), one["value"], str(one.get("status"))
        return
    for i, one in enumerate(responses):
        for question, value in one["values"].items():
            where = f"responses[{i}].values.{question}"
            said = value.get("value") if isinstance(value, dict) else value
            yield where, question, _name(one.get("user_id")), said, str(one.get("status"))


def _name(value: Any) -> str:
    return "" if is_missing(value) else str(value)


def argilla(row: Row) -> Iterator[Preference | Dropped | DataError]:
    """A comparison or ranking for each submitted answer to the comparing question (or the one named by `question`)."""
    texts = {_plain(name): text for name, text in row.fields["fields"].items() if is_text(text) and name not in PROMPTS}
    row.used.update(row.fields["fields"])
    found = False
    for where, question, person, value, status in _answers(row):
        if row.question and question != row.question:
            continue
        found = True
        if status in ("discarded", "draft"):
            yield Dropped(f"{status} response")
            continue
        order = _order(value, texts)
        if order is None:
            if row.question:
                yield row.error(f"is {shown(value)}, which does not order {', '.join(texts)}", where)
            continue
        row.asked.add(("argilla", question))
        yield _judgment(row, texts, order, person)
    if not found or not (row.asked or row.question):
        yield Dropped("record without a comparison or ranking")


def _plain(name: Any) -> str:
    return re.sub(r"[\s_-]+", "", str(name).lower())


def _order(value: Any, texts: dict[str, str]) -> list[list[str]] | None:
    """The names of the answers in groups from best to worst; one group for a tie of two; None for any other value."""
    if isinstance(value, str):
        if _plain(value) in TIES and len(texts) == 2:
            return [list(texts)]
        others = [name for name in texts if name != _plain(value)]
        return [[_plain(value)], others] if _plain(value) in texts and len(others) == 1 else None
    if not isinstance(value, list) or not value:
        return None
    ranks: dict[float, list[str]] = {}
    for place, one in enumerate(value):
        name, rank = (one.get("value"), one.get("rank", place)) if isinstance(one, dict) else (one, place)
        if _plain(name) not in texts or not isinstance(rank, int | float) or is_missing(rank):
            return None
        ranks.setdefault(float(rank), []).append(_plain(name))
    names = [name for rank in ranks.values() for name in rank]
    return [ranks[rank] for rank in sorted(ranks)] if len(set(names)) == len(names) > 1 else None


def _judgment(row: Row, texts: dict[str, str], order: list[list[str]], person: str) -> Preference:
    prompt = argilla_prompt(row)
    names = [name for group in order for name in group]
    said = [row.string(texts[name], f"fields.{name}") for name in names]
    if len(names) == 2:
        return judged(row, prompt, said[0], said[1], 1 if len(order) == 2 else 0, annotator=person)
    groups = [[names.index(name) for name in group] for group in order]
    return Ranking(prompt=prompt, responses=said, groups=groups, annotator=person, source=row.source)


def argilla_prompt(row: Row) -> Messages:
    fields = Row(row.file, row.line, row.fields["fields"], hub=row.hub, notes=row.notes, unused=row.unused)
    name = next((name for name in PROMPTS if not is_missing(fields.fields.get(name))), None)
    if name is None:
        raise row.error(f"has none of {', '.join(PROMPTS)}", "fields")
    return prompt_field(fields, name)


def _flat(r: Fields) -> dict[str, list[str]]:
    """question -> the columns with its answers, annotators and statuses, of a flattened record."""
    return {
        name.removesuffix(".responses"): [name, f"{name}.users", f"{name}.status"]
        for name in r
        if isinstance(name, str) and name.endswith(".responses") and isinstance(r[name], list)
    }


def argilla_flat(row: Row) -> Iterator[Preference | Dropped | DataError]:
    """Converts a flattened record via the shape of version 2."""
    responses, taken = {}, set()
    for question, names in _flat(row.fields).items():
        values, people, states = (row.fields.get(name) or [] for name in names)
        taken.update(names)
        responses[question] = [
            {
                "value": value,
                "user_id": people[i] if isinstance(people, list) and i < len(people) else None,
                "status": states[i] if isinstance(states, list) and i < len(states) else None,
            }
            for i, value in enumerate(values)
        ]
    fields = {name: value for name, value in row.fields.items() if name not in taken and "." not in name}
    whole = Row(row.file, row.line, {"fields": fields, "responses": responses}, hub=row.hub, question=row.question)
    whole.notes, whole.unused, whole.asked, whole.used = row.notes, row.unused, row.asked, row.used
    row.used.update(taken)
    return argilla(whole)


def _has_prompt(r: Fields) -> bool:
    return any(not is_missing(r.get(name)) for name in PROMPTS)


HARMLESS = frozenset({"suggestions", "vectors", "status", "metadata", "external_id", "inserted_at", "_server_id"})
ARGILLA: list[Format[Preference]] = [
    Format(
        "argilla",
        example={
            "fields": {"prompt": "Hi", "response-1": "Hello!", "response-2": "What?"},
            "responses": {"preference": [{"value": "response-1", "user_id": "ann"}]},
        },
        needs={"fields": OBJECT, "responses": Check("responses by question or by person", lambda v: True)},
        when=(lambda r: _is_argilla(r) and _has_prompt(r["fields"]), f"fields{{{'|'.join(PROMPTS)}}}, responses"),
        convert=argilla,
        harmless=HARMLESS,
        prompt=argilla_prompt,
    ),
    Format(
        "argilla",
        example={
            "prompt": "Hi",
            "response-1": "Hello!",
            "response-2": "What?",
            "preference.responses": ["response-1"],
            "preference.responses.users": ["ann"],
        },
        needs={"|".join(PROMPTS): Check("text or a list of messages", lambda v: is_text(v) or isinstance(v, list))},
        when=(lambda r: bool(_flat(r)), "QUESTION.responses, a list"),
        convert=argilla_flat,
        harmless=HARMLESS,
        prompt=lambda row: prompt_field(row, next(n for n in PROMPTS if not is_missing(row.fields.get(n)))),
    ),
]
