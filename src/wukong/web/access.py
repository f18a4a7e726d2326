"""What stands before every request: whose it is, whether it was meant, and how much of it there may be.

- Sessions are a random cookie (HttpOnly, SameSite=Lax); the store keeps its hash.
- Every change carries a CSRF token, an HMAC of the cookie, in a header or a form field; and a request that a browser
  says comes from another site is refused before that.
- Bodies are limited, requests are rate-limited by session and by address.
- On the loopback only local host names are answered, so that no other site's name can be pointed at this server.
- The content security policy allows the studio's own files and nothing else: no inline script, no inline style.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import FormData, Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wukong.errors import UsageError
from wukong.feedback.store.database import Store
from wukong.feedback.store.people import signed_in, signing_key
from wukong.feedback.store.tables import Annotator

COOKIE = "wukong_session"
SAFE = ("GET", "HEAD", "OPTIONS")
LARGEST_BODY = 256 * 1024
LARGEST_FILE = 256 * 1024 * 1024
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, browsers send our own forms with the origin "null"
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class Settings:
    """How the studio is served.

    Attributes:
        run_dir: the run whose models people may talk to and whose responses admins may use; None for none.
        models: more models to talk to, name -> directory or hub id.
        hosts: the host names it answers to; None for any, which only a server beyond the loopback should have.
        admin_secret: what becoming an admin takes besides the invitation.
        secure: send cookies over HTTPS only.
    """

    run_dir: Path | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] | None = LOCAL_NAMES
    admin_secret: str | None = None
    secure: bool = False

    @property
    def runs_dir(self) -> Path:
        """Where the runs lie that admins see: beside `run_dir`, or in runs/ here."""
        return self.run_dir.absolute().parent if self.run_dir else Path("runs").absolute()


class ForbiddenError(UsageError):
    """The request is understood, and refused."""


class SignInError(UsageError):
    """Nobody is signed in."""


# --------------------------------------------------------------------------------------------------------- who it is


def store_of(request: Request) -> Store:
    return request.app.state.store


def settings_of(request: Request) -> Settings:
    return request.app.state.settings


def maybe_person(request: Request) -> Annotator | None:
    token = request.cookies.get(COOKIE)
    if not token:
        return None
    with store_of(request).glance() as session:
        return signed_in(session, token)


def person_of(request: Request) -> Annotator:
    """Who is signed in. Raises SignInError for nobody."""
    person = maybe_person(request)
    if person is None:
        raise SignInError("sign in first: open your invitation link")
    return person


def admin_of(request: Request) -> Annotator:
    person = person_of(request)
    if person.role != "admin":
        raise ForbiddenError("this page is for admins")
    return person


def csrf_token(request: Request) -> str:
    """The token that a page of this session sends with every change."""
    key = request.app.state.signing_key.encode()
    return hmac.new(key, b"csrf:" + request.cookies.get(COOKIE, "").encode(), hashlib.sha256).hexdigest()


def _check(request: Request, token: Any) -> None:
    if not isinstance(token, str) or not hmac.compare_digest(token.encode(), csrf_token(request).encode()):
        raise ForbiddenError("this form is out of date; reload the page and try again")


async def csrf_header(request: Request) -> None:
    """For changes that scripts send. Raises ForbiddenError without the right token."""
    _check(request, request.headers.get("x-csrf-token"))


async def csrf_form(request: Request) -> FormData:
    """A form that a page sent. Raises ForbiddenError without the right token."""
    form = await request.form(max_files=1, max_fields=100)
    _check(request, form.get("csrf"))
    return form


async def _store(request: Request) -> Store:
    """As a dependency: FastAPI runs `async` ones in place, and others in a thread, which costs more than they do."""
    return store_of(request)


AStore = Annotated[Store, Depends(_store)]
Person = Annotated[Annotator, Depends(person_of)]
Admin = Annotated[Annotator, Depends(admin_of)]
Form = Annotated[FormData, Depends(csrf_form)]


def load_signing_key(store: Store) -> str:
    with store.write() as session:
        return signing_key(session)


# ----------------------------------------------------------------------------------------------------- before it is


class RateLimiter:
    """Token buckets by key: `burst` requests at once, `rate` a second in the long run."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, float], tuple[float, float]] = {}

    def allows(self, key: str, rate: float, burst: float) -> bool:
        now = time.monotonic()
        if len(self._buckets) > 20_000:  # full buckets tell nothing
            self._buckets = {k: v for k, v in self._buckets.items() if now - v[1] < 60}
        left, then = self._buckets.get((key, burst), (burst, now))
        left = min(burst, left + (now - then) * rate)
        self._buckets[key, burst] = (max(left - 1, 0), now) if left >= 1 else (left, now)
        return left >= 1


class Guard:
    """Refuses what needs no look into the store, and puts the security headers on every answer."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings, self.limiter = app, settings, RateLimiter()

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
        limit = LARGEST_FILE if scope["path"].endswith("/import") else LARGEST_BODY
        await self.app(scope, _limited(receive, limit), send_guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self.settings.hosts is not None and name not in self.settings.hosts:
            return PlainTextResponse("this server answers to other names only", 400)
        if scope["method"] not in SAFE:
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != host:
                return PlainTextResponse("this request comes from another site", 403)
            if origin is None and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return PlainTextResponse("this request comes from another site", 403)
        largest = LARGEST_FILE if scope["path"].endswith("/import") else LARGEST_BODY
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > largest:
            return PlainTextResponse(f"the request is larger than {largest} bytes", 413)
        return None if self._in_time(scope, headers) else _too_many()

    def _in_time(self, scope: Scope, headers: Headers) -> bool:
        address = (scope.get("client") or ("unknown",))[0]
        if scope["path"].startswith(("/invite/", "/login")) and scope["method"] not in SAFE:
            return self.limiter.allows(f"door {address}", 0.5, 20)  # guessing a secret is slow
        cookie = headers.get("cookie", "")
        if cookie:
            key = hashlib.sha256(cookie.encode()).hexdigest()
            if scope["path"].endswith(("/answers", "/battles")) and scope["method"] not in SAFE:
                return self.limiter.allows(f"answers {key}", 0.5, 20)  # each keeps a model busy for seconds
            return self.limiter.allows(key, 30, 120) and self.limiter.allows(f"all {address}", 400, 1200)
        return self.limiter.allows(f"nobody {address}", 20, 100)


def _too_many() -> PlainTextResponse:
    return PlainTextResponse("too many requests; wait a moment", 429, {"retry-after": "2"})


def _limited(receive: Receive, limit: int) -> Callable[[], Awaitable[Message]]:
    """Counts a body that came without an honest length, and ends it at the limit."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, f"the request is larger than {limit} bytes")
        return message

    return counted
