"""What everybody sees: the door, the list of projects, the label page."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy.orm import Session

from wukong.errors import UsageError
from wukong.feedback.store import people
from wukong.feedback.store.queue import progress
from wukong.feedback.store.tables import Annotator, Invitation, Project
from wukong.feedback.store.tasks import guidelines
from wukong.feedback.store.values import FLAGS, SKIP_REASONS
from wukong.web.access import (
    COOKIE,
    AStore,
    ForbiddenError,
    Form,
    Person,
    TooManyError,
    check_secret,
    failed_secret,
    settings_of,
)
from wukong.web.api import project_or_404
from wukong.web.inputs import Id, Name, text, writes
from wukong.web.texts import LANGUAGES

router = APIRouter(include_in_schema=False)
YEAR = 365 * 86400


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


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    from wukong.web.app import render  # the application is made of this module

    return render(request, template, status, **values)


@router.get("/")
def home(request: Request, store: AStore, person: Person) -> HTMLResponse:
    with store.read() as session:
        offered = sa.true() if person.role == "admin" else Project.overlap > 0
        found = session.scalars(sa.select(Project).where(offered).order_by(Project.id.desc())).all()
        rows = [{"project": project, **progress(session, project.id, person)} for project in found]
    return page(request, "home", person=person, rows=rows)


@router.get("/label/{project_id}")
def label(request: Request, project_id: Id, store: AStore, person: Person) -> HTMLResponse:
    with store.read() as session:
        project = project_or_404(session, project_id)
        version = guidelines(session, project_id)
    return page(request, "label", person=person, project=project, guidelines=version, flags=FLAGS, reasons=SKIP_REASONS)


# ----------------------------------------------------------------------------------------------------------- the door


@router.get("/invite/{token}")
def invitation(request: Request, token: Name, store: AStore) -> HTMLResponse:
    """Only shows the door: programs that preview links must not use an invitation up."""
    with store.read() as session:
        row = _invitation(request, session, token)
        known = session.get(Annotator, row.annotator_id) if row.annotator_id else None
    return _door(request, "invite", role=row.role, known=known, error=None)


@router.post("/invite/{token}")
@writes
def accept(request: Request, token: Name, store: AStore, form: Form) -> Response:
    with store.read() as session:
        row = _invitation(request, session, token)
        known = session.get(Annotator, row.annotator_id) if row.annotator_id else None
        role = row.role
    try:
        if role == "admin":
            check_secret(request, text(form, "secret"), needed=False, of=f"invitation {row.id}")
        with store.write() as session:
            person = people.accept(session, token, text(form, "name"))
            cookie = people.sign_in(session, person)
    except (people.InvitationError, TooManyError):
        raise
    except UsageError as error:
        return _door(request, "invite", 400, role=role, known=known, error=error)
    return _let_in(request, cookie)


@router.get("/login")
def login(request: Request) -> HTMLResponse:
    return _door(request, "login", error=None)


@router.post("/login")
@writes
def login_with_secret(request: Request, store: AStore, form: Form) -> Response:
    """Admins come in by their name and the server's secret, where it has one."""
    try:
        check_secret(request, text(form, "secret"), needed=True, of="everybody")
        with store.write() as session:
            name = " ".join(text(form, "name").split())
            person = session.scalar(sa.select(Annotator).where(Annotator.name == name, Annotator.role == "admin"))
            if person is None or not person.active:
                raise ForbiddenError("there is no admin of this name")
            cookie = people.sign_in(session, person)
    except ForbiddenError as error:
        return _door(request, "login", 403, error=error)
    return _let_in(request, cookie)


def _door(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    return page(request, template, status, asks_secret=settings_of(request).admin_secret is not None, **values)


def _invitation(request: Request, session: Session, token: str) -> Invitation:
    """Raises InvitationError; TooManyError instead, when many links were tried that are none."""
    try:
        return people.invitation(session, token)
    except people.InvitationError:
        failed_secret(request, "links")
        raise


def _let_in(request: Request, cookie: str) -> Response:
    answer = RedirectResponse("/", 303)
    secure = settings_of(request).secure
    seconds = int(people.SESSION_SECONDS)
    answer.set_cookie(COOKIE, cookie, max_age=seconds, httponly=True, samesite="lax", secure=secure)
    return answer


@router.post("/logout")
@writes
def logout(request: Request, store: AStore, form: Form) -> Response:
    with store.write() as session:
        people.sign_out(session, request.cookies.get(COOKIE, ""))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


@router.post("/preferences")
def preferences(request: Request, form: Form) -> Response:
    """Language and theme, kept in the browser."""
    back = text(form, "back") or "/"
    local = back.startswith("/") and not back.startswith(("//", "/\\"))
    answer = RedirectResponse(back if local else "/", 303)
    if (language := text(form, "language")) in LANGUAGES:
        answer.set_cookie("wukong_language", language, max_age=YEAR, samesite="lax")
    if (theme := text(form, "theme")) in ("light", "dark", "auto"):
        answer.set_cookie("wukong_theme", theme, max_age=YEAR, samesite="lax")
    return answer
