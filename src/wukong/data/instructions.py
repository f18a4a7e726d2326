"""Demonstrations for instruction tuning, from the public formats -> Conversation records.

To add a format, add a `Format` to the list at the end. Formats are tried in order, so put specific ones before general
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

from wukong.data.comparisons import COMPARISONS
from wukong.data.fields import (
    INSTRUCTION,
    SYSTEM,
    answer_field,
    first_present,
    instruction_prompt,
    is_learned,
    is_own_messages,
    joined,
    joined_turns,
    own_record,
    prompt_field,
    system_turn,
    user,
)
from wukong.data.formats import (
    ANSWER,
    LIST,
    MEDIA,
    PROMPT,
    TEXT,
    TOOLS,
    TURNS,
    VERDICTS,
    Fields,
    Format,
    Found,
)
from wukong.data.registry import Registry
from wukong.data.row import Row, is_missing
from wukong.data.sources import Columns, DataOptions, Sources
from wukong.data.summary import Dropped, Read
from wukong.errors import DataError
from wukong.records import Comparison, Conversation, Message, Messages, Preference, Ranking, Vote


def load_instructions(src: Sources, options: DataOptions | None = None) -> Read[Conversation]:
    """Demonstrations from one or more sources, with a summary of what was left out.

    Raises DataError for a record that cannot be used (file, line, field), UsageError for a missing source.
    """
    return INSTRUCTIONS.read(src, options or DataOptions())


def read_instructions(
    src: Sources,
    *,
    format: str = "auto",
    columns: Columns = (),
    question: str = "",
    encoding: str = "utf-8",
    skip_bad: int = 0,
) -> list[Conversation]:
    """As `load_instructions`, without the summary. Each conversation ends with an answer of the assistant.

    Args:
        src: a path, glob, directory or Hugging Face data set id, or a list of them.
        format: a format's name; "auto" detects it, record by record.
        columns: other names for fields: {"prompt": "question"}, or ["prompt=question"].
        question: the question, or scored aspect, to use if comparisons have several.
        encoding: of text files.
        skip_bad: how many unusable records may be left out before reading stops with an error.
    """
    options = DataOptions(format=format, columns=columns, question=question, encoding=encoding, skip_bad=skip_bad)  # type: ignore[arg-type]
    return load_instructions(src, options).records


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


def own(row: Row) -> Found[Conversation]:
    return [own_record(row, Conversation)]


def _is_own(r: Fields) -> bool:
    ours = set(r) == {"messages", "source"} and isinstance(r["source"], str)
    return ours and bool(r["messages"]) and is_own_messages(r["messages"])


def self_instruct(row: Row) -> Found[Conversation]:
    for i, instance in enumerate(row.fields["instances"]):
        name, extra = f"instances[{i}]", instance.get("input")
        try:
            said = "" if is_missing(extra) else row.string(extra, f"{name}.input")
            answer = row.string(instance.get("output"), f"{name}.output")
        except DataError as error:
            yield error
            continue
        yield _answered(row, [user(joined(row.text("instruction"), said))], answer)


def alpaca(row: Row) -> Found[Conversation]:
    return [_answered(row, instruction_prompt(row), row.text("output"))]


def dolly(row: Row) -> Found[Conversation]:
    return [_answered(row, instruction_prompt(row), row.text("response"))]


def _preferred(form: Format[Preference]) -> Callable[[Row], Found[Conversation]]:
    """The answers that people preferred, as demonstrations."""

    def convert(row: Row) -> Found[Conversation]:
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

    return convert


def messages(row: Row) -> Found[Conversation]:
    """A chat log, cut to the part to train on: from the first user turn to the last answer that counts."""
    name = first_present(row, "messages", "conversations", "conversation")
    raw, turns = row.fields[name], prompt_field(row, name)
    learned = [True] * (len(turns) - len(raw)) + [is_learned(turn) for turn in raw]
    start = next((i for i, m in enumerate(turns) if m.role != "assistant"), len(turns))
    answers = [i for i, m in enumerate(turns) if m.role == "assistant" and i >= start]
    counted = [i for i in answers if learned[i]]
    if not answers:
        return [Dropped("no answer")]
    if not counted:
        return [Dropped("answers of weight 0")]
    end = counted[-1] + 1
    if any(i < end and not learned[i] for i in answers):
        at = next(i for i in answers if not learned[i]) - (len(turns) - len(raw))
        raise row.error("is not to be trained on, but a later answer is", f"{name}[{at}]")
    if start:
        row.notes.append("answer before the first question removed")
    if end < len(turns):
        row.notes.append("answer of weight 0 removed" if answers[-1] >= end else "last turn without an answer removed")
    return [Conversation(messages=turns[start:end], source=row.source)]


def prompt_completion(row: Row) -> Found[Conversation]:
    before, answer = answer_field(row, first_present(row, "completion", "response"))
    return [_answered(row, joined_turns(prompt_field(row, "prompt"), before), answer)]


def question_answer(row: Row) -> Found[Conversation]:
    return [_answered(row, [*system_turn(row), user(row.text("question"))], row.text("answer"))]


def input_output(row: Row) -> Found[Conversation]:
    return [_answered(row, [*system_turn(row), user(row.text("input"))], row.text("output"))]


# A demonstration with a verdict is a vote, which is read as `preference`.
MEANING = VERDICTS | MEDIA | TOOLS
HI: dict[str, Any] = {"role": "user", "content": "Hi"}
HELLO: dict[str, Any] = {"role": "assistant", "content": "Hello!"}

INSTRUCTIONS.add(
    Format(
        "wukong",
        example={"messages": [HI, HELLO], "source": "mine"},
        needs={},
        when=(_is_own, "messages[{role, content}], source"),
        convert=own,
        uses=frozenset({"messages", "source"}),
    ),
    Format(
        "self-instruct",
        example={"instruction": "Double", "instances": [{"input": "2", "output": "4"}]},
        needs={"instruction": TEXT, "instances": LIST},
        when=(lambda r: all(isinstance(one, dict) for one in r["instances"]), "instances[{input, output}]"),
        convert=self_instruct,
        harmless=frozenset({"name", "is_classification", "motivation_app"}),
        meaning=MEANING,
    ),
    Format(
        "alpaca",
        example={"instruction": "Double", "input": "2", "output": "4"},
        needs={"instruction": TEXT, "output": TEXT},
        convert=alpaca,
        uses=INSTRUCTION,
        harmless=frozenset({"text"}),
        meaning=MEANING,
    ),
    Format(
        "dolly",
        example={"instruction": "Double", "context": "2", "response": "4"},
        needs={"instruction": TEXT, "response": TEXT},
        convert=dolly,
        uses=INSTRUCTION,
        harmless=frozenset({"category"}),
        meaning=MEANING,
    ),
    # Before `messages`: votes have messages too.
    *(
        replace(form, name="preference", convert=_preferred(form), prompt=None, yields="instruction")  # type: ignore[arg-type]
        for form in COMPARISONS.formats
    ),
    Format(
        "messages",
        example={"messages": [HI, HELLO]},
        needs={"messages": TURNS},
        convert=messages,
        uses=SYSTEM,
        harmless=frozenset({"prompt", "parallel_tool_calls"}),
        meaning=MEANING,
    ),
    Format(
        "sharegpt",
        example={"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        needs={"conversations|conversation": TURNS},
        convert=messages,
        uses=SYSTEM,
        harmless=frozenset({"turn", "openai_moderation", "redacted"}),
        meaning=MEANING,
    ),
    Format(
        "prompt-completion",
        example={"prompt": "Hi", "completion": "Hello!"},
        needs={"prompt": PROMPT, "completion|response": ANSWER},
        convert=prompt_completion,
        uses=SYSTEM,
        meaning=MEANING,
    ),
    Format(
        "question-answer",
        example={"question": "2 x 2?", "answer": "4"},
        needs={"question": TEXT, "answer": TEXT},
        convert=question_answer,
        uses=SYSTEM,
        meaning=MEANING,
    ),
    Format(
        "input-output",
        example={"input": "2 x 2?", "output": "4"},
        needs={"input": TEXT, "output": TEXT},
        convert=input_output,
        uses=SYSTEM,
        meaning=MEANING,
    ),
)
