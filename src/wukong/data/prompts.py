"""Prompts, from lists of questions, from any format of instructions or comparisons, or from the first words of texts.

Formats are tried from top to bottom. Those of the other two readers stand here too, reduced to their prompts,
so that `--format alpaca` means the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeAlias

from pydantic import Field

from wukong.data.comparisons import (
    COMPARISONS,
    instruction_prompt,
    is_messages,
    is_task,
    own_record,
    prompt_field,
    task_prompt,
)
from wukong.data.instructions import INSTRUCTIONS
from wukong.data.sources import DataOptions, Row, Sources
from wukong.data.summary import Dropped, Format, Read, Registry
from wukong.errors import DataError
from wukong.records import Conversation, Message, Messages, Prompt, Response

Found: TypeAlias = Iterable[Prompt | Dropped | DataError]


class PromptOptions(DataOptions):
    """How prompts are read."""

    first_words: int = Field(default=0, ge=0)
    """Take only this many words of each text, to be continued by the model; 0 takes the whole."""


def load_prompts(src: Sources, options: DataOptions | None = None) -> Read[Prompt]:
    """Prompts from one or more sources, each once, with the account of what was left out.

    Raises DataError for a record that cannot be used (file, line, field), UsageError for a missing source.
    """
    options = options or PromptOptions()
    words = options.first_words if isinstance(options, PromptOptions) else 0
    return PROMPTS.read(src, options, _beginning(words) if words else None)


def read_prompts(
    src: Sources, *, format: str = "auto", encoding: str = "utf-8", skip_bad: int = 0, first_words: int = 0
) -> list[Prompt]:
    """As `load_prompts`, without the account.

    Args:
        src: a path, glob, directory or Hugging Face data set id, or a list of them.
        format: a format's name; "auto" detects it.
        encoding: of text files.
        skip_bad: how many unusable records may be left out before reading stops with an error.
        first_words: take only this many words of each text, to be continued by the model; 0 takes the whole.
    """
    options = PromptOptions(format=format, encoding=encoding, skip_bad=skip_bad, first_words=first_words)
    return load_prompts(src, options).records


def _beginning(words: int) -> Callable[[Row, Prompt], Prompt]:
    pattern = re.compile(rf"\s*(\S+(?:\s+\S+){{0,{words - 1}}})")

    def cut(row: Row, prompt: Prompt) -> Prompt:
        """The prompt with its last message cut to the first words, spaces between them kept as they are."""
        *before, last = prompt.messages
        match = pattern.match(last.content)
        if match is None or match[1] == last.content:
            return prompt
        if match.end() < len(last.content.rstrip()):
            row.cuts.append(f"to the first {words} words")
        return Prompt(messages=[*before, Message(role=last.role, content=match[1])], source=prompt.source)

    return cut


def _useless(record: Prompt) -> str | None:
    return None if record.messages[-1].content.strip() else "empty prompt"


def _key(record: Prompt) -> Hashable:
    return tuple((m.role, m.content) for m in record.messages)


PROMPTS: Registry[Prompt] = Registry("prompts", _useless, _key)


def _waiting(row: Row, turns: Messages) -> Prompt | Dropped:
    """A conversation up to the point where the assistant is to answer; a last answer is taken off."""
    turns = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    return Prompt(messages=turns, source=row.source) if turns else Dropped("no prompt")


def _prompts_of(form: Format[Any]) -> Callable[[Row], Found]:
    """A converter to demonstrations or comparisons, as one to prompts; a record gives each of its prompts once."""

    def convert(row: Row) -> Found:
        given: list[Messages] = []
        for record in form.convert(row):
            if isinstance(record, Dropped | DataError):
                yield record
                continue
            turns = record.messages[:-1] if isinstance(record, Conversation) else record.prompt
            if turns not in given:
                given.append(turns)
                yield _waiting(row, turns)

    return convert


def _is_own(r: dict[str, Any]) -> bool:
    """Other sets have id, messages and source too, but end them with an answer."""
    if "prompt_id" in r:
        return set(r) <= set(Response.model_fields)
    turns = r.get("messages")
    ours = set(r) <= set(Prompt.model_fields) and "id" in r
    return ours and isinstance(turns, list) and is_messages(turns) and turns[-1].get("role") != "assistant"


@PROMPTS.format("wukong", "our own Prompt and Response records", _is_own)
def own(row: Row) -> Found:
    if "prompt_id" not in row.fields:
        return [own_record(row, Prompt)]
    response = own_record(row, Response)
    return [Prompt(messages=response.messages, source=response.source, id=response.prompt_id)]


@PROMPTS.format("labelstudio", "data{prompt}: tasks, annotated or not", is_task)
def labelstudio(row: Row) -> Found:
    return [_waiting(row, task_prompt(row))]


@PROMPTS.format("turns", "turns[…]: the first turn (MT-Bench, Vicuna)", lambda r: isinstance(r.get("turns"), list))
def turns(row: Row) -> Found:
    first = row.fields["turns"][:1]
    if not first:
        raise row.error("is an empty list", "turns")
    return [_asked(row, row.string(first[0], "turns[0]"))]


def _adopt(forms: Iterable[Format[Any]]) -> None:
    taken = {form.name for form in PROMPTS.formats} | {"preference"}
    PROMPTS.formats.extend(
        Format(form.name, form.shape, form.detect, _prompts_of(form)) for form in forms if form.name not in taken
    )


_adopt(COMPARISONS.formats)  # before the next two: LLaMA-Factory's comparisons have `conversations` as well


@PROMPTS.format(
    "messages", "messages[{role, content}], with or without a last answer", lambda r: is_messages(r.get("messages"))
)
def messages(row: Row) -> Found:
    return [_waiting(row, prompt_field(row, "messages"))]


@PROMPTS.format(
    "sharegpt",
    "conversations[{from, value}], with or without a last answer",
    lambda r: is_messages(r.get("conversations")),
)
def sharegpt(row: Row) -> Found:
    return [_waiting(row, prompt_field(row, "conversations"))]


_adopt(INSTRUCTIONS.formats)


@PROMPTS.format("prompt", "prompt (text or messages)", lambda r: "prompt" in r)
def prompt(row: Row) -> Found:
    return [Prompt(messages=prompt_field(row, "prompt"), source=row.source)]


@PROMPTS.format("instruction", "instruction, input?", lambda r: "instruction" in r)
def instruction(row: Row) -> Found:
    return [Prompt(messages=instruction_prompt(row), source=row.source)]


@PROMPTS.format("question", "question", lambda r: "question" in r)
def question(row: Row) -> Found:
    return [_asked(row, row.text("question"))]


@PROMPTS.format(
    "text", "text or content; or a text file, one prompt a line", lambda r: bool({"text", "content"} & set(r))
)
def text(row: Row) -> Found:
    return [_asked(row, row.text("text", "content"))]


def _asked(row: Row, content: str) -> Prompt:
    return Prompt(messages=[Message(role="user", content=content)], source=row.source)
