"""Server-sent events, for the OpenAI-compatible API and the studio alike."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


def event(value: Any, kind: str | None = None, id: str | None = None) -> str:
    """One event; a browser that reconnects sends back the last `id`."""
    named = f"event: {kind}\n" if kind is not None else ""
    numbered = f"id: {id}\n" if id is not None else ""
    return f"{named}{numbered}data: {json.dumps(value, ensure_ascii=False)}\n\n"


class EventStream(StreamingResponse):
    """A stream of events; `at_end` is called when they end, or when the client leaves, wherever it was then."""

    def __init__(self, events: AsyncIterator[str], at_end: Callable[[], None] | None = None) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies must not wait for the end
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._at_end is not None:
                self._at_end()
