"""Keys, limits, usage and audit of projects, and webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("runs", sa.Column("traceparent", sa.Text(), nullable=True))
    op.add_column("idempotency_keys", sa.Column("object_id", sa.Text(), nullable=True))
    op.add_column("idempotency_keys", sa.Column("thread_id", sa.Text(), nullable=True))
    op.create_index("idempotency_keys_of_object", "idempotency_keys", ["object_id"], unique=False)
    op.create_index("idempotency_keys_of_thread", "idempotency_keys", ["thread_id"], unique=False)
    op.create_index("files_by_size", "files", ["project_id", "size_bytes"], unique=False)
    _create_keys_and_limits()
    _create_usage()
    _create_audit_log()
    _create_webhooks()


def _create_keys_and_limits() -> None:
    op.create_table(
        "api_keys",
        sa.Column("seq", _NUMBER, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("prefix"),
    )
    op.create_table(
        "rate_limits",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("left", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def _usage_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("tool_calls", sa.BigInteger(), nullable=False),
        sa.Column("sandbox_seconds", sa.Float(), nullable=False),
    ]


def _create_usage() -> None:
    op.create_table(
        "usage_entries",
        sa.Column("seq", _NUMBER, nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        *_usage_columns(),
        sa.PrimaryKeyConstraint("seq"),
        sqlite_autoincrement=True,
    )
    op.create_index("usage_entries_of_project", "usage_entries", ["project_id"], unique=False)
    op.create_table(
        "usage_days",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        *_usage_columns(),
        sa.Column("storage_bytes", sa.BigInteger(), nullable=False),
        sa.Column("vector_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "day"),
        sqlite_with_rowid=False,
    )


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("seq", _NUMBER, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_log_in_order", "audit_log", ["created_at", "seq"], unique=False)


def _create_webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("seq", _NUMBER, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("webhooks_in_order", "webhooks", ["project_id", "created_at", "seq"], unique=False)
    op.create_table(
        "webhook_events",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("project_id", "type", "webhook_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("seq", _NUMBER, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.Float(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("webhook_deliveries_of_webhook", "webhook_deliveries", ["webhook_id", "seq"], unique=False)
    is_due = sa.text("next_at IS NOT NULL")
    op.create_index("webhook_deliveries_due", "webhook_deliveries", ["next_at"], unique=False, sqlite_where=is_due, postgresql_where=is_due)
