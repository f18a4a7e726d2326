"""Prompts as verifiers read them."""

from typing import Any

from wukong.records import Prompt, as_messages


def asked(answer: str | None = None, **columns: Any) -> Prompt:
    return Prompt(messages=as_messages("q"), answer=answer, columns=columns or None)
