"""Events of runs on their way from the process that writes them to the others; in PostgreSQL only."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
