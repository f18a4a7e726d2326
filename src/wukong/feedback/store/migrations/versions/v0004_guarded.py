"""Invitations keep a hash of their link's nonce; judgments are not replaced either; drafts that no page can read go.

The nonce of an older invitation is unknown: whoever could read the database could also have made its link, so it lets
nobody in any more. The row stays, and an admin renews its link on the page of people.
"""

import json

import sqlalchemy as sa
from alembic import op

from wukong.strict_json import problem_in

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("invitations", sa.Column("nonce_hash", sa.String(length=64), nullable=False, server_default=""))
    _never_replaced("labels", ("id", "client_id", "supersedes"))
    _never_replaced("votes", ("id", "client_id"))
    _without_broken_drafts()


def _never_replaced(table: str, unique: tuple[str, ...]) -> None:
    """SQLite's REPLACE INTO deletes the row in its way without asking the trigger that refuses deletions, unless
    recursive_triggers is on; PostgreSQL's TRUNCATE asks no trigger of rows."""
    if op.get_bind().dialect.name == "sqlite":
        taken = " OR ".join(f"{column} = NEW.{column}" for column in unique)
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {taken}) "
            f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
        )
        return
    op.execute(
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )


def _without_broken_drafts() -> None:
    """A draft with half a character could be stored, and made every page fail that was to show it."""
    connection = op.get_bind()
    drafts = connection.execute(
        sa.text("SELECT id, CAST(draft AS TEXT) FROM assignments WHERE draft IS NOT NULL")
    ).all()  # fmt: skip
    for assignment, draft in drafts:
        if problem_in(json.loads(draft), nul=False) is not None:
            connection.execute(sa.text("UPDATE assignments SET draft = NULL WHERE id = :id"), {"id": assignment})
