"""JSON over HTTP with third-party servers: answers are checked and bounded, and requests retried where that helps.

Servers may answer with web pages, truncated answers, an error under status 200, or not at all. Every such case becomes
a `ServerError` that names the address and quotes the start of the answer; secrets are never quoted.
"""

from __future__ import annotations

import json
import math
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from wukong.errors import RunError, UsageError

ATTEMPTS = 6
"""The maximum number of times a request is sent."""
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
"""Seconds before the second attempt, doubled for each further one; and the longest wait, including Retry-After."""
SECONDS = 300.0
"""Default time limit of one attempt in seconds, including the whole answer."""
LARGEST = 64 * 2**20
"""Maximum size of an answer in bytes, unpacked."""
REDIRECTS = 3
QUOTED = 80
"""Characters of an unexpected answer quoted in an error."""

_WORTH_ANOTHER_ATTEMPT = {408, 425, 429}
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class ServerError(RunError):
    """A server failed, or gave an unexpected answer.

    Args:
        status: the HTTP status, if any.
        raw: the answer, if any.
        lasting: whether a retry would not help (a wrong address rather than a busy server).
    """

    def __init__(self, message: str, status: int | None = None, raw: bytes = b"", *, lasting: bool = True) -> None:
        super().__init__(message)
        self.status, self.raw, self.lasting = status, raw, lasting


class _PassingError(Exception):
    def __init__(self, problem: str, status: int | None = None, delay: float | None = None, sent: bool = True) -> None:
        self.problem, self.status, self.delay, self.sent = problem, status, delay, sent


def checked_url(url: str, option: str) -> str:
    """The address without a trailing slash.

    Raises UsageError for an invalid address, or one with a password or a query: addresses are printed and recorded,
    secrets must not be.
    """
    try:
        parts = httpx.URL(url.strip())
    except (httpx.InvalidURL, UnicodeError):
        raise UsageError(f"{option}: an address such as http://127.0.0.1:8080 is expected") from None
    if "@" in url or parts.query or parts.fragment:
        raise UsageError(f"{option}: an address without a user, password, query or # is expected; put the key where "
                         "it is never recorded, in an environment variable")  # fmt: skip
    if parts.scheme not in ("http", "https") or not parts.host:
        raise UsageError(f"{option} {url}: an address such as http://127.0.0.1:8080 is expected")
    return url.strip().rstrip("/")


def checked_key(key: str, name: str) -> str:
    """A key without surrounding white space. Raises UsageError, without quoting the key, if it is not a valid HTTP
    header."""
    if not re.fullmatch(r"[!-~]+", key.strip()):
        raise UsageError(f"{name} contains a space, a line break or another invalid character; copy it again")
    return key.strip()


class Remote:
    """A server; thread-safe.

    Args:
        url: its address, as returned by `checked_url`; requests give a path below it.
        secrets: never quoted in errors, such as the key.
        transport: carries the requests; None is the network.
        seconds: time limit of one attempt, including the whole answer; by default `SECONDS`.
    """

    def __init__(
        self,
        url: str,
        secrets: Sequence[str] = (),
        transport: httpx.BaseTransport | None = None,
        seconds: float | None = None,
    ) -> None:
        self.url, self.secrets, self.seconds = url, [secret for secret in secrets if secret], seconds or SECONDS
        local = httpx.URL(url).host in ("127.0.0.1", "::1", "localhost")
        timeout = httpx.Timeout(self.seconds, connect=min(self.seconds, 20.0))
        try:  # no proxy for this machine; otherwise those of the environment
            self._client = httpx.Client(timeout=timeout, trust_env=not local, transport=transport)
        except (ValueError, ImportError, OSError) as error:
            raise UsageError(f"{url}: the proxy or certificate file of the environment is unusable: {error}") from None
        self._answered = False
        self.stopped = threading.Event()
        """While set, no further attempt is made."""

    def json(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> Any:
        """The server's answer as a JSON value; lone surrogates in its texts become U+FFFD.

        Status 408, 425, 429 and 5xx, time-outs and broken connections are retried, up to `ATTEMPTS` attempts; so is a
        refused connection, but only once the server has answered: its address may be wrong.

        Args:
            repeatable: whether the request is idempotent; if not, it is retried only if the server certainly did not
                process it (429, 503, no connection).

        Raises:
            ServerError: any other answer.
        """
        url = self.url + path
        content = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})} if content is not None else dict(headers or {})
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once(method, httpx.URL(url, params=query) if query else httpx.URL(url), content, sent)
            except _PassingError as trouble:
                harmless = repeatable or not trouble.sent or trouble.status in (429, 503)
                delay = trouble.delay if trouble.delay is not None else _back_off(attempt)
                tried = f" ({attempt} attempts)" if attempt > 1 else ""
                if delay > LONGEST_DELAY:
                    tried += f"; it asks to wait {delay:,.0f} s before the next attempt"
                last = attempt == ATTEMPTS or delay > LONGEST_DELAY or not (trouble.sent or self._answered)
                if last or not harmless or self.stopped.wait(delay):
                    raise ServerError(f"{url}: {trouble.problem}{tried}", trouble.status, lasting=False) from None
        raise AssertionError("unreachable")

    def _once(self, method: str, url: httpx.URL, content: bytes | None, headers: Mapping[str, str]) -> Any:
        try:
            response, raw = self._send(method, url, content, headers)
        except httpx.TimeoutException as error:
            sent = not isinstance(error, httpx.ConnectTimeout)
            raise _PassingError(f"no answer within {self.seconds:g} s", sent=sent) from None
        except httpx.ConnectError as error:
            raise _PassingError(
                f"no answer ({self.quoted(str(error))}); is the server running there?", sent=False
            ) from None
        except httpx.DecodingError:
            raise ServerError(f"{_plain(url)}: the answer is damaged and cannot be unpacked") from None
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
            raise ServerError(f"{_plain(url)}: request failed ({self.quoted(str(error))})") from None
        except httpx.HTTPError as error:  # reset, or closed before the end of the answer
            raise _PassingError(f"the connection broke ({self.quoted(str(error) or type(error).__name__)})") from None
        self._answered = True
        status = response.status_code
        if status in _WORTH_ANOTHER_ATTEMPT or status >= 500:
            raise _PassingError(f"status {status}: {self.quoted(raw)}", status, _retry_after(response))
        if status >= 300:
            raise ServerError(f"{_plain(url)}: status {status}: {self.quoted(raw)}{_remedy(status)}", status, raw)
        kind = response.headers.get("content-type", "").partition(";")[0].strip() or "no content type"
        complaint = f"{_plain(url)}: the answer is not JSON ({self.quoted(kind)}): {self.quoted(raw)}"
        return self._parsed(raw, complaint, url)

    def _send(
        self, method: str, url: httpx.URL, content: bytes | None, headers: Mapping[str, str]
    ) -> tuple[httpx.Response, bytes]:
        """The response and its bytes, after redirects within the same server."""
        end, asked = time.monotonic() + self.seconds, url
        for _ in range(REDIRECTS + 1):
            with self._client.stream(method, url, content=content, headers=dict(headers)) as response:
                if response.has_redirect_location:
                    url = self._redirected(response, method, url)
                    continue
                raw = bytearray()
                for chunk in response.iter_bytes():
                    raw += chunk
                    if len(raw) > LARGEST:
                        problem = f"the answer is longer than {LARGEST / 2**20:,.0f} MiB: {self.quoted(raw)}"
                        raise ServerError(f"{_plain(asked)}: {problem}", response.status_code)
                    if time.monotonic() > end:
                        raise httpx.ReadTimeout("the answer took too long")
                return response, bytes(raw)
        raise ServerError(f"{_plain(asked)}: more than {REDIRECTS} redirects")

    def _redirected(self, response: httpx.Response, method: str, url: httpx.URL) -> httpx.URL:
        """The target of a redirect. Only the same host may receive the key and the body, and the method must not
        change."""
        try:
            target = url.join(response.headers["location"])
        except (httpx.InvalidURL, UnicodeError):
            target = httpx.URL("")
        safe = target.host == url.host and target.scheme in (url.scheme, "https")
        if not safe or (method != "GET" and response.status_code not in (307, 308)):
            problem = f"redirects to {self.quoted(str(_plain(target)))}; give that address if it is the right server"
            raise ServerError(f"{_plain(url)}: {problem}", response.status_code)
        return target

    def _parsed(self, raw: bytes, complaint: str, url: httpx.URL) -> Any:
        try:
            value = json.loads(raw)
            value = _whole(value) if b"\\u" in raw else value
        except (ValueError, RecursionError):
            raise ServerError(complaint, raw=raw) from None
        if isinstance(value, dict) and (error := value.get("error")):
            status = _status_of(error)
            problem = f"answered with an error: {self.quoted(raw)}"
            if status is not None and (status in _WORTH_ANOTHER_ATTEMPT or status >= 500):
                raise _PassingError(problem, status)
            raise ServerError(f"{_plain(url)}: {problem}", status)
        return value

    def unexpected(self, path: str, problem: str, answer: Any) -> ServerError:
        """The error for unexpected JSON."""
        return ServerError(f"{self.url}{path}: {problem}: {self.quoted(json.dumps(answer, ensure_ascii=False))}")

    def quoted(self, text: str | bytes | bytearray, most: int = QUOTED) -> str:
        """The start of a text in one line, without control characters and secrets."""
        said = text if isinstance(text, str) else bytes(text[:20_000]).decode("utf-8", errors="replace")
        said = said[:20_000]
        for secret in self.secrets:
            said = said.replace(secret, "***")
        said = " ".join("".join(c if c.isprintable() else " " for c in said).split())
        return said[:most] + ("…" if len(said) > most else "") or "(empty)"


def _back_off(attempt: int) -> float:
    """Seconds: doubled each time, with jitter between threads."""
    result: float = min(FIRST_DELAY * 2 ** (attempt - 1), LONGEST_DELAY) * random.uniform(0.75, 1)
    return result


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds the server asks to wait: a number, or a date."""
    said = response.headers.get("retry-after", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            moment = parsedate_to_datetime(said)
            seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _status_of(error: Any) -> int | None:
    """The status in an {"error": ...} sent with status 200."""
    for name in ("code", "status"):
        found = error.get(name) if isinstance(error, dict) else None
        if re.fullmatch(r"[45]\d\d", str(found)):
            return int(str(found))
    return None


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "; check the key"
    return "; check the address and the name of what is asked for" if status == 404 else ""


def _plain(url: httpx.URL) -> str:
    return str(url.copy_with(query=None, fragment=None, userinfo=b""))


def _whole(value: Any) -> Any:
    """The value with lone surrogates replaced by U+FFFD."""
    if isinstance(value, str):
        return _HALF_CHARACTER.sub("�", value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return value
