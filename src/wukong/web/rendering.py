"""Pages in the reader's language and theme, and errors as pages or JSON."""

from __future__ import annotations

import json
import time
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import wukong
from wukong.errors import RunError, Text, UsageError, WukongError
from wukong.feedback.store.labels import ConflictError, NotFoundError
from wukong.feedback.store.people import InvitationError
from wukong.feedback.store.tables import Annotator
from wukong.language import LANGUAGES, recognised, translate
from wukong.web.access import ForbiddenError, SignInError, TooManyError, csrf_token, maybe_person
from wukong.web.language import HERE, language_of, script_texts

STATUS: dict[type[Exception], int] = {
    SignInError: 401,
    ForbiddenError: 403,
    InvitationError: 403,
    TooManyError: 429,
    NotFoundError: 404,
    ConflictError: 409,
    RunError: 503,
}


@cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found.filters["markdown"] = _markdown
    found.filters["recognised"] = recognised
    found.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    found.filters["when"] = lambda seconds: time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    found.filters["percent"] = lambda x: "–" if x is None else f"{100 * x:.0f} %"
    found.filters["figure"] = lambda x: "–" if x is None else f"{x:.2f}".replace("-", "−")
    return found


def _markdown(text: str) -> Markup:
    """Markdown without HTML: what looks like a tag is shown as text, and only harmless links become links."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))


def render_page(request: Request, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """A page, in the language and the theme of the reader."""
    language = language_of(request)
    theme = request.cookies.get("wukong_theme", "")
    person: Annotator | None = values.pop("person", None) or maybe_person(request)

    def t(text: str | WukongError, /, **more: Any) -> str:
        return translate(language, text, **more)

    page = (
        _templates()
        .get_template(f"{template}.html.jinja")
        .render(
            t=t,
            language=language,
            languages=LANGUAGES,
            theme=theme if theme in ("light", "dark") else "",
            person=person,
            csrf=csrf_token(request),
            path=request.url.path,
            script_texts=script_texts(language),
            version=wukong.__version__,
            **values,
        )
    )
    return HTMLResponse(page, status)


class Paging(NamedTuple):
    """Where a list's page is: `before` rows come before it."""

    page: int
    pages: int
    before: int


def paging(asked: int, count: int, size: int) -> Paging:
    """The page that was asked for of `count` rows, or the nearest that there is."""
    pages = max(1, -(-count // size))
    page = max(1, min(asked, pages))
    return Paging(page, pages, (page - 1) * size)


# ------------------------------------------------------------------------------------------------------------- errors


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(WukongError, _wukong_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(sa.exc.IntegrityError, _raced)
    app.add_exception_handler(ClientDisconnect, _left)


def _answer(request: Request, status: int, said: str | WukongError) -> Response:
    message = translate(language_of(request), said)
    message = message.encode("utf-8", "backslashreplace").decode()  # it may repeat what was sent
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message}, status)
    if status == 401:
        return RedirectResponse("/login", 303)
    return render_page(request, "message", status, message=message)


async def _wukong_error(request: Request, error: Exception) -> Response:
    found = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    assert isinstance(error, WukongError)
    return _answer(request, found or (400 if isinstance(error, UsageError) else 500), error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "there is no such page" if error.status_code == 404 else error.detail
    answer = _answer(request, error.status_code, message)
    answer.headers.update(error.headers or {})
    return answer


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    said = first.get("ctx", {}).get("error")  # of ours, with its template
    problem = Text(said.args[0]) if isinstance(said, ValueError) else first["msg"]
    return _answer(
        request, 422, Text("{place}: {problem}", place=".".join(map(str, first["loc"][1:])), problem=problem)
    )


async def _left(request: Request, error: Exception) -> Response:
    """The client hung up while it sent its request, so no answer can reach it."""
    return Response(status_code=499)


async def _raced(request: Request, error: Exception) -> Response:
    """Two requests wanted the same name or client id at the same moment; the other one has it."""
    return _answer(request, 409, "somebody else did this at the same moment; reload the page")
