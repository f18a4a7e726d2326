"""People and invitations."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from wukong.feedback.store import people
from wukong.feedback.store.database import Store
from wukong.feedback.store.labels import NotFoundError, current
from wukong.feedback.store.tables import Annotator, Invitation, Label, now
from wukong.web.access import Admin, Form
from wukong.web.inputs import Count, number, text, whole, writes
from wukong.web.rendering import paging, render_page
from wukong.web.state import Studio

pages = APIRouter(include_in_schema=False, prefix="/people")
ROUTERS = (pages,)
PAGE = 50


@pages.get("")
def everybody(request: Request, studio: Studio, person: Admin, page: Count = 1) -> HTMLResponse:
    return _people(request, studio.store, person, page)


def _people(request: Request, store: Store, person: Annotator, page: int = 1, link: str = "") -> HTMLResponse:
    with store.read() as session:
        counts = sa.select(Label.annotator_id, sa.func.count().label("n")).where(current()).group_by(Label.annotator_id)
        labels = counts.subquery()
        count = session.scalar(sa.select(sa.func.count()).select_from(Annotator)) or 0
        place = paging(page, count, PAGE)
        rows = session.execute(
            sa.select(Annotator, sa.func.coalesce(labels.c.n, 0))
            .outerjoin(labels, labels.c.annotator_id == Annotator.id)
            .order_by(Annotator.id)
            .limit(PAGE)
            .offset(place.before)
        ).all()
        waiting = session.scalars(
            sa.select(Invitation)
            .where(Invitation.used_at.is_(None), Invitation.expires_at > now())
            .order_by(Invitation.created_at.desc())
            .limit(PAGE)
        ).all()
    return render_page(
        request,
        "people",
        person=person,
        rows=rows,
        waiting=waiting,
        link=link,
        paging=place,
        count=count,
    )


@pages.post("/invite")
@writes
def invite(request: Request, studio: Studio, person: Admin, form: Form) -> HTMLResponse:
    """A new link, shown once: the store keeps no copy that would let anyone in."""
    with studio.store.write() as session:
        known = session.get(Annotator, whole(form, "annotator", 0))
        days = number(form, "days", 7, 0.01, 90)
        role = text(form, "role") or "annotator"
        token = people.invite(session, role, note=text(form, "note"), annotator=known, seconds=days * 86400)
    return _people(request, studio.store, person, link=str(request.base_url) + f"invite/{token}")


@pages.post("/renew")
@writes
def renew(request: Request, studio: Studio, person: Admin, form: Form) -> HTMLResponse:
    """Another link for an open invitation; the previous link stops working."""
    with studio.store.write() as session:
        token = people.renew(session, text(form, "invitation"))
    return _people(request, studio.store, person, link=str(request.base_url) + f"invite/{token}")


@pages.post("/withdraw")
@writes
def withdraw(studio: Studio, person: Admin, form: Form) -> Response:
    with studio.store.write() as session:
        session.execute(sa.delete(Invitation).where(Invitation.id == text(form, "invitation")))
    return RedirectResponse("/people", 303)


@pages.post("/active")
@writes
def active(studio: Studio, person: Admin, form: Form) -> Response:
    """Closes an account, or opens it again; an admin cannot lock themselves out."""
    with studio.store.write() as session:
        other = session.get(Annotator, whole(form, "annotator", 0))
        if other is None or other.id == person.id:
            raise NotFoundError("there is no other such person")
        people.set_active(session, other, text(form, "active") == "yes")
    return RedirectResponse("/people", 303)
