"""What fair claims of runs need: who answers a run's model, which runs wait, and a row for each limit."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("runs", sa.Column("provider", sa.Text(), nullable=True))
    waiting, in_progress = sa.text("status = 'queued'"), sa.text("status = 'in_progress'")
    op.create_index("runs_waiting", "runs", ["project_id", "seq"], unique=False, sqlite_where=waiting, postgresql_where=waiting)
    op.create_index(
        "runs_in_progress", "runs", ["project_id", "provider"], unique=False, sqlite_where=in_progress, postgresql_where=in_progress
    )
    op.create_table("claim_limits", sa.Column("name", sa.Text(), nullable=False), sa.PrimaryKeyConstraint("name"))
