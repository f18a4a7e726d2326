"""An index over the ring from which tasks are drawn."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index("ix_tasks_ring", "tasks", ["project_id", "is_gold", "open", "priority", "shuffle"], unique=False)
