"""Who may do what: annotators, invitations, sessions.

An invitation is a link, signed (itsdangerous) and dated, that lets one person in, once. It carries a random nonce, and
a session is a random cookie; of both the store keeps a hash, so nobody gets in by what is written there. The signing
key lives in the store, so links outlive a restart of the server.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets

import sqlalchemy as sa
from itsdangerous import BadSignature, URLSafeSerializer
from sqlalchemy.orm import Session

from wukong.errors import UsageError
from wukong.feedback.store.database import insert_new
from wukong.feedback.store.tables import Annotator, Invitation, SessionRow, Setting, check_text, now

ROLES = ("annotator", "admin")
INVITATION_SECONDS = 7 * 86400.0
SESSION_SECONDS = 30 * 86400.0
LONGEST_NAME = 80


class InvitationError(UsageError):
    """An invitation that does not let anyone in."""


def signing_key(session: Session) -> str:
    """The store's secret, made on first use (which writes)."""
    if (known := session.scalar(sa.select(Setting.value).where(Setting.name == "signing_key"))) is not None:
        return known
    insert_new(session, Setting, [{"name": "signing_key", "value": secrets.token_urlsafe(32)}])
    return session.scalars(sa.select(Setting.value).where(Setting.name == "signing_key")).one()


def _signer(session: Session) -> URLSafeSerializer:
    return URLSafeSerializer(signing_key(session), salt="invitation")


def invite(
    session: Session,
    role: str = "annotator",
    *,
    note: str = "",
    annotator: Annotator | None = None,
    seconds: float = INVITATION_SECONDS,
) -> str:
    """The token of a new invitation.

    Args:
        note: for the admin's own list, such as whom it was sent to.
        annotator: lets an existing person in again, with their own role.
        seconds: for so long it is good.
    """
    if role not in ROLES:
        raise UsageError("the role is {role!r}; it must be one of {roles}", role=role, roles=", ".join(ROLES))
    check_text(note)
    row = Invitation(
        id=secrets.token_urlsafe(16),
        role=annotator.role if annotator else role,
        annotator_id=annotator.id if annotator else None,
        note=note[:LONGEST_NAME],
        expires_at=now() + seconds,
        used_at=None,
    )
    session.add(row)
    return _new_link(session, row)


def _new_link(session: Session, row: Invitation) -> str:
    nonce = secrets.token_urlsafe(32)
    row.nonce_hash = _hashed(nonce)
    session.flush()
    return str(_signer(session).dumps([row.id, row.expires_at, nonce]))


def renew(session: Session, invitation_id: str) -> str:
    """Another link for an invitation that was not used yet; the old one stops working.

    Raises InvitationError for one that was used, withdrawn or has expired.
    """
    row = session.get(Invitation, invitation_id)
    return _new_link(session, _good(row))


def needing_renewal(session: Session) -> int:
    """How many invitations an older version made whose links no longer work (see `Invitation.nonce_hash`)."""
    waiting = (Invitation.nonce_hash == "", Invitation.used_at.is_(None), Invitation.expires_at > now())
    return session.scalar(sa.select(sa.func.count()).select_from(Invitation).where(*waiting)) or 0


def invitation(session: Session, token: str) -> Invitation:
    """The invitation of a token, still unused. Raises InvitationError for one that is forged, expired or used."""
    try:
        name, expires_at, *nonce = _signer(session).loads(token)
    except (BadSignature, ValueError, TypeError):
        raise InvitationError("this invitation is not valid") from None
    row = session.get(Invitation, name)
    if row is not None and not nonce:
        raise InvitationError("this link was made by an older version; ask an admin for a new one")
    if row is not None and not hmac.compare_digest(row.nonce_hash, _hashed(str(nonce[0]))):
        raise InvitationError("this invitation is not valid")
    return _good(row, expires_at)


def _good(row: Invitation | None, expires_at: float = math.inf) -> Invitation:
    if row is None:
        raise InvitationError("this invitation was withdrawn")
    if row.used_at is not None:
        raise InvitationError("this invitation was used already")
    if now() > min(row.expires_at, expires_at):
        raise InvitationError("this invitation has expired")
    return row


def accept(session: Session, token: str, name: str) -> Annotator:
    """Uses the invitation up and returns the person it lets in.

    Raises:
        InvitationError: as `invitation`. UsageError: the name is empty, too long or taken.
    """
    row = invitation(session, token)
    # Two browsers may come at the same moment: the one that changes the row is let in.
    used = sa.update(Invitation).where(Invitation.id == row.id, Invitation.used_at.is_(None)).values(used_at=now())
    if session.execute(used).rowcount != 1:  # type: ignore[attr-defined]
        raise InvitationError("this invitation was used already")
    if row.annotator_id is not None:
        person = session.get_one(Annotator, row.annotator_id)
        if not person.active:
            raise InvitationError("this account is closed")
        return person
    return add_annotator(session, name, row.role)


def add_annotator(session: Session, name: str, role: str = "annotator") -> Annotator:
    """A new person. Raises UsageError for a name that is empty, too long or taken."""
    name = " ".join(name.split())
    check_text(name)
    if not 1 <= len(name) <= LONGEST_NAME:
        raise UsageError("a name has 1 to {n} characters", n=LONGEST_NAME)
    if session.scalar(sa.select(Annotator.id).where(Annotator.name == name)) is not None:
        raise UsageError("this name is taken; choose another")
    person = Annotator(name=name, role=role)
    session.add(person)
    session.flush()
    return person


def imported_annotator(session: Session, name: str) -> Annotator:
    """The person of this name, or a new one who cannot sign in, for judgments made elsewhere."""
    name = " ".join(name.split())[:LONGEST_NAME] or "unknown"
    check_text(name)
    insert_new(session, Annotator, [{"name": name, "role": "imported"}])
    return session.scalars(sa.select(Annotator).where(Annotator.name == name)).one()


# ----------------------------------------------------------------------------------------------------------- sessions


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def sign_in(session: Session, annotator: Annotator) -> str:
    """A new session's token, which goes into the browser's cookie and nowhere else."""
    session.execute(sa.delete(SessionRow).where(SessionRow.expires_at < now()))
    token = secrets.token_urlsafe(32)
    session.add(SessionRow(token_hash=_hashed(token), annotator_id=annotator.id, expires_at=now() + SESSION_SECONDS))
    session.flush()
    return token


_SIGNED_IN = (  # every request asks it: built once
    sa.select(SessionRow.expires_at, Annotator)
    .join(Annotator, Annotator.id == SessionRow.annotator_id)
    .where(SessionRow.token_hash == sa.bindparam("token_hash"))
)


def signed_in(session: Session, token: str) -> Annotator | None:
    """Whose session this is; None for one that is unknown or over, or of an account that was closed."""
    found = session.execute(_SIGNED_IN, {"token_hash": _hashed(token)}).first()
    if found is None or found[0] < now() or not found[1].active:
        return None
    return found[1]


def sign_out(session: Session, token: str) -> None:
    session.execute(sa.delete(SessionRow).where(SessionRow.token_hash == _hashed(token)))


def set_active(session: Session, annotator: Annotator, active: bool) -> None:
    """Opens or closes an account; closing ends its sessions."""
    annotator.active = active
    if not active:
        session.execute(sa.delete(SessionRow).where(SessionRow.annotator_id == annotator.id))
