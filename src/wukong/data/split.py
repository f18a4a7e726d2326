"""Splits by prompt: a model must not be tested on prompts it was trained on.

A prompt's side depends only on the prompt and the seed, never on other records, so that adding data later moves nothing
to the other side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from wukong.errors import UsageError
from wukong.records import Conversation, Message, Preference, Prompt, Response, prompt_id

Splittable: TypeAlias = Prompt | Conversation | Response | Preference | str
T = TypeVar("T", bound=Splittable)


def prompt_key(messages: Sequence[Message]) -> str:
    """A key that ignores differences in white space: annotators judged such prompts as one."""
    return prompt_id([Message(role=m.role, content=" ".join(m.content.split())) for m in messages])


def group_of(record: Splittable) -> str:
    """The group that must not be split: the conversation's opening, up to the first user turn.

    Records with the same prompt share its opening, and so do the second and third answers of a dialogue, which would
    otherwise leak into each other's side. A plain text is its own group.
    """
    if isinstance(record, str):
        return hashlib.sha256(record.encode()).hexdigest()[:16]
    messages = record.messages if isinstance(record, Prompt | Conversation | Response) else record.prompt
    first = next((i for i, m in enumerate(messages) if m.role == "user"), len(messages) - 1)
    return prompt_id(messages[: first + 1])


def _position(record: Splittable, salt: str) -> float:
    """A number in [0, 1) that depends only on opening and salt, on every machine."""
    digest = hashlib.sha256(f"{salt}:{group_of(record)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_by_prompt(records: Sequence[T], fraction: float, seed: int = 0) -> tuple[list[T], list[T]]:
    """(train, heldout), in the given order, with about `fraction` of the prompts held out.

    Args:
        records: prompts, conversations, responses, preferences or plain texts.
        fraction: of prompts to hold out, from 0 to 1. With few prompts the actual fraction varies and may be 0.
        seed: selects the split.
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"the fraction to hold out is {fraction}; it must be between 0 and 1")
    heldout = [_position(record, f"heldout:{seed}") < fraction for record in records]
    return (
        [record for record, held in zip(records, heldout, strict=True) if not held],
        [record for record, held in zip(records, heldout, strict=True) if held],
    )


def halves(records: Sequence[T], seed: int = 0) -> tuple[list[T], list[T]]:
    """Two halves by prompt, independent of `split_by_prompt`: e.g. one for the reward model to train on, one for the
    judge."""
    first = [_position(record, f"halves:{seed}") < 0.5 for record in records]
    return (
        [record for record, one in zip(records, first, strict=True) if one],
        [record for record, one in zip(records, first, strict=True) if not one],
    )
