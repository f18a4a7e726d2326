"""A language model behind an OpenAI-compatible API as a judge that grades single answers.

It is named `openai:MODEL@URL`; without @URL the server is $OPENAI_BASE_URL, or OpenAI. The key is $OPENAI_API_KEY.
Grades range from 1 (useless) to 10 (could not be better), as in MT-bench (Zheng et al. 2023). Such graders prefer long
answers and answers like their own: measure their agreement with people before relying on them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wukong.errors import RunError, UsageError
from wukong.feedback.endpoint import Endpoint
from wukong.feedback.judge import Judge, Opinion
from wukong.feedback.replies import Replies, Reply, gather
from wukong.records import Message

INSTRUCTION = (
    "You grade the answer that an assistant gave. Consider whether it does what was asked, whether it is right, "
    "complete and polite, and whether it declines what would do harm. Length is no merit. Reply with one number from "
    "1 (useless) to 10 (could not be better), and nothing else."
)
ATTEMPTS = 3
"""How often a reply without a grade is requested again before the run stops."""


def load_grader(name: str, kept: Path | None = None) -> Judge:
    """The judge `openai:MODEL[@URL]`.

    Args:
        kept: the file in which replies are stored as they arrive, so that none is paid for twice.

    Raises:
        UsageError: a name without a model, or without a key or server.
    """
    model, _, url = name.removeprefix("openai:").partition("@")
    if not model:
        raise UsageError(f"{name}: write openai:MODEL or openai:MODEL@URL")
    endpoint = Endpoint(url, model, name)
    replies = functools.cache(lambda: Replies(kept))  # read when the first answer is graded

    def ask(request: dict[str, Any]) -> Reply:
        for _ in range(ATTEMPTS):
            reply = endpoint.reply(request)
            if _grade(reply.text) is not None:
                return reply
        raise RunError(f"{name} answered {endpoint.remote.quoted(reply.text)!r}, expected a number from 1 to 10")

    def judge(prompts: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[Opinion]:
        requests = [
            endpoint.request(_question(prompt, text), temperature=0, max_tokens=8)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        keys = [endpoint.key(request) for request in requests]
        gather(dict(zip(keys, requests, strict=True)), ask, replies(), endpoint.remote)
        grades = [_grade(replies()[key].text) for key in keys]
        if None in grades:  # an older version read another number from it
            raise RunError(f"{name}: a reply stored in {kept} has no grade; delete the file to ask again")
        return [Opinion(grade or 0.0, {}, []) for grade in grades]

    return judge


def _question(prompt: Sequence[Message], text: str) -> list[Message]:
    conversation = "\n\n".join(f"{m.role}: {m.content}" for m in prompt)
    question = f"<conversation>\n{conversation}\n</conversation>\n\n<answer>\n{text}\n</answer>\n\nGrade:"
    return [Message(role="system", content=INSTRUCTION), Message(role="user", content=question)]


def _grade(said: str) -> float | None:
    """The only number in a reply, if it is from 1 to 10. Replies that reason aloud or repeat the scale contain
    others."""
    said = re.sub(r"<think>.*?(</think>|$)", "", said, flags=re.DOTALL)
    found = set(re.findall(r"-?\d+(?:[.,]\d+)*(?:e\d+)?", re.sub(r"(\d)\s*(?:/|out of)\s*10\b", r"\1", said)))
    grade = float(found.pop()) if len(found) == 1 and re.fullmatch(r"\d+(\.\d+)?", next(iter(found))) else 0.0
    return grade if 1 <= grade <= 10 else None
