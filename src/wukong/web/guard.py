"""What is refused before any page or the store is reached, and the security headers of every answer.

- A request that a browser says comes from another site is refused.
- Bodies are limited in size and time; requests are rate-limited by session and by address.
- On the loopback only local host names are answered, so that no other site's name can be pointed at this server.
- The content security policy allows the studio's own files and nothing else: no inline script, no inline style.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wukong.errors import Text
from wukong.web.access import COOKIE, LARGEST_BODY
from wukong.web.limits import TOO_MANY, RateLimiter
from wukong.web.state import Settings

SAFE = ("GET", "HEAD", "OPTIONS")
LARGEST_FILE = 256 * 1024 * 1024
BODY_SECONDS = 30
"""Time that a body may take to arrive."""
FILE_SECONDS = 900
HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
"""A valid Host header."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, browsers send our own forms with the origin "null"
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Refuses requests without a look into the store, and adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, settings: Settings, limiter: RateLimiter) -> None:
        self.app, self.settings, self.limiter = app, settings, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if not scope["path"].startswith("/static/"):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_guarded)
            return
        limits = (LARGEST_FILE, FILE_SECONDS) if scope["path"].endswith("/import") else (LARGEST_BODY, BODY_SECONDS)
        await self.app(scope, _limited(receive, *limits), send_guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        named = HOST.fullmatch(host)
        if named is None or (self.settings.hosts is not None and named[1] not in self.settings.hosts):
            return PlainTextResponse("this server answers to other names only", 400)
        if scope["method"] not in SAFE:
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2] != host:
                return PlainTextResponse("this request comes from another site", 403)
            if origin is None and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return PlainTextResponse("this request comes from another site", 403)
        largest = LARGEST_FILE if scope["path"].endswith("/import") else LARGEST_BODY
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > largest:
            return PlainTextResponse(f"the request is larger than {largest} bytes", 413)
        return None if self._in_time(scope, headers) else _too_many()

    def _in_time(self, scope: Scope, headers: Headers) -> bool:
        address = (scope.get("client") or ("unknown",))[0]
        if scope["path"].startswith(("/invite/", "/login")) and scope["method"] not in SAFE:
            return self.limiter.allows(f"door {address}", 0.5, 20)  # guessing a secret is slow
        key = self.limiter.session(Request(scope).cookies.get(COOKIE))
        if scope["path"].endswith(("/answers", "/battles", "/tokens")) and scope["method"] not in SAFE:
            return self.limiter.allows(f"answers {key or address}", 0.5, 20)  # each keeps a model busy for seconds
        if key is not None:
            return self.limiter.allows(key, 30, 120) and self.limiter.allows(f"all {address}", 400, 1200)
        return self.limiter.allows(f"nobody {address}", 20, 100)


def _too_many() -> PlainTextResponse:
    return PlainTextResponse(TOO_MANY, 429, {"retry-after": "2"})


def _limited(receive: Receive, limit: int, seconds: float) -> Callable[[], Awaitable[Message]]:
    """Ends a body that is larger than the limit, whatever length it announced, or that does not come to an end."""
    seen, whole, deadline = 0, False, time.monotonic() + seconds

    async def counted() -> Message:
        nonlocal seen, whole
        if whole:  # what comes now is that the client leaves, some day
            return await receive()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "the request did not arrive in time", {"connection": "close"}) from None
        seen, whole = seen + len(message.get("body", b"")), not message.get("more_body", False)
        if seen > limit:
            raise HTTPException(413, Text("the request is larger than {n} bytes", n=limit), {"connection": "close"})
        return message

    return counted
