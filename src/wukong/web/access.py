"""What stands before every request: whose it is, whether it was meant, and how much of it there may be.

- Sessions are a random cookie (HttpOnly, SameSite=Lax); the store keeps its hash.
- Every change carries a CSRF token, an HMAC of the cookie, in a header or a form field; and a request that a browser
  says comes from another site is refused before that.
- Bodies are limited in size and time; requests are rate-limited by session and by address; failed secrets also all
  together, as addresses and cookies can be made up.
- On the loopback only local host names are answered, so that no other site's name can be pointed at this server.
- The content security policy allows the studio's own files and nothing else: no inline script, no inline style.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wukong.errors import Text, UsageError
from wukong.feedback.store.database import Store
from wukong.feedback.store.people import signed_in, signing_key
from wukong.feedback.store.tables import Annotator

COOKIE = "wukong_session"
SAFE = ("GET", "HEAD", "OPTIONS")
LARGEST_BODY = 256 * 1024
LARGEST_FILE = 256 * 1024 * 1024
BODY_SECONDS = 30
"""So long a body may take to arrive; nobody sends one byte a minute for ever."""
FILE_SECONDS = 900
HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
"""What may stand in a Host header."""
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


class TooManyError(UsageError):
    """Somebody guesses secrets; everybody who sends one has to wait."""


class SignInError(UsageError):
    """Nobody is signed in."""


# --------------------------------------------------------------------------------------------------------- who it is


def store_of(request: Request) -> Store:
    return request.app.state.store


def settings_of(request: Request) -> Settings:
    return request.app.state.settings


def limiter_of(request: Request) -> RateLimiter:
    return request.app.state.limiter


def maybe_person(request: Request) -> Annotator | None:
    token = request.cookies.get(COOKIE)
    if not token:
        return None
    with store_of(request).glance() as session:
        person = signed_in(session, token)
    if person is not None:
        limiter_of(request).know(token)
    return person


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
    given = token if isinstance(token, str) else ""
    if not hmac.compare_digest(given.encode("utf-8", "replace"), csrf_token(request).encode()):
        raise ForbiddenError("this form is out of date; reload the page and try again")


async def csrf_header(request: Request) -> None:
    """For changes that scripts send. Raises ForbiddenError without the right token."""
    _check(request, request.headers.get("x-csrf-token"))


async def csrf_form(request: Request) -> FormData:
    """A form that a page sent. Raises ForbiddenError without the right token."""
    _, options = parse_options_header(request.headers.get("content-type", ""))
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):  # decoding by "idna" or so may do anything
        raise UsageError("a form must be UTF-8")
    form = await request.form(max_files=1, max_fields=100, max_part_size=LARGEST_BODY)
    _check(request, form.get("csrf"))
    return form


async def _store(request: Request) -> Store:
    """As a dependency: FastAPI runs `async` ones in place, and others in a thread, which costs more than they do."""
    return store_of(request)


AStore = Annotated[Store, Depends(_store)]
Person = Annotated[Annotator, Depends(person_of)]
Admin = Annotated[Annotator, Depends(admin_of)]
Form = Annotated[FormData, Depends(csrf_form)]


# ------------------------------------------------------------------------------------------------------------- secrets

GUESSES = (0.1, 30.0)
"""So many wrong secrets a second, and at once, before all that are sent are refused for a while, right ones too: who
guesses must learn nothing from trying."""


def check_secret(request: Request, given: str, *, needed: bool, of: str) -> None:
    """Compares the admin secret.

    Args:
        needed: whether a server without a secret refuses.
        of: what shares the count of wrong ones, whoever sends them: an address can be forged.

    Raises:
        ForbiddenError: it is wrong. TooManyError: too many were wrong.
    """
    secret = settings_of(request).admin_secret
    if secret is None and not needed:
        return
    if limiter_of(request).spent(f"secrets {of}", *GUESSES):
        raise TooManyError(TOO_MANY)
    if secret is None or not hmac.compare_digest(given.encode(), secret.encode()):
        failed_secret(request, of)
        raise ForbiddenError("this is not the admin secret")


def failed_secret(request: Request, of: str) -> None:
    """Counts a wrong secret. Raises TooManyError when there were too many."""
    if not limiter_of(request).allows(f"secrets {of}", *GUESSES):
        raise TooManyError(TOO_MANY)


def load_signing_key(store: Store) -> str:
    with store.write() as session:
        return signing_key(session)


# ----------------------------------------------------------------------------------------------------- before it is


class RateLimiter:
    """Token buckets by key: `burst` requests at once, `rate` a second in the long run. It also remembers which session
    cookies were found to be real, as anybody can make up another with each request."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, float], tuple[float, float]] = {}
        self._known: dict[str, None] = {}

    def know(self, cookie: str) -> None:
        """This one is a session's."""
        if len(self._known) > 20_000:
            self._known.clear()
        self._known[_hash(cookie)] = None

    def session(self, cookie: str | None) -> str | None:
        """A name for the session of a cookie; None for one that is unknown so far."""
        return name if cookie and (name := _hash(cookie)) in self._known else None

    def spent(self, key: str, rate: float, burst: float) -> bool:
        """Whether `allows` would refuse."""
        left, then = self._buckets.get((key, burst), (burst, 0.0))
        return left + (time.monotonic() - then) * rate < 1

    def allows(self, key: str, rate: float, burst: float) -> bool:
        now = time.monotonic()
        if len(self._buckets) > 20_000:  # full buckets tell nothing
            self._buckets = {k: v for k, v in self._buckets.items() if now - v[1] < 60}
        left, then = self._buckets.get((key, burst), (burst, now))
        left = min(burst, left + (now - then) * rate)
        self._buckets[key, burst] = (max(left - 1, 0), now) if left >= 1 else (left, now)
        return left >= 1


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Guard:
    """Refuses what needs no look into the store, and puts the security headers on every answer."""

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
        if scope["path"].endswith(("/answers", "/battles")) and scope["method"] not in SAFE:
            return self.limiter.allows(f"answers {key or address}", 0.5, 20)  # each keeps a model busy for seconds
        if key is not None:
            return self.limiter.allows(key, 30, 120) and self.limiter.allows(f"all {address}", 400, 1200)
        return self.limiter.allows(f"nobody {address}", 20, 100)


TOO_MANY = "too many requests; wait a moment"


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
