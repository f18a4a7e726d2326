"""The few calls of Label Studio's HTTP API that are needed, by Python's own client."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from wukong.errors import RunError, UsageError

PAGE = 100  # tasks a request, up and down
SECONDS = 60.0


class LabelStudio:
    """A running server.

    Args:
        url: its address, e.g. http://127.0.0.1:8080.
        key: the access token of an account there: a legacy token, or a personal access token (a JWT, which is
            exchanged for a short-lived one).

    Every method raises UsageError where the address or token is wrong, RunError where the server fails.
    """

    def __init__(self, url: str, key: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"--url {url}: an address such as http://127.0.0.1:8080 is expected")
        self.url, self._key = url.rstrip("/"), key
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        proxies = [urllib.request.ProxyHandler({})] if local else []  # no proxy reaches this machine for us
        self._opener = urllib.request.build_opener(*proxies)
        self._login = f"Token {key}"
        if key.count(".") == 2:
            self._refresh()

    def _refresh(self) -> None:
        self._login = ""
        self._login = f"Bearer {self.call('POST', '/api/token/refresh', {'refresh': self._key})['access']}"

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON answer to one request."""
        address = self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
        renewable = self._login.startswith("Bearer")
        for attempt in (1, 2):
            request = urllib.request.Request(address, method=method)
            if self._login:
                request.add_header("Authorization", self._login)
            if body is not None:
                request.data = json.dumps(body).encode()
                request.add_header("Content-Type", "application/json")
            try:
                with self._opener.open(request, timeout=SECONDS) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if error.code == 401 and renewable and attempt == 1:  # it lives for some minutes only
                    self._refresh()
                    continue
                raise self._trouble(error, f"{method} {path}") from None
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                reason = getattr(error, "reason", error)
                raise UsageError(f"{self.url}: no answer ({reason}); is Label Studio running there?") from None
            except ValueError:
                raise UsageError(f"{address}: the answer is no JSON; is this Label Studio?") from None
        raise AssertionError("unreachable")

    def _trouble(self, error: urllib.error.HTTPError, what: str) -> UsageError | RunError:
        try:
            said = json.load(error)
            detail = str(said.get("detail") or "")
            if problems := said.get("validation_errors"):
                detail += f": {json.dumps(problems, ensure_ascii=False)}"
        except (ValueError, AttributeError):
            detail = str(error.reason)
        if error.code in (401, 403):
            hint = "give a token of your account page there, in LABEL_STUDIO_API_KEY or with --api-key"
            return UsageError(f"{self.url}: {detail.rstrip('.')}; {hint}")
        text = f"{self.url}: {what}: {error.code} {' '.join(detail.split())[:500]}"
        return UsageError(text) if error.code < 500 else RunError(text)

    # ------------------------------------------------------------------------------------------------------- projects

    def project(self, name: str) -> dict[str, Any] | None:
        """The project of this id or title; None when there is none. Raises UsageError where a title is taken twice."""
        if name.isdecimal():
            return self.call("GET", f"/api/projects/{name}/")
        found = [p for p in self._pages("/api/projects/", "results", title=name) if p["title"] == name]
        if len(found) > 1:
            ids = ", ".join(str(project["id"]) for project in found)
            raise UsageError(f"{self.url}: {len(found)} projects are called {name!r}; name one by its id: {ids}")
        return found[0] if found else None

    def create(self, title: str, config: str) -> dict[str, Any]:
        return self.call("POST", "/api/projects/", {"title": title, "label_config": config})

    def people(self) -> dict[int, str]:
        """Who an annotator's id is."""
        users = self.call("GET", "/api/users/")
        return {int(user["id"]): str(user.get("email") or user.get("username") or user["id"]) for user in users}

    def tasks(self, project: int, since: str | None = None) -> Iterator[dict[str, Any]]:
        """The tasks with their annotations and predictions, in the order of their ids; only those that changed after
        `since` (2026-01-31T12:00:00.000000Z), when given."""
        query: dict[str, Any] = {"ordering": ["tasks:id"]}
        if since:
            changed = {
                "filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime", "value": since,
            }  # fmt: skip
            query["filters"] = {"conjunction": "and", "items": [changed]}
        options = {"project": project, "fields": "all", "query": json.dumps(query)}
        return self._pages("/api/tasks/", "tasks", **options)

    def add(self, project: int, tasks: Sequence[dict[str, Any]]) -> None:
        self.call("POST", f"/api/projects/{project}/import", list(tasks), commit_to_project="true")

    def _pages(self, path: str, field: str, **query: Any) -> Iterator[dict[str, Any]]:
        seen, page = 0, 1
        while True:
            answer = self.call("GET", path, page=page, page_size=PAGE, **query)
            yield from answer[field]
            seen, page = seen + len(answer[field]), page + 1
            if not answer[field] or seen >= answer.get("total", answer.get("count", 0)):
                return
