"""Who sends a request, and whether it was meant.

- Sessions are a random cookie (HttpOnly, SameSite=Lax); the store keeps its hash.
- Every change carries a CSRF token, an HMAC of the cookie, in a header or a form field.
- Wrong secrets are counted from all senders together, since addresses and cookies can be made up.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Any

from fastapi import Depends, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData

from wukong.errors import UsageError
from wukong.feedback.store.people import signed_in
from wukong.feedback.store.tables import Annotator
from wukong.web.limits import TOO_MANY
from wukong.web.state import state_of

COOKIE = "wukong_session"
LARGEST_BODY = 256 * 1024
"""Bytes of a request that uploads no file."""


class ForbiddenError(UsageError):
    """The request is understood, and refused."""


class TooManyError(UsageError):
    """Too many wrong secrets were sent; everyone who sends one has to wait."""


class SignInError(UsageError):
    """Nobody is signed in."""


# --------------------------------------------------------------------------------------------------------- who it is


def maybe_person(request: Request) -> Annotator | None:
    token = request.cookies.get(COOKIE)
    if not token:
        return None
    state = state_of(request)
    with state.store.glance() as session:
        person = signed_in(session, token)
    if person is not None:
        state.limiter.know(token)
    return person


def person_of(request: Request) -> Annotator:
    """Who is signed in. Raises SignInError if nobody is."""
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
    key = state_of(request).signing_key.encode()
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


Person = Annotated[Annotator, Depends(person_of)]
Admin = Annotated[Annotator, Depends(admin_of)]
CHANGE = [Depends(csrf_header)]
"""Dependencies of every endpoint that a script sends a change to."""
Form = Annotated[FormData, Depends(csrf_form)]


# ------------------------------------------------------------------------------------------------------------- secrets

GUESSES = (0.1, 30.0)
"""Rate a second and burst of wrong secrets. Above it every secret is refused for a while, the right one too, so that
guessing reveals nothing."""


def check_secret(request: Request, given: str, *, needed: bool, of: str) -> None:
    """Compares the admin secret.

    Args:
        needed: whether a server without a secret refuses.
        of: what the wrong ones are counted for, from all senders together, since an address can be forged.

    Raises:
        ForbiddenError: it is wrong. TooManyError: too many were wrong.
    """
    state = state_of(request)
    secret = state.settings.admin_secret
    if secret is None and not needed:
        return
    if state.limiter.spent(f"secrets {of}", *GUESSES):
        raise TooManyError(TOO_MANY)
    if secret is None or not hmac.compare_digest(given.encode(), secret.encode()):
        failed_secret(request, of)
        raise ForbiddenError("this is not the admin secret")


def failed_secret(request: Request, of: str) -> None:
    """Counts a wrong secret. Raises TooManyError when there were too many."""
    if not state_of(request).limiter.allows(f"secrets {of}", *GUESSES):
        raise TooManyError(TOO_MANY)
