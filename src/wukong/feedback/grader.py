"""A language model behind an OpenAI-compatible API as a judge that grades single answers.

It is named `openai:MODEL@URL`; without @URL the server is $OPENAI_BASE_URL, or OpenAI. The key is $OPENAI_API_KEY.
A rubric to grade by is written behind a #, as text or as the name of a file: `openai:MODEL#rubric.md`; a prompt may
bring its own in the column `rubric`. Without either it grades by `INSTRUCTION`.

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
from wukong.feedback.judge import Judge, JudgedPrompt, Opinion
from wukong.feedback.replies import Replies, Reply, gather
from wukong.files import whole_text
from wukong.records import Message

INSTRUCTION = (
    "You grade the answer that an assistant gave. Consider whether it does what was asked, whether it is right, "
    "complete and polite, and whether it declines what would do harm. Length is no merit. Reply with one number from "
    "1 (useless) to 10 (could not be better), and nothing else."
)
RUBRIC = (
    "You grade the answer that an assistant gave. Grade it by the rubric below and by nothing else. Reply with one "
    "number from 1 (meets none of it) to 10 (meets all of it), and nothing else."
)
ATTEMPTS = 3
"""How often a reply without a grade is requested again before the run stops."""


def load_grader(name: str, kept: Path | None = None) -> Judge:
    """The judge `openai:MODEL[@URL][#RUBRIC]`.

    Args:
        kept: the file in which replies are stored as they arrive, so that none is paid for twice.

    Raises:
        UsageError: a name without a model, without a key or server, or with a rubric file that cannot be read.
    """
    server, rubric = _named(name)
    model, _, url = server.removeprefix("openai:").partition("@")
    if not model:
        raise UsageError(f"{name}: write openai:MODEL or openai:MODEL@URL")
    endpoint = Endpoint(url, model, server)
    replies = functools.cache(lambda: Replies(kept))  # read when the first answer is graded

    def ask(request: dict[str, Any]) -> Reply:
        for _ in range(ATTEMPTS):
            reply = endpoint.reply(request)
            if _grade(reply.text) is not None:
                return reply
        raise RunError(f"{name} answered {endpoint.remote.quoted(reply.text)!r}, expected a number from 1 to 10")

    def judge(prompts: Sequence[JudgedPrompt], texts: Sequence[str]) -> list[Opinion]:
        requests = [
            endpoint.request(_question(prompt, text, rubric), temperature=0, max_tokens=8)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        keys = [endpoint.key(request) for request in requests]
        gather(dict(zip(keys, requests, strict=True)), ask, replies(), endpoint.remote)
        grades = [_grade(replies()[key].text) for key in keys]
        if None in grades:  # an older version read another number from it
            raise RunError(f"{name}: a reply stored in {kept} has no grade; delete the file to ask again")
        return [Opinion(grade or 0.0, {}, []) for grade in grades]

    return judge


def written_rubric(given: str) -> str:
    """A rubric given as text, or as the name of a file with it (one word with a suffix, or an existing file).

    Raises UsageError for a file that cannot be read, or an empty rubric.
    """
    rubric = whole_text(given) if is_rubric_file(given) else given
    if not rubric.strip():
        raise UsageError(f"{given or 'the rubric'}: is empty")
    return rubric.strip()


def is_rubric_file(given: str) -> bool:
    named = re.fullmatch(r"\S+\.(txt|md|text|markdown)", given) is not None
    return named or (len(given) < 256 and Path(given).is_file())


def rubric_file(name: str) -> str | None:
    """The file with the rubric that the name of a judge contains."""
    _, _, rubric = name.partition("#")
    return rubric if rubric and is_rubric_file(rubric) else None


def _named(name: str) -> tuple[str, str]:
    """(openai:MODEL[@URL], the rubric's text or nothing)."""
    server, hash_sign, rubric = name.partition("#")
    return server, written_rubric(rubric) if hash_sign else ""


def _question(prompt: JudgedPrompt, text: str, rubric: str) -> list[Message]:
    conversation = "\n\n".join(f"{m.role}: {m.content}" for m in prompt.messages)
    question = f"<conversation>\n{conversation}\n</conversation>\n\n<answer>\n{text}\n</answer>\n\nGrade:"
    own = (prompt.columns or {}).get("rubric")
    by = "\n\n".join(one.strip() for one in (rubric, own) if isinstance(one, str) and one.strip())
    instruction = f"{RUBRIC}\n\n<rubric>\n{by}\n</rubric>" if by else INSTRUCTION
    return [Message(role="system", content=instruction), Message(role="user", content=question)]


def _grade(said: str) -> float | None:
    """The only number in a reply, if it is from 1 to 10. Replies that reason aloud or repeat the scale contain
    others."""
    said = re.sub(r"<think>.*?(</think>|$)", "", said, flags=re.DOTALL)
    found = set(re.findall(r"-?\d+(?:[.,]\d+)*(?:e\d+)?", re.sub(r"(\d)\s*(?:/|out of)\s*10\b", r"\1", said)))
    grade = float(found.pop()) if len(found) == 1 and re.fullmatch(r"\d+(\.\d+)?", next(iter(found))) else 0.0
    return grade if 1 <= grade <= 10 else None
