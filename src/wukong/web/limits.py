"""Rate limits: token buckets by key."""

from __future__ import annotations

import hashlib
import time

TOO_MANY = "too many requests; wait a moment"


class RateLimiter:
    """Token buckets by key: `burst` requests at once, `rate` a second in the long run. It also remembers which session
    cookies belong to real sessions, since a client can make up a new cookie for each request."""

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
