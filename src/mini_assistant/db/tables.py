"""The tables. A row holds an object's wire JSON (`body`) beside the columns that are searched or guarded.

`seq` grows with every insert and breaks the ties of `created_at`. Where single objects can be deleted, SQLite is told not to give a
`seq` twice (`sqlite_autoincrement`): it is the place of deleted cursors. Every row that a client can name has its `project_id`.
`db/migrations` brings a database to this shape; a test compares the two.
"""

import sqlalchemy as sa

metadata = sa.MetaData()


def _object_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    ]


def _thread_column() -> sa.Column[object]:
    return sa.Column("thread_id", sa.Text, sa.ForeignKey("threads.id", ondelete="CASCADE"), nullable=False)


def _run_column() -> sa.Column[object]:
    return sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False)


assistants = sa.Table(
    "assistants",
    metadata,
    *_object_columns(),
    sa.Index("assistants_in_order", "project_id", "created_at", "seq"),
    sqlite_autoincrement=True,
)

threads = sa.Table(
    "threads",
    metadata,
    *_object_columns(),
    sa.Index("threads_in_order", "project_id", "created_at", "seq"),
    sqlite_autoincrement=True,
)

messages = sa.Table(
    "messages",
    metadata,
    *_object_columns(),
    _thread_column(),
    sa.Column("run_id", sa.Text),
    sa.Column("role", sa.Text, nullable=False),
    sa.Index("messages_in_order", "thread_id", "created_at", "seq"),
    sqlite_autoincrement=True,
)

runs = sa.Table(
    "runs",
    metadata,
    *_object_columns(),
    _thread_column(),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    # Grows with every event of the run: the next event's number, and the guard of every write.
    sa.Column("version", sa.BigInteger, nullable=False),
    # Grows with every claim: writes of a worker that has lost the run are refused.
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
    sa.Index("runs_in_order", "thread_id", "created_at", "seq"),
)


def status_in(*statuses: str) -> sa.ColumnElement[bool]:
    """Whether a run has one of these statuses; spelled out in the statement, so that partial indexes serve it."""
    return runs.c.status.in_([sa.literal_column(f"'{status}'") for status in statuses])


run_is_active = status_in("queued", "in_progress", "requires_action", "cancelling")
"""Whether a run locks its thread."""

_active_text = sa.text("status IN ('queued', 'in_progress', 'requires_action', 'cancelling')")
sa.Index("runs_one_active_per_thread", runs.c.thread_id, unique=True, sqlite_where=_active_text, postgresql_where=_active_text)
sa.Index(
    "runs_with_events",
    runs.c.ended_at,
    sqlite_where=sa.text("ended_at IS NOT NULL"),
    postgresql_where=sa.text("ended_at IS NOT NULL"),
)

run_steps = sa.Table(
    "run_steps",
    metadata,
    *_object_columns(),
    _run_column(),
    # The model turn that the step belongs to; what that turn cost, known before the wire object may show it; and, by call id, the
    # texts that the model reads for hosted tools. With them the next prompt is rebuilt from rows alone.
    sa.Column("turn", sa.BigInteger, nullable=False),
    sa.Column("usage", sa.Text),
    sa.Column("outputs", sa.Text),
    sa.Index("run_steps_in_order", "run_id", "created_at", "seq"),
)

run_events = sa.Table(
    "run_events",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

deleted_cursors = sa.Table(
    "deleted_cursors",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("deleted_at", sa.BigInteger, nullable=False),
    sa.Index("deleted_cursors_by_age", "deleted_at"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("request_hash", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    # For streamed calls: where the answer's events begin.
    sa.Column("run_id", sa.Text),
    sa.Column("after_seq", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index("idempotency_keys_by_age", "created_at"),
)
