"""Connections that end: uvicorn waits for a request's head, and for a body that was refused unread, without a bound."""

from __future__ import annotations

import asyncio
from typing import Any

HEAD_SECONDS = 30.0
"""Time that a request's head may take to arrive, and the rest of a request that was answered already."""


def http_protocol() -> Any:
    """For uvicorn's option `http`."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:  # pragma: no cover - the extras `serve` and `studio` bring it; uvicorn's own choice without it
        return "auto"

    class Bounded(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait_for_a_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait_for_a_head()

        def _wait_for_a_head(self) -> None:
            self._stop_waiting()
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            answering = self.cycle is not None and not self.cycle.response_complete
            if not answering and not self.transport.is_closing():
                self.transport.close()

    return Bounded
