"""Prompts from lists of questions, from any instruction or comparison format, or from the first words of texts.

Formats are tried in order. Those of the other two readers are included, reduced to their prompts, so that `--format
alpaca` means the same everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

from pydantic import Field

from wukong.data.comparisons import COMPARISONS
from wukong.data.fields import (
    INSTRUCTION,
    SYSTEM,
    first_present,
    instruction_prompt,
    is_own_messages,
    own_record,
    prompt_field,
    system_turn,
    user,
)
from wukong.data.formats import LIST, MEDIA, OBJECT, PROMPT, TEXT, TOOLS, TURNS, Fields, Format, Found, names
from wukong.data.instructions import INSTRUCTIONS
from wukong.data.labelstudio import LABELSTUDIO, task_prompt
from wukong.data.registry import Registry
from wukong.data.row import Row, is_missing, is_text
from wukong.data.sources import Columns, DataOptions, Sources
from wukong.data.summary import Dropped, Read
from wukong.errors import DataError
from wukong.records import Conversation, Message, Messages, Prompt, Response


class PromptOptions(DataOptions):
    """How prompts are read."""

    first_words: int = Field(default=0, ge=0, le=1_000_000)
    """Use only the first words of each text, this many, for the model to continue; 0 uses the whole text."""


def load_prompts(src: Sources, options: DataOptions | None = None) -> Read[Prompt]:
    """Prompts from one or more sources, without duplicates, with a summary of what was left out.

    Raises DataError for a record that cannot be used (file, line, field), UsageError for a missing source.
    """
    options = options or PromptOptions()
    words = options.first_words if isinstance(options, PromptOptions) else 0
    return PROMPTS.read(src, options, _beginning(words) if words else None)


def read_prompts(
    src: Sources,
    *,
    format: str = "auto",
    columns: Columns = (),
    encoding: str = "utf-8",
    skip_bad: int = 0,
    first_words: int = 0,
) -> list[Prompt]:
    """As `load_prompts`, without the summary.

    Args:
        src: a path, glob, directory or Hugging Face data set id, or a list of them.
        format: a format's name; "auto" detects it, record by record.
        columns: other names for fields: {"prompt": "question"}, or ["prompt=question"].
        encoding: of text files.
        skip_bad: how many unusable records may be left out before reading stops with an error.
        first_words: use only the first words of each text, this many, for the model to continue; 0 uses the whole text.
    """
    options = PromptOptions(
        format=format,
        columns=columns,  # type: ignore[arg-type]
        encoding=encoding,
        skip_bad=skip_bad,
        first_words=first_words,
    )
    return load_prompts(src, options).records


def _beginning(words: int) -> Callable[[Row, Prompt], Prompt]:
    pattern = re.compile(rf"\s*(\S+(?:\s+\S+){{0,{words - 1}}})")

    def cut(row: Row, prompt: Prompt) -> Prompt:
        """The prompt with its last message cut to its first words; the white space between them is kept."""
        *before, last = prompt.messages
        match = pattern.match(last.content)
        if match is None or match[1] == last.content:
            return prompt
        if match.end() < len(last.content.rstrip()):
            row.cuts.append(f"to the first {words} words")
        messages = [*before, Message(role=last.role, content=match[1])]
        return Prompt(messages=messages, source=prompt.source, answer=prompt.answer, columns=prompt.columns)

    return cut


def _useless(record: Prompt) -> str | None:
    return None if record.messages[-1].content.strip() else "empty prompt"


def _key(record: Prompt) -> Hashable:
    return tuple((m.role, m.content) for m in record.messages)


PROMPTS: Registry[Prompt] = Registry("prompts", _useless, _key)


def _unanswered(row: Row, turns: Messages) -> Prompt | Dropped:
    """A conversation up to where the assistant is to answer; a final answer is removed."""
    turns = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    return Prompt(messages=turns, source=row.source) if turns else Dropped("no prompt")


def _prompts_of(form: Format[Any]) -> Callable[[Row], Found[Prompt]]:
    """Adapts a format's converter to yield prompts; a record yields each of its prompts once."""

    def convert(row: Row) -> Found[Prompt]:
        if form.prompt is not None:
            yield _unanswered(row, form.prompt(row))
            return
        given: list[Messages] = []
        for record in form.convert(row):
            if isinstance(record, Dropped | DataError):
                yield record
                continue
            turns = record.messages[:-1] if isinstance(record, Conversation) else record.prompt
            if turns not in given:
                given.append(turns)
                yield _unanswered(row, turns)

    return convert


def _adopted(forms: Iterable[Format[Any]]) -> list[Format[Prompt]]:
    """Formats of the other readers, without those that are redefined here or only wrap others."""
    here = ("wukong", "labelstudio", "messages", "sharegpt", "preference")
    return [replace(form, convert=_prompts_of(form), yields="prompt") for form in forms if form.name not in here]


def _is_own(r: Fields) -> bool:
    """Other sets have id, messages and source too, but with numeric ids, or with an answer at the end."""
    kind = Response if "prompt_id" in r else Prompt
    if not set(r) <= set(kind.model_fields) or not is_own_messages(r.get("messages")) or not r["messages"]:
        return False
    names = ("id", "prompt_id", "text", "model") if kind is Response else ("id",)
    texts = all(isinstance(r.get(name), str) for name in names) and isinstance(r.get("source", ""), str)
    texts = texts and isinstance(r.get("answer"), str | None) and isinstance(r.get("columns"), dict | None)
    return texts and (kind is Response or r["messages"][-1]["role"] != "assistant")


def own(row: Row) -> Found[Prompt]:
    if "prompt_id" not in row.fields:
        return [own_record(row, Prompt)]
    response = own_record(row, Response)
    return [
        Prompt(
            messages=response.messages,
            source=response.source,
            id=response.prompt_id,
            answer=response.answer,
            columns=response.columns,
        )
    ]


def turns(row: Row) -> Found[Prompt]:
    first = row.fields["turns"][:1]
    if not first:
        raise row.error("is an empty list", "turns")
    return [_asked(row, row.string(first[0], "turns[0]"))]


def messages(row: Row) -> Found[Prompt]:
    return [_unanswered(row, prompt_field(row, first_present(row, "messages", "conversations", "conversation")))]


def _asked(row: Row, content: str) -> Prompt:
    return Prompt(messages=[*system_turn(row), user(content)], source=row.source)


ANSWERS = ("answer", "gold_answer", "ground_truth", "reward_model.ground_truth", "solution", "target")
"""Where data sets store the reference answer, the first one with text or a number counts; `reward_model` is verl's."""


def _with_columns(form: Format[Prompt]) -> Format[Prompt]:
    """The format, of whose records the reference answer and all fields that are not part of the prompt are kept."""

    def convert(row: Row) -> Found[Prompt]:
        taken = {*form.picked(row.fields).values(), *form.uses}
        answer = _reference_answer(row, taken)
        columns = {str(n): v for n, v in row.fields.items() if n not in taken and not is_missing(v) and _is_json(v)}
        row.kept |= set(columns)
        for record in form.convert(row):
            if isinstance(record, Prompt):
                record = record.model_copy(update={"answer": answer, "columns": columns or None})
            yield record

    return replace(form, convert=convert)


def _reference_answer(row: Row, taken: set[str | None]) -> str | None:
    """The record's answer under one of its usual names, which is added to `taken`."""
    for name in ANSWERS:
        outer, _, inner = name.partition(".")
        value = row.fields.get(outer)
        value = value.get(inner) if inner and isinstance(value, dict) else value
        if is_text(value) and str(value).strip():
            said = str(value) if name in taken else row.string(value, name)  # the prompt's format has noted it
            taken.add(name)
            return said
    return None


def _is_json(value: Any) -> bool:
    """Whether a value can be written to our files; a date or an image cannot."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_json(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


HI: dict[str, Any] = {"role": "user", "content": "Hi"}
MEANING = MEDIA | TOOLS
IGNORED = names("answer answers output response responses completion completions label labels category reference")
"""Fields that can be ignored if only the prompt is wanted."""

PROMPTS.add(
    Format(
        "wukong",
        example={"id": "1", "messages": [HI], "source": "mine"},
        needs={},
        when=(_is_own, "the fields of Prompt or Response"),
        convert=own,
        uses=frozenset(Prompt.model_fields) | frozenset(Response.model_fields),
    ),
    Format(
        "labelstudio",
        example={"data": {"prompt": "Hi", "answer1": "Hello!", "answer2": "What?"}},
        needs={"data": OBJECT},
        convert=lambda row: [_unanswered(row, task_prompt(row))],
        harmless=LABELSTUDIO.uses | LABELSTUDIO.harmless,
    ),
    _with_columns(
        Format(
            "turns",
            example={"turns": ["Hi", "And then?"]},
            needs={"turns": LIST},
            convert=turns,
            harmless=IGNORED,
            meaning=MEANING,
        )
    ),
    *_adopted(COMPARISONS.formats),  # before the next two: LLaMA-Factory's comparisons have `conversations` too
    *map(
        _with_columns,
        (
            Format(
                "messages",
                example={"messages": [HI]},
                needs={"messages": TURNS},
                convert=messages,
                uses=SYSTEM,
                harmless=IGNORED | {"prompt", "parallel_tool_calls"},
                meaning=MEANING,
            ),
            Format(
                "sharegpt",
                example={"conversations": [{"from": "human", "value": "Hi"}]},
                needs={"conversations|conversation": TURNS},
                convert=messages,
                uses=SYSTEM,
                harmless=IGNORED | {"turn", "openai_moderation", "redacted"},
                meaning=MEANING,
            ),
            *_adopted(INSTRUCTIONS.formats),
            Format(
                "openai",
                example={"input": {"messages": [HI]}},
                needs={"input": OBJECT},
                when=(lambda r: TURNS.holds(r["input"].get("messages")), "input{messages[]}"),
                convert=lambda row: [_unanswered(row, row.turns(row.fields["input"]["messages"], "input.messages"))],
                meaning=MEANING,
            ),
            Format(
                "prompt",
                example={"prompt": "Hi"},
                needs={"prompt": PROMPT},
                convert=lambda row: [_unanswered(row, prompt_field(row, "prompt"))],
                uses=SYSTEM,
                harmless=IGNORED,
                meaning=MEANING,
            ),
            Format(
                "instruction",
                example={"instruction": "Hi", "input": "you"},
                needs={"instruction": TEXT},
                convert=lambda row: [Prompt(messages=instruction_prompt(row), source=row.source)],
                uses=INSTRUCTION,
                harmless=IGNORED,
                meaning=MEANING,
            ),
            Format(
                "question",
                example={"question": "Hi"},
                needs={"question": TEXT},
                convert=lambda row: [_asked(row, row.text("question"))],
                uses=SYSTEM,
                harmless=IGNORED,
                meaning=MEANING,
            ),
            Format(
                "text",
                example={"text": "Hi"},
                needs={"text|content": TEXT},
                convert=lambda row: [_asked(row, row.text(first_present(row, "text", "content")))],
                harmless=IGNORED,
                meaning=MEANING,
            ),
        ),
    ),
)
