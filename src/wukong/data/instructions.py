"""Demonstrations for instruction tuning, from the public formats -> Conversation records.

To add a format: a function with `@INSTRUCTIONS.format(name, fields, detect)`. Formats are tried from top to
bottom, so a more specific one stands above a more general one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeAlias

from wukong.data.comparisons import (
    COMPARISONS,
    answer_field,
    instruction_prompt,
    is_messages,
    joined,
    own_record,
    prompt_field,
    system_turn,
)
from wukong.data.sources import DataOptions, Row, Sources
from wukong.data.summary import Dropped, Read, Registry
from wukong.errors import DataError
from wukong.records import Comparison, Conversation, Message, Messages, Ranking, Vote

Found: TypeAlias = Iterable[Conversation | Dropped | DataError]


def load_instructions(src: Sources, options: DataOptions | None = None) -> Read[Conversation]:
    """Demonstrations from one or more sources, with the account of what was left out.

    Raises DataError for a record that cannot be used (file, line, field), UsageError for a missing source.
    """
    return INSTRUCTIONS.read(src, options or DataOptions())


def read_instructions(
    src: Sources, *, format: str = "auto", encoding: str = "utf-8", skip_bad: int = 0
) -> list[Conversation]:
    """As `load_instructions`, without the account. Each conversation ends with an answer of the assistant.

    Args:
        src: a path, glob, directory or Hugging Face data set id, or a list of them.
        format: a format's name; "auto" detects it.
        encoding: of text files.
        skip_bad: how many unusable records may be left out before reading stops with an error.
    """
    return load_instructions(src, DataOptions(format=format, encoding=encoding, skip_bad=skip_bad)).records


def _useless(record: Conversation) -> str | None:
    if not any(m.role == "assistant" for m in record.messages):
        return "no answer"
    if not all(m.content.strip() for m in record.messages if m.role == "assistant"):
        return "empty answer"
    if not any(m.content.strip() for m in record.messages if m.role == "user"):
        return "empty prompt"
    return None


def _key(record: Conversation) -> Hashable:
    return tuple((m.role, m.content) for m in record.messages)


INSTRUCTIONS: Registry[Conversation] = Registry("instructions", _useless, _key)


def _answered(row: Row, prompt: Messages, answer: str) -> Conversation:
    return Conversation(messages=[*prompt, Message(role="assistant", content=answer)], source=row.source)


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def _conversation(row: Row, turns: Messages) -> Found:
    """A chat log, cut to what can be learned from it: from the first user turn to the last answer."""
    start = next((i for i, m in enumerate(turns) if m.role != "assistant"), len(turns))
    end = next((i for i in range(len(turns), 0, -1) if turns[i - 1].role == "assistant"), 0)
    if start >= end:
        yield Dropped("no answer")
        return
    if start:
        row.notes.append("answer before the first question removed")
    if end < len(turns):
        row.notes.append("last turn without an answer removed")
    yield Conversation(messages=turns[start:end], source=row.source)


@INSTRUCTIONS.format(
    "wukong",
    "our own Conversation records",
    lambda r: set(r) <= {"messages", "source"} and "source" in r and is_messages(r.get("messages")),
)
def own(row: Row) -> Found:
    return [own_record(row, Conversation)]


@INSTRUCTIONS.format(
    "self-instruct", "instruction, instances[{input, output}]", lambda r: "instruction" in r and "instances" in r
)
def self_instruct(row: Row) -> Found:
    for i, instance in enumerate(row.objects(row.fields["instances"], "instances")):
        extra, answer = instance.get("input") or "", row.string(instance.get("output"), f"instances[{i}].output")
        yield _answered(
            row, [_user(joined(row.text("instruction"), row.string(extra, f"instances[{i}].input")))], answer
        )


@INSTRUCTIONS.format("alpaca", "instruction, input?, output", lambda r: "instruction" in r and "output" in r)
def alpaca(row: Row) -> Found:
    return [_answered(row, instruction_prompt(row), row.text("output"))]


@INSTRUCTIONS.format(
    "dolly",
    "instruction, context? or input?, response (Dolly, GPTeacher)",
    lambda r: "instruction" in r and "response" in r,
)
def dolly(row: Row) -> Found:
    return [_answered(row, instruction_prompt(row), row.text("response"))]


@INSTRUCTIONS.format(
    "preference",
    "any format of comparisons: the preferred answer",
    lambda r: COMPARISONS.recognise(r) is not None,
)
def preference(row: Row) -> Found:
    """The answers that people preferred, as demonstrations. Stands above `messages`: votes have messages too."""
    form = COMPARISONS.recognise(row.fields)
    if form is None:
        raise row.error(f"no known format of comparisons has the fields {', '.join(row.fields)}")
    for record in form.convert(row):
        match record:
            case Dropped() | DataError():
                yield record
            case Comparison(tie=True):
                yield Dropped("tie: no answer was preferred")
            case Comparison():
                yield _answered(row, record.prompt, record.chosen)
            case Ranking():
                yield _answered(row, record.prompt, record.responses[record.groups[0][0]])
            case Vote(vote=1):
                yield _answered(row, record.prompt, record.response)
            case Vote():
                yield Dropped("answer that was voted down")


@INSTRUCTIONS.format("messages", "messages[{role, content}]", lambda r: is_messages(r.get("messages")))
def messages(row: Row) -> Found:
    return _conversation(row, prompt_field(row, "messages"))


@INSTRUCTIONS.format("sharegpt", "conversations[{from, value}]", lambda r: is_messages(r.get("conversations")))
def sharegpt(row: Row) -> Found:
    return _conversation(row, prompt_field(row, "conversations"))


@INSTRUCTIONS.format(
    "prompt-completion",
    "prompt, completion or response (text or messages)",
    lambda r: "prompt" in r and bool({"completion", "response"} & set(r)),
)
def prompt_completion(row: Row) -> Found:
    before, answer = answer_field(row, "completion" if "completion" in row.fields else "response")
    return [_answered(row, [*prompt_field(row, "prompt"), *before], answer)]


@INSTRUCTIONS.format("question-answer", "question, answer", lambda r: "question" in r and "answer" in r)
def question_answer(row: Row) -> Found:
    return [_answered(row, [*system_turn(row), _user(row.text("question"))], row.text("answer"))]
