"""Models behind an OpenAI-compatible API: one request, one reply, and a one-line error for anything else.

Some servers send the text in parts, next to the model's reasoning, or null: the reply is the text if there is any, else
an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import httpx

from wukong.errors import UsageError
from wukong.feedback.remote import Remote, checked_key, checked_url
from wukong.feedback.replies import Reply
from wukong.records import Message

OPENAI = "https://api.openai.com/v1"
PATH = "/chat/completions"


class Endpoint:
    """A model on the server at `url`, else $OPENAI_BASE_URL, else OpenAI. The key is $OPENAI_API_KEY.

    Args:
        url: the base URL, e.g. http://127.0.0.1:8000/v1.
        model: the model's name on the server.
        name: its name in messages.
        transport: carries the requests; None is the network.

    Raises:
        UsageError: the URL is invalid or contains a secret, or OpenAI is to be used without a key.
    """

    def __init__(
        self, url: str | None, model: str, name: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        own_server = url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not own_server and not key:
            raise UsageError(
                f"{name or model}: set OPENAI_API_KEY, or give another server, such as http://127.0.0.1:8000/v1"
            )
        self.model = model
        self._headers = {"Authorization": f"Bearer {checked_key(key, 'OPENAI_API_KEY')}"} if key else {}
        for header, variable in (("OpenAI-Organization", "OPENAI_ORG_ID"), ("OpenAI-Project", "OPENAI_PROJECT_ID")):
            if value := os.environ.get(variable, "").strip():
                self._headers[header] = checked_key(value, variable)
        self.remote = Remote(checked_url(own_server or OPENAI, "the endpoint's URL"), [key], transport)

    def request(self, messages: Sequence[Message], **parameters: Any) -> dict[str, Any]:
        """The body of a request."""
        return {"model": self.model, "messages": [m.model_dump() for m in messages], **parameters}

    def key(self, request: dict[str, Any]) -> str:
        """The key under which a reply to this request is stored."""
        asked = json.dumps([self.remote.url, request], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:32]

    def reply(self, request: dict[str, Any]) -> Reply:
        """Raises ServerError for anything that is not a reply."""
        answer = self.remote.json("POST", PATH, request, headers=self._headers)
        try:
            return reply_of(answer)
        except ValueError as problem:
            raise self.remote.unexpected(PATH, str(problem), answer) from None


def reply_of(answer: Any) -> Reply:
    """The reply in the JSON of a chat completion. Raises ValueError, with the reason, if there is none."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise ValueError("the answer has no choices")
    choice = choices[0]
    if not isinstance(choice, dict) or choice.get("error"):
        raise ValueError("the answer's choice is an error")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ValueError("the answer's choice has no message")
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 <= tokens < 2**53:
        tokens = 0  # not counted
    return Reply(_text(message), choice.get("finish_reason") == "stop", tokens)


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = _joined(content)
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]  # OpenAI's field for refusals
    if not content and (message.get("reasoning_content") or message.get("reasoning")):
        raise ValueError("the model reasoned but did not answer (allow it more new tokens)")
    if content is None:
        raise ValueError("the answer's message has no text")
    if not isinstance(content, str):
        raise ValueError(f"the answer's text is of type {type(content).__name__}")
    return content


def _joined(parts: list[Any]) -> str | None:
    """The text of a message in parts, without reasoning; None if no part is text."""
    texts: list[str] = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind in ("thinking", "reasoning"):
            continue
        if kind not in ("text", "output_text") or not isinstance(text, str):
            raise ValueError("a part of the answer's message is not text")
        texts.append(text)
    return "".join(texts) if texts else None
