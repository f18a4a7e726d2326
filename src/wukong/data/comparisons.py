"""Preference data in public formats -> Comparison, Ranking and Vote records.

To add a format, add a `Format` to the list it belongs to (here, votes.py, rankings.py, battles.py, argilla.py). Formats
are tried in order, so put specific ones before general ones.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

from wukong.data.argilla import ARGILLA
from wukong.data.battles import BATTLES
from wukong.data.fields import (
    ANSWERS_NOT_PLACES,
    INSTRUCTION,
    JUDGED,
    PROMPT_NAMES,
    SCORED,
    SYSTEM,
    answer_field,
    are_answers,
    compared,
    first_present,
    instruction_prompt,
    is_own_messages,
    is_pair,
    is_transcript,
    joined_turns,
    own_record,
    pair,
    prompt_field,
    system_turn,
    transcript,
    user,
)
from wukong.data.formats import (
    ANSWER,
    MEDIA,
    OBJECT,
    PROMPT,
    TEXT,
    TOOLS,
    TURNS,
    Fields,
    Format,
    Found,
    verdict_of,
)
from wukong.data.labelstudio import LABELSTUDIO, is_task, labelstudio, task_prompt
from wukong.data.rankings import RANKINGS
from wukong.data.registry import Registry
from wukong.data.row import Row, is_empty, is_text, is_turns
from wukong.data.sources import Columns, DataOptions, Sources
from wukong.data.summary import Dropped, Read
from wukong.data.votes import VOTES
from wukong.records import Comparison, Preference, Ranking, Vote

__all__ = ["COMPARISONS", "is_task", "labelstudio", "load_comparisons", "own_record", "read_comparisons", "task_prompt"]


def load_comparisons(src: Sources, options: DataOptions | None = None) -> Read[Preference]:
    """Comparisons, rankings and votes from one or more sources, with a summary of what was left out.

    Raises DataError for a record that cannot be used (file, line, field), UsageError for a missing source.
    """
    return COMPARISONS.read(src, options or DataOptions())


def read_comparisons(
    src: Sources,
    *,
    format: str = "auto",
    columns: Columns = (),
    question: str = "",
    encoding: str = "utf-8",
    skip_bad: int = 0,
) -> list[Preference]:
    """As `load_comparisons`, without the summary: a list of Comparison, Ranking and Vote records.

    Args:
        src: a path, glob, directory or Hugging Face data set id, or a list of them.
        format: a format's name; "auto" detects it, record by record.
        columns: other names for fields: {"prompt": "question"}, or ["prompt=question"].
        question: the question, or scored aspect, to use if records have several.
        encoding: of text files.
        skip_bad: how many unusable records may be left out before reading stops with an error.
    """
    options = DataOptions(format=format, columns=columns, question=question, encoding=encoding, skip_bad=skip_bad)  # type: ignore[arg-type]
    return load_comparisons(src, options).records


def _useless(record: Preference) -> str | None:
    answers = record.responses if isinstance(record, Ranking) else answers_of(record)
    if not all(answer.strip() for answer in answers):
        return "empty answer"
    if isinstance(record, Comparison) and record.chosen.strip() == record.rejected.strip():
        return "both answers are the same"
    if isinstance(record, Ranking) and len(record.groups) < 2:
        return "all answers are tied"
    return None


def answers_of(record: Comparison | Vote) -> tuple[str, ...]:
    return (record.response,) if isinstance(record, Vote) else (record.chosen, record.rejected)


def _key(record: Preference) -> Hashable:
    """Judgments of one pair by two people are two records; one person's judgment given twice is one."""
    prompt = tuple((m.role, m.content) for m in record.prompt)
    match record:
        case Comparison():
            return prompt, record.chosen, record.rejected, record.tie, record.annotator
        case Ranking():
            return prompt, tuple(record.responses), str(record.groups), record.annotator
        case Vote():
            return prompt, record.response, record.vote, record.annotator


COMPARISONS: Registry[Preference] = Registry("comparisons", _useless, _key)

# --- our own records ----------------------------------------------------------------------------------------------

OWN: dict[str, type[Comparison] | type[Ranking] | type[Vote]] = {
    "groups": Ranking,
    "vote": Vote,
    "chosen": Comparison,
}


def _own_kind(r: Fields) -> type[Comparison] | type[Ranking] | type[Vote] | None:
    """Which of our record types this is. Other formats share field names with ours, but with values of other types."""
    kind = next((kind for name, kind in OWN.items() if name in r), None)
    if kind is None or not set(r) <= set(kind.model_fields) or not is_own_messages(r.get("prompt")):
        return None
    texts = {Comparison: ("chosen", "rejected"), Vote: ("response",), Ranking: ()}[kind]
    return kind if all(isinstance(r.get(name), str) for name in texts) else None


def own(row: Row) -> Found[Preference]:
    return [own_record(row, _own_kind(row.fields) or Comparison)]


# --- pairs ----------------------------------------------------------------------------------------------------------

# Fields that could say that `chosen` was not the better one, or that a record holds more than text.
PAIR_MEANING = {
    **MEDIA,
    **TOOLS,
    **dict.fromkeys(("winner", "preference", "better_response_id"), is_empty),
    "label": lambda value: is_empty(value) or verdict_of(value) is None,
    "kto_tag": is_empty,
}
PAIR_USES = frozenset({*SYSTEM, *JUDGED, *SCORED, "chosen", "rejected"})


def openai(row: Row) -> Found[Preference]:
    """OpenAI's preference fine-tuning: the outputs are lists of one message."""
    inner = Row(row.file, row.line, row.fields["input"], notes=row.notes, unused=row.unused)
    for name in TOOLS:
        if not is_empty(inner.fields.get(name)):
            raise row.error("the model may call tools; only text is supported", f"input.{name}")
    prompt = inner.turns(inner.fields["messages"], "input.messages")
    (before, chosen), (other, rejected) = (answer_field(row, f"{side}preferred_output") for side in ("", "non_"))
    if before or other:
        return (
            [Dropped("the answers belong to different prompts")]
            if before != other
            else [compared(row, joined_turns(prompt, before), chosen, rejected)]
        )
    return [compared(row, prompt, chosen, rejected)]


def sharegpt_preference(row: Row) -> Found[Preference]:
    """LLaMA-Factory's (answers as objects) and MedicalGPT's (answers as text)."""
    return pair(row, prompt_field(row, first_present(row, "conversations", "messages")))


def alpaca_preference(row: Row) -> Found[Preference]:
    return pair(row, instruction_prompt(row))


def trl(row: Row) -> Found[Preference]:
    return pair(row, prompt_field(row, first_present(row, "prompt", "question", "input", "query")))


def hh(row: Row) -> Found[Preference]:
    chosen, rejected = transcript(row, "chosen"), transcript(row, "rejected")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        return [Dropped("the transcript does not end with the assistant's turn")]
    if chosen[:-1] != rejected[:-1]:
        return [Dropped("the answers belong to different prompts")]
    return [compared(row, chosen[:-1], chosen[-1].content, rejected[-1].content)]


def trl_implicit(row: Row) -> Found[Preference]:
    if isinstance(row.fields["chosen"], list):
        return pair(row, system_turn(row))
    chosen, rejected = row.text("chosen"), row.text("rejected")
    shared = _shared_words(chosen, rejected)
    if not shared.strip():
        return [Dropped("the answers share no prompt")]
    first, second = (text[len(shared) :].strip() for text in (chosen, rejected))
    return [compared(row, [user(shared.strip())], first, second)]


def _shared_words(first: str, second: str) -> str:
    """The longest common prefix that ends at a word boundary: "green" and "grey" share nothing."""
    length = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[: max((m.end() for m in re.finditer(r"\s+", first[:length])), default=0)]


def _no_prompt(r: Fields) -> bool:
    return not PROMPT_NAMES & set(r)


def _is_hh(r: Fields) -> bool:
    return _no_prompt(r) and (is_transcript(r["chosen"]) or is_transcript(r["rejected"]))


def _is_implicit(r: Fields) -> bool:
    same = (is_text(r["chosen"]) and is_text(r["rejected"])) or (is_turns(r["chosen"]) and is_turns(r["rejected"]))
    return _no_prompt(r) and same and is_pair(r)


HI = {"role": "user", "content": "Hi"}
HELLO: dict[str, Any] = {"role": "assistant", "content": "Hello!"}
WHAT: dict[str, Any] = {"role": "assistant", "content": "What?"}

COMPARISONS.add(
    Format(
        "wukong",
        example={"prompt": [HI], "chosen": "Hello!", "rejected": "What?"},
        needs={},
        when=(lambda r: _own_kind(r) is not None, "the fields of Comparison, Ranking or Vote"),
        convert=own,
        uses=frozenset(name for kind in OWN.values() for name in kind.model_fields),
    ),
    LABELSTUDIO,
    *ARGILLA,
    *RANKINGS,
    *BATTLES,
    Format(
        "openai-preference",
        example={"input": {"messages": [HI]}, "preferred_output": [HELLO], "non_preferred_output": [WHAT]},
        needs={
            "input": OBJECT,
            "preferred_output": ANSWER,
            "non_preferred_output": ANSWER,
        },
        when=(lambda r: is_turns(r["input"].get("messages")), "input{messages[]}"),
        convert=openai,
        uses=JUDGED,
        meaning=MEDIA,
        yields="comparison",
    ),
    *VOTES,
    Format(
        "sharegpt-preference",
        example={
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": "What?",
        },
        needs={"conversations|messages": TURNS, "chosen": ANSWER, "rejected": ANSWER},
        # UltraFeedback's `messages` repeat the prompt and the chosen answer
        when=(
            lambda r: "prompt" not in r and are_answers(r),
            f"no prompt besides the conversation; {ANSWERS_NOT_PLACES}",
        ),
        convert=sharegpt_preference,
        uses=PAIR_USES,
        meaning=PAIR_MEANING,
        yields="comparison",
    ),
    Format(
        "alpaca-preference",
        example={"instruction": "Hi", "input": "", "chosen": "Hello!", "rejected": "What?"},
        needs={"instruction": TEXT, "chosen": ANSWER, "rejected": ANSWER},
        when=(are_answers, ANSWERS_NOT_PLACES),
        convert=alpaca_preference,
        uses=PAIR_USES | INSTRUCTION,
        meaning=PAIR_MEANING,
        yields="comparison",
    ),
    Format(
        "trl",
        example={"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        needs={"prompt|question|input|query": PROMPT, "chosen": ANSWER, "rejected": ANSWER},
        when=(are_answers, ANSWERS_NOT_PLACES),
        convert=trl,
        uses=PAIR_USES,
        harmless=frozenset({"messages"}),
        meaning=PAIR_MEANING,
        yields="comparison",
    ),
    Format(
        "hh",
        example={"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
        needs={"chosen": TEXT, "rejected": TEXT},
        when=(_is_hh, "chosen, rejected: complete Human/Assistant transcripts"),
        convert=hh,
        uses=PAIR_USES - SYSTEM,
        meaning=PAIR_MEANING,
        yields="comparison",
    ),
    Format(
        "trl-implicit",
        example={"chosen": "Hi Hello!", "rejected": "Hi What?"},
        needs={"chosen": PROMPT, "rejected": PROMPT},
        when=(_is_implicit, "chosen, rejected: texts or messages with a common beginning, and no prompt"),
        convert=trl_implicit,
        uses=PAIR_USES,
        meaning=PAIR_MEANING,
        yields="comparison",
    ),
)
