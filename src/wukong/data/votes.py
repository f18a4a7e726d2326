"""Thumbs up and down for single answers, as in KTO data sets and LLaMA-Factory's `kto_tag` -> Vote records."""

from __future__ import annotations

from typing import Any

from wukong.data.fields import (
    INSTRUCTION,
    SYSTEM,
    answer_field,
    first_present,
    instruction_prompt,
    joined_turns,
    prompt_field,
    system_turn,
    user,
    voted,
)
from wukong.data.formats import (
    ANSWER,
    MEDIA,
    PROMPT,
    TEXT,
    TOOLS,
    TURNS,
    VERDICT,
    VERDICTS,
    Fields,
    Format,
    Found,
    verdict_in,
)
from wukong.data.row import Row
from wukong.records import Preference


def kto(row: Row) -> Found[Preference]:
    """KTO's unpaired votes: a prompt, an answer, and whether it was good."""
    before, response = answer_field(row, first_present(row, "completion", "response"))
    return voted(row, joined_turns(prompt_field(row, "prompt"), before), response)


def kto_messages(row: Row) -> Found[Preference]:
    """The vote is on the last answer."""
    prompt, response = answer_field(row, first_present(row, "messages", "conversations", "conversation"))
    return voted(row, prompt if any(m.role == "system" for m in prompt) else [*system_turn(row), *prompt], response)


def kto_alpaca(row: Row) -> Found[Preference]:
    return voted(row, instruction_prompt(row), row.text(first_present(row, "output", "response")))


def kto_question(row: Row) -> Found[Preference]:
    return voted(
        row,
        [*system_turn(row), user(row.text(first_present(row, "question", "input")))],
        row.text(first_present(row, "answer", "output")),
    )


NAMES_OF_VERDICTS = "|".join(VERDICTS)


def _is_judged(r: Fields) -> bool:
    """Whether every verdict field holds a verdict or nothing, and at least one holds one; `label` may also name a
    topic."""
    return all(
        verdict_in(r, name) is not None or neutral(r[name]) for name, neutral in VERDICTS.items() if name in r
    ) and any(verdict_in(r, name) is not None for name in VERDICTS)


def _votes(
    name: str, example: Fields, needs: dict[str, Any], convert: Any, uses: frozenset[str] = SYSTEM
) -> Format[Preference]:
    return Format(
        name,
        example=example,
        needs={**needs, NAMES_OF_VERDICTS: VERDICT},
        when=(_is_judged, "a verdict of true or false"),
        convert=convert,
        uses=frozenset({*VERDICTS, "annotator", *uses}),
        meaning=MEDIA | TOOLS,
        yields="vote",
    )


HI: dict[str, Any] = {"role": "user", "content": "Hi"}
HELLO: dict[str, Any] = {"role": "assistant", "content": "Hello!"}

VOTES: list[Format[Preference]] = [
    _votes(
        "kto",
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": PROMPT, "completion|response": ANSWER},
        kto,
    ),
    _votes(
        "kto",
        {"messages": [HI, HELLO], "label": True},
        {"messages|conversations|conversation": TURNS},
        kto_messages,
    ),
    _votes(
        "kto",
        {"instruction": "Hi", "input": "", "output": "Hello!", "kto_tag": True},
        {"instruction": TEXT, "output|response": TEXT},
        kto_alpaca,
        INSTRUCTION,
    ),
    _votes(
        "kto",
        {"question": "Hi", "answer": "Hello!", "label": True},
        {"question|input": TEXT, "answer|output": TEXT},
        kto_question,
    ),
]
