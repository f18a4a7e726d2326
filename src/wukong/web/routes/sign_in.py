"""Invitations, signing in and out, and what a browser remembers."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy.orm import Session

from wukong.errors import UsageError
from wukong.feedback.store import people
from wukong.feedback.store.tables import Annotator, Invitation
from wukong.language import LANGUAGES
from wukong.web.access import COOKIE, ForbiddenError, Form, TooManyError, check_secret, failed_secret
from wukong.web.inputs import Name, text, writes
from wukong.web.rendering import render_page
from wukong.web.state import Studio, state_of

pages = APIRouter(include_in_schema=False)
ROUTERS = (pages,)
YEAR = 365 * 86400


@pages.get("/invite/{token}")
def invitation(request: Request, token: Name, studio: Studio) -> HTMLResponse:
    """Only shows the form: programs that preview links must not use an invitation up."""
    with studio.store.read() as session:
        row = _invitation(request, session, token)
        known = session.get(Annotator, row.annotator_id) if row.annotator_id else None
    return _door(request, "invite", role=row.role, known=known, error=None)


@pages.post("/invite/{token}")
@writes
def accept(request: Request, token: Name, studio: Studio, form: Form) -> Response:
    with studio.store.read() as session:
        row = _invitation(request, session, token)
        known = session.get(Annotator, row.annotator_id) if row.annotator_id else None
        role = row.role
    try:
        if role == "admin":
            check_secret(request, text(form, "secret"), needed=False, of=f"invitation {row.id}")
        with studio.store.write() as session:
            person = people.accept(session, token, text(form, "name"))
            cookie = people.sign_in(session, person)
    except (people.InvitationError, TooManyError):
        raise
    except UsageError as error:
        return _door(request, "invite", 400, role=role, known=known, error=error)
    return _let_in(request, cookie)


@pages.get("/login")
def login(request: Request) -> HTMLResponse:
    return _door(request, "login", error=None)


@pages.post("/login")
@writes
def login_with_secret(request: Request, studio: Studio, form: Form) -> Response:
    """Admins come in by their name and the server's secret, where it has one."""
    try:
        check_secret(request, text(form, "secret"), needed=True, of="everybody")
        with studio.store.write() as session:
            name = " ".join(text(form, "name").split())
            person = session.scalar(sa.select(Annotator).where(Annotator.name == name, Annotator.role == "admin"))
            if person is None or not person.active:
                raise ForbiddenError("there is no admin of this name")
            cookie = people.sign_in(session, person)
    except ForbiddenError as error:
        return _door(request, "login", 403, error=error)
    return _let_in(request, cookie)


def _door(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    return render_page(
        request, template, status, asks_secret=state_of(request).settings.admin_secret is not None, **values
    )


def _invitation(request: Request, session: Session, token: str) -> Invitation:
    """Raises InvitationError; TooManyError instead, when many invalid links were tried."""
    try:
        return people.invitation(session, token)
    except people.InvitationError:
        failed_secret(request, "links")
        raise


def _let_in(request: Request, cookie: str) -> Response:
    answer = RedirectResponse("/", 303)
    secure = state_of(request).settings.secure
    seconds = int(people.SESSION_SECONDS)
    answer.set_cookie(COOKIE, cookie, max_age=seconds, httponly=True, samesite="lax", secure=secure)
    return answer


@pages.post("/logout")
@writes
def logout(request: Request, studio: Studio, form: Form) -> Response:
    with studio.store.write() as session:
        people.sign_out(session, request.cookies.get(COOKIE, ""))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


@pages.post("/preferences")
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
