"""The application: its parts, its errors as pages or JSON, its templates."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import wukong
from wukong.errors import RunError, Text, UsageError, WukongError
from wukong.feedback.store.database import Store
from wukong.feedback.store.labels import ConflictError, NotFoundError
from wukong.feedback.store.people import InvitationError
from wukong.feedback.store.tables import Annotator
from wukong.web import admin, api, arena, chat, pages, run_pages, writing
from wukong.web.access import (
    ForbiddenError,
    Guard,
    RateLimiter,
    Settings,
    SignInError,
    TooManyError,
    csrf_token,
    load_signing_key,
    maybe_person,
)
from wukong.web.jobs import Jobs
from wukong.web.models import Models
from wukong.web.texts import LANGUAGES, language_of, script_texts, translate

HERE = Path(__file__).parent
STATUS: dict[type[Exception], int] = {
    SignInError: 401,
    ForbiddenError: 403,
    InvitationError: 403,
    TooManyError: 429,
    NotFoundError: 404,
    ConflictError: 409,
    RunError: 503,
}


def create_app(store: Store, settings: Settings | None = None) -> FastAPI:
    """The studio over a store.

    Args:
        store: an open store; whoever opened it closes it.
        settings: how it is served; by default on the loopback, without a run.
    """
    settings = settings or Settings()
    app = FastAPI(
        title="Wukong studio",
        version=wukong.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        telemetry={"tracing": False, "metrics": False, "logs": False},  # it looks for a collector in every request
    )
    app.state.store, app.state.settings = store, settings
    app.state.signing_key = load_signing_key(store)
    app.state.jobs = Jobs()
    app.state.limiter = RateLimiter()
    app.state.models = Models(settings.run_dir, settings.models)
    app.state.writings = writing.Writings()
    app.state.ratings = None
    app.state.templates = _templates()
    app.include_router(api.router)
    app.include_router(pages.router)
    app.include_router(admin.router)
    app.include_router(writing.router)
    app.include_router(chat.router)
    app.include_router(arena.router)
    app.include_router(run_pages.router)
    app.include_router(run_pages.data)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_middleware(Guard, settings=settings, limiter=app.state.limiter)
    app.add_exception_handler(WukongError, _wukong_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(sa.exc.IntegrityError, _raced)
    app.add_exception_handler(ClientDisconnect, _left)
    return app


# -------------------------------------------------------------------------------------------------------------- pages


def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found.filters["markdown"] = _markdown
    found.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    found.filters["when"] = lambda seconds: time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    found.filters["percent"] = lambda x: "–" if x is None else f"{100 * x:.0f} %"
    found.filters["figure"] = lambda x: "–" if x is None else f"{x:.2f}".replace("-", "−")
    return found


def _markdown(text: str) -> Markup:
    """Markdown without HTML: what looks like a tag is shown as text, and only harmless links become links."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))


def render(request: Request, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """A page, in the language and the theme of whoever asked."""
    language = language_of(request)
    theme = request.cookies.get("wukong_theme", "")
    person: Annotator | None = values.pop("person", None) or maybe_person(request)

    def t(text: str | WukongError, /, **more: Any) -> str:
        return translate(language, text, **more)

    page = request.app.state.templates.get_template(f"{template}.html.jinja").render(
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
    return HTMLResponse(page, status)


# ------------------------------------------------------------------------------------------------------------- errors


def _answer(request: Request, status: int, said: str | WukongError) -> Response:
    message = translate(language_of(request), said)
    message = message.encode("utf-8", "backslashreplace").decode()  # it may repeat what was sent
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message}, status)
    if status == 401:
        return RedirectResponse("/login", 303)
    return render(request, "message", status, message=message)


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
    """The client hung up while it sent its request: nobody reads an answer."""
    return Response(status_code=499)


async def _raced(request: Request, error: Exception) -> Response:
    """Two requests wanted the same name or client id at the same moment; the other one has it."""
    return _answer(request, 409, "somebody else did this at the same moment; reload the page")
