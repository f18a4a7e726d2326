"""The calls of Label Studio's HTTP API that we need; answers are validated before use."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic accepts typing's only from Python 3.12

from wukong.errors import RunError, UsageError
from wukong.feedback.remote import Remote, ServerError, checked_key, checked_url

PAGE = 100  # tasks per request, for upload and download
SECONDS = 60.0

T = TypeVar("T")


def _moment(text: str) -> str:
    """A time as compared and parsed by `pull`. Raises ValueError if invalid."""
    datetime.datetime.fromisoformat(text)
    return text


class LabelStudioProject(TypedDict):
    """The fields of a project that we use."""

    id: int
    title: str
    label_config: str


@with_config(ConfigDict(extra="allow"))
class _RemoteTask(TypedDict):
    id: int
    data: dict[str, Any]
    updated_at: Annotated[str, AfterValidator(_moment)]


class _TaskPage(TypedDict, total=False):
    results: list[Any]
    tasks: list[Any]
    total: int
    count: int


class _AccessToken(TypedDict):
    access: str


class LabelStudio:
    """A running server.

    Args:
        url: its address, e.g. http://127.0.0.1:8080.
        key: the access token of an account there: a legacy token, or a personal access token (a JWT, which is
            exchanged for a short-lived one).

    Every method raises UsageError if the address or token is wrong, RunError if the server fails. No error quotes a
    token.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url, self._key = checked_url(url, "--url"), checked_key(key, "the token of Label Studio")
        self._remote = Remote(self.url, [self._key], seconds=SECONDS)
        self._login = f"Token {self._key}"
        if key.count(".") == 2:
            self._refresh()

    def _refresh(self) -> None:
        self._login, path = "", "/api/token/refresh"
        access = self._checked(_AccessToken, path, self.call("POST", path, {"refresh": self._key}))["access"]
        access = checked_key(access, "the token that Label Studio gave for yours")
        self._remote.secrets.append(access)
        self._login = f"Bearer {access}"

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON answer to a request. A POST is not repeated if it may have been processed."""
        for attempt in (1, 2):
            headers = {"Authorization": self._login} if self._login else {}
            try:
                return self._remote.json(
                    method, path, body, headers=headers, query=query, repeatable=method == "GET"
                )  # fmt: skip
            except ServerError as error:
                if error.status == 401 and self._login.startswith("Bearer") and attempt == 1:
                    self._refresh()  # it expires after some minutes
                    continue
                raise self._trouble(error, method, path) from None
        raise AssertionError("unreachable")

    def _trouble(self, error: ServerError, method: str, path: str) -> UsageError | RunError:
        detail = self._detail(error)
        if error.status in (401, 403):
            hint = "give a token of your account page there, in LABEL_STUDIO_API_KEY or with --api-key"
            return UsageError(f"{self.url}: {detail.rstrip('.')}; {hint}")
        if error.status is not None:
            text = f"{self.url}: {method} {path}: {error.status} {detail}"
            return UsageError(text) if error.status < 500 and error.lasting else RunError(text)
        if not error.lasting:
            said = str(error).replace(f"{self.url}{path}: ", f"{self.url}: ")
            return UsageError(said.replace("is the server running", "is Label Studio running"))
        return UsageError(f"{error}; is this Label Studio?")

    def _detail(self, error: ServerError) -> str:
        """Label Studio's reason for refusing a request, in one line without secrets."""
        try:
            said = json.loads(error.raw)
            detail = str(said.get("detail") or "")
            if problems := said.get("validation_errors"):
                detail += f": {json.dumps(problems, ensure_ascii=False)}"
        except (ValueError, AttributeError, RecursionError):
            detail = ""
        return self._remote.quoted(detail, 500) if detail else str(error).partition(": status ")[2] or str(error)

    def _checked(self, shape: type[T], path: str, answer: Any) -> T:
        """The answer, if it has this shape. Raises RunError, naming the field, if not."""
        try:
            return TypeAdapter(shape).validate_python(answer)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the answer"
            raise self._remote.unexpected(path, f"{field}: {first['msg']}; is this Label Studio?", answer) from None

    # ------------------------------------------------------------------------------------------------------- projects

    def project(self, name: str) -> LabelStudioProject | None:
        """The project with this id or title; None if there is none. Raises UsageError if a title is ambiguous."""
        if name.isdecimal():
            path = f"/api/projects/{name}/"
            return self._checked(LabelStudioProject, path, self.call("GET", path))
        path = "/api/projects/"
        listed = [
            self._checked(LabelStudioProject, path, project) for project in self._pages(path, "results", title=name)
        ]
        found = [project for project in listed if project["title"] == name]
        if len(found) > 1:
            ids = ", ".join(str(project["id"]) for project in found)
            raise UsageError(f"{self.url}: {len(found)} projects are called {name!r}; give an id: {ids}")
        return found[0] if found else None

    def create(self, title: str, config: str) -> LabelStudioProject:
        path = "/api/projects/"
        return self._checked(
            LabelStudioProject, path, self.call("POST", path, {"title": title, "label_config": config})
        )

    def people(self) -> dict[int, str]:
        """The names of annotators by id."""
        path = "/api/users/"
        users = self._checked(list[dict[str, Any]], path, self.call("GET", path))
        known = {}
        for user in users:
            number = self._checked(int, path, user.get("id"))
            known[number] = str(user.get("email") or user.get("username") or number)
        return known

    def tasks(self, project: int, since: str | None = None) -> Iterator[dict[str, Any]]:
        """The tasks with their annotations and predictions, by id; if given, only those changed after `since`
        (2026-01-31T12:00:00.000000Z)."""
        query: dict[str, Any] = {"ordering": ["tasks:id"]}
        if since:
            changed = {
                "filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime", "value": since,
            }  # fmt: skip
            query["filters"] = {"conjunction": "and", "items": [changed]}
        options = {"project": project, "fields": "all", "query": json.dumps(query)}
        for task in self._pages("/api/tasks/", "tasks", **options):
            self._checked(_RemoteTask, "/api/tasks/", task)
            yield task

    def add(self, project: int, tasks: Sequence[dict[str, Any]]) -> None:
        self.call("POST", f"/api/projects/{project}/import", list(tasks), commit_to_project="true")

    def _pages(self, path: str, field: str, **query: Any) -> Iterator[dict[str, Any]]:
        seen: set[Any] = set()
        page = 1
        while True:
            answer = self.call("GET", path, page=page, page_size=PAGE, **query)
            paged = self._checked(_TaskPage, path, answer)
            found = self._checked(list[dict[str, Any]], path, paged.get(field))
            ids = {str(one.get("id")) for one in found}
            if ids and ids <= seen:
                raise self._remote.unexpected(path, f"page {page} repeats earlier tasks", answer)
            yield from found
            seen, page = seen | ids, page + 1
            if not found or len(seen) >= paged.get("total", paged.get("count", 0)):
                return
