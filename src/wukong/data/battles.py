"""Pairs of answers with a verdict: which of the two was better, by label, score, votes or a named winner."""

from __future__ import annotations

import contextlib

from wukong import foreign_json
from wukong.data.fields import (
    INSTRUCTION,
    instruction_prompt,
    judged,
    number_or_none,
    prompt_field,
    system_turn,
    user,
    winner_of,
)
from wukong.data.formats import NUMBER, OBJECT, TEXT, TURNS, Check, Format, Found, names
from wukong.data.rankings import NOT_JUDGED
from wukong.data.row import Row, is_missing, is_text, is_turns, shown
from wukong.data.summary import Dropped
from wukong.records import Messages, Preference


def llmbar(row: Row) -> Found[Preference]:
    winner = winner_of(row, row.fields["label"], "label", (1, 2))
    return [judged(row, llmbar_prompt(row), row.text("output_1"), row.text("output_2"), winner)]


def llmbar_prompt(row: Row) -> Messages:
    return instruction_prompt(row) if "instruction" in row.fields else [user(row.text("input"))]


def alpaca_eval(row: Row) -> Found[Preference]:
    """AlpacaEval's and AlpacaFarm's `preference`: 1 the first, 2 the second, 1.5 (or 0) neither; values in between
    express the judge's confidence, and only their side is used."""
    value = row.fields["preference"]
    if is_missing(value) or value == "":
        return [NOT_JUDGED]
    number = number_or_none(value)
    if number is None or not (number == 0 or 1 <= number <= 2):
        raise row.error(f"is {shown(value)}, expected a number from 1 to 2", "preference")
    winner = 0 if number in (0, 1.5) else 1 if number < 1.5 else 2
    first, second = row.text("output_1"), row.text("output_2")
    return [judged(row, instruction_prompt(row), first, second, winner, annotator=row.optional("annotator"))]


def webgpt(row: Row) -> Found[Preference]:
    """WebGPT's comparisons: the answers' scores are negatives of each other; two zeros, or equal ones, are a tie."""
    first, second = (number_or_none(row.fields[name]) for name in ("score_0", "score_1"))
    if first is None or second is None:
        raise row.error("is not a score", "score_0" if first is None else "score_1")
    winner = 1 if first > second else 2 if first < second else 0
    return [judged(row, webgpt_prompt(row), row.text("answer_0"), row.text("answer_1"), winner)]


def webgpt_prompt(row: Row) -> Messages:
    return [user(row.string(row.fields["question"].get("full_text"), "question.full_text"))]


def shp(row: Row) -> Found[Preference]:
    """Stanford Human Preferences: of two comments on a post, `labels` is 1 if A has more votes, 0 if B has."""
    winner = 1 if winner_of(row, row.fields["labels"], "labels", (0, 1)) else 2
    return [judged(row, shp_prompt(row), row.text("human_ref_A"), row.text("human_ref_B"), winner)]


def shp_prompt(row: Row) -> Messages:
    return prompt_field(row, "history")


# ---------------------------------------------------------------------------------------------------------------- arena

ARENA = {"model_a": 1, "model_b": 2, "a": 1, "b": 2, "tie": 0, "tie (bothbad)": 0, "both_bad": 0, "bothbad": 0}
WINNER = Check(f"one of {', '.join(ARENA)}", lambda value: is_missing(value) or isinstance(value, str))


def _arena_winner(row: Row) -> int | None:
    """1, 2 or 0 (tie); None without a vote. Kaggle's files use three columns of 0 and 1."""
    if "winner" in row.fields:
        value = row.fields["winner"]
        if is_missing(value) or value == "":
            return None
        if str(value).strip().lower() not in ARENA:
            raise row.error(f"is {shown(value)}, expected one of {', '.join(ARENA)}", "winner")
        return ARENA[str(value).strip().lower()]
    said = [winner_of(row, row.fields.get(name), name, (0, 1)) for name in ("winner_model_a", "winner_model_b")]
    if sum(said) + winner_of(row, row.fields.get("winner_tie", 0), "winner_tie", (0, 1)) > 1:
        raise row.error("is 1, and so is another of the three", "winner_tie" if sum(said) < 2 else "winner_model_b")
    return 1 if said[0] else 2 if said[1] else 0


def arena(row: Row) -> Found[Preference]:
    """LMArena's battles: two full conversations and a winner. MT-Bench's judgments say which turn was judged."""
    winner = _arena_winner(row)
    if winner is None:
        return [NOT_JUDGED]
    sides = [_judged_turns(row, name) for name in ("conversation_a", "conversation_b")]
    for name, turns in zip(("conversation_a", "conversation_b"), sides, strict=True):
        if turns[-1].role != "assistant":
            raise row.error("does not end with the assistant's turn", name)
    (*prompt, first), (*other, second) = sides
    if prompt != other:
        return [Dropped("the answers belong to different prompts")]
    return [judged(row, prompt, first.content, second.content, winner, annotator=row.optional("judge"))]


def _judged_turns(row: Row, name: str) -> Messages:
    turns = row.turns(row.fields[name], name)
    turn = row.fields.get("turn")
    answers = [i for i, m in enumerate(turns) if m.role == "assistant"]
    if isinstance(turn, int) and not isinstance(turn, bool) and 0 < turn < len(answers):
        return turns[: answers[turn - 1] + 1]
    return turns


def arena_prompt(row: Row) -> Messages:
    turns = row.turns(row.fields["conversation_a"], "conversation_a")
    first = next((i for i, m in enumerate(turns) if m.role == "assistant"), len(turns))
    return turns[:first]


def arena_answers(row: Row) -> Found[Preference]:
    """Battles in Kaggle's layout: prompt and answers as text, or as JSON lists of one text per turn."""
    winner = _arena_winner(row)
    if winner is None:
        return [NOT_JUDGED]
    prompt = _texts(row, "prompt")
    first, second = _texts(row, "response_a"), _texts(row, "response_b")
    if not len(prompt) == len(first) == len(second) == 1:
        return [Dropped("the answers belong to different prompts")]  # their first answers differ
    return [judged(row, [*system_turn(row), user(prompt[0])], first[0], second[0], winner)]


def _texts(row: Row, name: str) -> list[str]:
    """One text per turn. Kaggle's set stores its lists as text in any file format."""
    value = row.fields[name]
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError):
            value = foreign_json.parse(value)[0]
    if isinstance(value, list) and value and not is_turns(value):
        return [row.string(text, f"{name}[{i}]") for i, text in enumerate(value)]
    if isinstance(value, list):
        return [turn.content for turn in row.turns(value, name)]
    return [row.text(name)]


ARENA_TEXT = Check("text or a list of texts", lambda v: is_text(v) or (isinstance(v, list) and bool(v)))
ARENA_HARMLESS = names(
    "model_a model_b turn anony tstamp openai_moderation toxic_chat_tag judge battle_mode "
    "evaluation_session_id evaluation_order full_conversation conv_metadata category_tag is_code"
)
HI = {"role": "user", "content": "Hi"}


def _said_by(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


BATTLES: list[Format[Preference]] = [
    Format(
        "llmbar",
        example={"input": "Hi", "output_1": "Hello!", "output_2": "What?", "label": 1},
        needs={"input|instruction": TEXT, "output_1": TEXT, "output_2": TEXT, "label": Check("1 or 2", is_text)},
        convert=llmbar,
        uses=INSTRUCTION | {"instruction"},
        prompt=llmbar_prompt,
        yields="comparison",
    ),
    Format(
        "alpaca-eval",
        example={"instruction": "Hi", "output_1": "Hello!", "output_2": "What?", "preference": 1},
        needs={
            "instruction": TEXT,
            "output_1": TEXT,
            "output_2": TEXT,
            "preference": Check("a number from 1 to 2", lambda v: is_missing(v) or is_text(v)),
        },
        convert=alpaca_eval,
        uses=INSTRUCTION | {"annotator"},
        harmless=names(
            "generator_1 generator_2 raw_preference raw_completion sample_id datasplit time_per_example "
            "price_per_example referenced_model referenced_models is_inverted is_noisy_label"
        ),
        prompt=instruction_prompt,
        yields="comparison",
    ),
    Format(
        "webgpt",
        example={
            "question": {"full_text": "Hi"},
            "answer_0": "Hello!",
            "answer_1": "What?",
            "score_0": 1,
            "score_1": -1,
        },
        needs={"question": OBJECT, "answer_0": TEXT, "answer_1": TEXT, "score_0": NUMBER, "score_1": NUMBER},
        when=(lambda r: is_text(r["question"].get("full_text")), "question{full_text}"),
        convert=webgpt,
        harmless=frozenset({"quotes_0", "quotes_1", "tokens_0", "tokens_1"}),
        prompt=webgpt_prompt,
        yields="comparison",
    ),
    Format(
        "shp",
        example={"history": "Hi", "human_ref_A": "Hello!", "human_ref_B": "What?", "labels": 1},
        needs={"history": TEXT, "human_ref_A": TEXT, "human_ref_B": TEXT, "labels": Check("0 or 1", is_text)},
        convert=shp,
        harmless=names(
            "post_id domain upvote_ratio c_root_id_A c_root_id_B created_at_utc_A created_at_utc_B score_A "
            "score_B seconds_difference score_ratio"
        ),
        prompt=shp_prompt,
        yields="comparison",
    ),
    Format(
        "arena",
        example={
            "conversation_a": [HI, _said_by("Hello!")],
            "conversation_b": [HI, _said_by("What?")],
            "winner": "model_a",
        },
        needs={
            "conversation_a": TURNS,
            "conversation_b": TURNS,
            "winner": WINNER,
        },
        convert=arena,
        harmless=ARENA_HARMLESS,
        prompt=arena_prompt,
        yields="comparison",
    ),
    Format(
        "arena",
        example={"prompt": "Hi", "response_a": "Hello!", "response_b": "What?", "winner": "model_a"},
        needs={
            "prompt": ARENA_TEXT,
            "response_a": ARENA_TEXT,
            "response_b": ARENA_TEXT,
            "winner|winner_model_a": Check("a winner", lambda v: is_missing(v) or is_text(v)),
        },
        convert=arena_answers,
        uses=frozenset({"winner_model_b", "winner_tie", "system"}),
        harmless=ARENA_HARMLESS,
        prompt=lambda row: [*system_turn(row), user(_texts(row, "prompt")[0])],
        yields="comparison",
    ),
]
