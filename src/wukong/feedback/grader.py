"""A language model as a judge that grades one answer at a time, behind any OpenAI-compatible API.

`openai:MODEL@URL` names it; without @URL it is the server of $OPENAI_BASE_URL, or OpenAI's own. The key is
$OPENAI_API_KEY. A grade goes from 1 (useless) to 10 (could not be better), as in MT-bench (Zheng et al. 2023). Graders
like long answers and answers that resemble their own: trust one no further than it agrees with people.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from wukong.errors import RunError, UsageError
from wukong.feedback.annotators import Judge, Opinion
from wukong.feedback.endpoint import client_for, one_line_errors
from wukong.records import Message

if TYPE_CHECKING:
    from openai import OpenAI

INSTRUCTION = (
    "You grade the answer that an assistant gave. Consider whether it does what was asked, whether it is right, "
    "complete and polite, and whether it declines what would do harm. Length is no merit. Reply with one number from "
    "1 (useless) to 10 (could not be better), and nothing else."
)
REQUESTS_AT_ONCE = 8
ATTEMPTS = 3
"""How often an answer without a grade in it is asked for again, before the run stops."""


def load_grader(name: str) -> Judge:
    """The judge `openai:MODEL[@URL]`. Raises UsageError for a name without a model, or without a key or server."""
    model, _, url = name.removeprefix("openai:").partition("@")
    if not model:
        raise UsageError(f"{name}: write openai:MODEL or openai:MODEL@URL")
    client = client_for(url, name)

    def judge(prompts: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[Opinion]:
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            grades = list(pool.map(lambda pair: _grade(client, name, model, *pair), zip(prompts, texts, strict=True)))
        return [Opinion(grade, {}, []) for grade in grades]

    return judge


def _grade(client: OpenAI, name: str, model: str, prompt: Sequence[Message], text: str) -> float:
    conversation = "\n\n".join(f"{m.role}: {m.content}" for m in prompt)
    question = f"<conversation>\n{conversation}\n</conversation>\n\n<answer>\n{text}\n</answer>\n\nGrade:"
    said = ""
    for _ in range(ATTEMPTS):
        with one_line_errors(name):
            reply = client.chat.completions.create(
                model=model,
                messages=[{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}],
                temperature=0,
                max_tokens=8,
            )
        said = reply.choices[0].message.content or ""
        if (found := re.search(r"\d+(?:\.\d+)?", said)) and 1 <= float(found[0]) <= 10:
            return float(found[0])
    raise RunError(f"{name} answered {said!r}, a number from 1 to 10 was expected")
