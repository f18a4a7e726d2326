"""Models behind an OpenAI-compatible API: the client, and one line for whatever goes wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wukong.errors import RunError, UsageError

if TYPE_CHECKING:
    from openai import OpenAI


def client_for(url: str | None, model: str) -> OpenAI:
    """The client of a server: of `url`, else of $OPENAI_BASE_URL, else OpenAI's own. Its key is $OPENAI_API_KEY.

    A server of one's own seldom asks for a key, but the client insists on one: without any it gets a dash.

    Raises:
        UsageError: OpenAI's own server is meant, and there is no key.
    """
    from openai import OpenAI, OpenAIError

    own_server = url or os.environ.get("OPENAI_BASE_URL")
    try:
        return OpenAI(base_url=url or None, api_key=os.environ.get("OPENAI_API_KEY") or ("-" if own_server else None))
    except OpenAIError:
        raise UsageError(
            f"{model}: set OPENAI_API_KEY, or name a server of your own, such as http://127.0.0.1:8000/v1"
        ) from None


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Raises RunError, one line, for what a client raises in the block."""
    from openai import OpenAIError

    try:
        yield
    except OpenAIError as error:
        problem = (str(error).splitlines() or [""])[0]
        raise RunError(f"{name}: {type(error).__name__}: {problem}") from error
