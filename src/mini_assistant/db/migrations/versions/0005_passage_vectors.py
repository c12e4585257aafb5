"""Vectors of large vector stores for pgvector; in PostgreSQL only."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
