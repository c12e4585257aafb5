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
    # Who answers its model; null for a name that no provider serves, and in rows of older versions.
    sa.Column("provider", sa.Text),
    # The trace that the request which made the run belongs to, as W3C's `traceparent`.
    sa.Column("traceparent", sa.Text),
    sa.Index("runs_in_order", "thread_id", "created_at", "seq"),
)


def status_in(*statuses: str) -> sa.ColumnElement[bool]:
    """Whether a run has one of these statuses; spelled out in the statement, so that partial indexes serve it."""
    return runs.c.status.in_([sa.literal_column(f"'{status}'") for status in statuses])


run_is_active = status_in("queued", "in_progress", "requires_action", "cancelling")
"""Whether a run locks its thread."""

_queued_text = sa.text("status = 'queued'")
sa.Index("runs_waiting", runs.c.project_id, runs.c.seq, sqlite_where=_queued_text, postgresql_where=_queued_text)
_in_progress_text = sa.text("status = 'in_progress'")
sa.Index("runs_in_progress", runs.c.project_id, runs.c.provider, sqlite_where=_in_progress_text, postgresql_where=_in_progress_text)
_active_text = sa.text("status IN ('queued', 'in_progress', 'requires_action', 'cancelling')")
sa.Index("runs_one_active_per_thread", runs.c.thread_id, unique=True, sqlite_where=_active_text, postgresql_where=_active_text)
sa.Index(
    "runs_with_events",
    runs.c.ended_at,
    sqlite_where=sa.text("ended_at IS NOT NULL"),
    postgresql_where=sa.text("ended_at IS NOT NULL"),
)

# A row for each limit of what is there at a time: runs in progress or waiting, bytes, webhooks. Who adds to it touches its row first, so
# that all count one after the other; and so do sweeps that must not count the same twice.
claim_limits = sa.Table("claim_limits", metadata, sa.Column("name", sa.Text, primary_key=True))

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
    # The object that the answer shows, and its thread: a deleted one's answer goes soon, too.
    sa.Column("object_id", sa.Text),
    sa.Column("thread_id", sa.Text),
    sa.Index("idempotency_keys_by_age", "created_at"),
    sa.Index("idempotency_keys_of_object", "object_id"),
    sa.Index("idempotency_keys_of_thread", "thread_id"),
)


files = sa.Table(
    "files",
    metadata,
    *_object_columns(),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    # Where the blob store keeps the bytes.
    sa.Column("blob_key", sa.Text, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Index("files_in_order", "project_id", "created_at", "seq"),
    sa.Index("files_by_size", "project_id", "size_bytes"),
    sqlite_autoincrement=True,
)
_expires_text = sa.text("expires_at IS NOT NULL")
sa.Index("files_by_expiry", files.c.expires_at, sqlite_where=_expires_text, postgresql_where=_expires_text)

uploads = sa.Table(
    "uploads",
    metadata,
    *_object_columns(),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Index("uploads_by_expiry", "expires_at"),
)

upload_parts = sa.Table(
    "upload_parts",
    metadata,
    *_object_columns(),
    sa.Column("upload_id", sa.Text, sa.ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("blob_key", sa.Text, nullable=False),
    sa.Index("upload_parts_of_upload", "upload_id", "seq"),
)

# Blobs that no row needs any more. They are deleted after the commit that dropped the row, or by the next sweep when that was cut off.
unneeded_blobs = sa.Table(
    "unneeded_blobs",
    metadata,
    sa.Column("blob_key", sa.Text, primary_key=True),
    sa.Column("since", sa.BigInteger, nullable=False),
)

vector_stores = sa.Table(
    "vector_stores",
    metadata,
    *_object_columns(),
    # The wire object's counters, beside a body that holds everything else: a file that comes to its end changes one row, not one text.
    sa.Column("files_in_progress", sa.BigInteger, nullable=False),
    sa.Column("files_completed", sa.BigInteger, nullable=False),
    sa.Column("files_failed", sa.BigInteger, nullable=False),
    sa.Column("files_cancelled", sa.BigInteger, nullable=False),
    sa.Column("usage_bytes", sa.BigInteger, nullable=False),
    sa.Column("last_active_at", sa.BigInteger, nullable=False),
    sa.Column("expires_after_days", sa.BigInteger),
    sa.Column("expires_at", sa.BigInteger),
    # Grows with everything that changes what a search may find.
    sa.Column("revision", sa.BigInteger, nullable=False),
    # What the vectors of this store were made with; null until the first file is indexed.
    sa.Column("embedder", sa.Text),
    sa.Column("dimension", sa.BigInteger),
    sa.Index("vector_stores_in_order", "project_id", "created_at", "seq"),
    sqlite_autoincrement=True,
)
_is_indexed_and_expires_text = sa.text("embedder IS NOT NULL AND expires_at IS NOT NULL")
sa.Index(
    "vector_stores_by_expiry",
    vector_stores.c.expires_at,
    sqlite_where=_is_indexed_and_expires_text,
    postgresql_where=_is_indexed_and_expires_text,
)


def _vector_store_column() -> sa.Column[object]:
    return sa.Column("vector_store_id", sa.Text, sa.ForeignKey("vector_stores.id", ondelete="CASCADE"), nullable=False)


vector_store_file_batches = sa.Table(
    "vector_store_file_batches",
    metadata,
    *_object_columns(),
    _vector_store_column(),
    sa.Column("is_cancelled", sa.Boolean, nullable=False),
    sa.Column("files_in_progress", sa.BigInteger, nullable=False),
    sa.Column("files_completed", sa.BigInteger, nullable=False),
    sa.Column("files_failed", sa.BigInteger, nullable=False),
    sa.Column("files_cancelled", sa.BigInteger, nullable=False),
    sa.Index("vector_store_file_batches_of_store", "vector_store_id"),
)

vector_store_files = sa.Table(
    "vector_store_files",
    metadata,
    # The `id` on the wire is the file's, which may be in many stores; `seq` names this row alone and is never given twice.
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    _vector_store_column(),
    sa.Column("batch_id", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("usage_bytes", sa.BigInteger, nullable=False),
    # The ingest task of the file: who works on it, until when, for which time; it is tried again not before `lease_until`.
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("summary", sa.Text),
    # The JSON of the body's last member, which clients change while the ingest task changes the others.
    sa.Column("attributes", sa.Text, nullable=False),
    sa.Index("vector_store_files_once", "vector_store_id", "id", unique=True),
    sa.Index("vector_store_files_in_order", "vector_store_id", "created_at", "seq"),
    sa.Index("vector_store_files_of_batch", "batch_id"),
    sa.Index("vector_store_files_of_file", "id"),
    sqlite_autoincrement=True,
)
_is_ingesting_text = sa.text("status = 'in_progress'")
sa.Index(
    "vector_store_files_to_ingest",
    vector_store_files.c.lease_until,
    sqlite_where=_is_ingesting_text,
    postgresql_where=_is_ingesting_text,
)


def _vector_store_file_column() -> sa.Column[object]:
    return sa.Column("file_seq", sa.BigInteger, sa.ForeignKey("vector_store_files.seq", ondelete="CASCADE"), nullable=False)


# Which assistants and threads may list a file for code_interpreter: at least those that do, so that a deleted file finds its lists.
code_file_owners = sa.Table(
    "code_file_owners",
    metadata,
    sa.Column("file_id", sa.Text, primary_key=True),
    sa.Column("owner_id", sa.Text, primary_key=True),
    sa.Column("project_id", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

# One row for each attribute; of the three values one is set. Filters of a search are conditions on these rows.
vector_store_file_attributes = sa.Table(
    "vector_store_file_attributes",
    metadata,
    _vector_store_file_column(),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("text_value", sa.Text),
    sa.Column("number_value", sa.Float),
    sa.Column("boolean_value", sa.Boolean),
    sa.PrimaryKeyConstraint("file_seq", "key"),
    sqlite_with_rowid=False,
)

passages = sa.Table(
    "passages",
    metadata,
    _vector_store_file_column(),
    sa.Column("ordinal", sa.BigInteger, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    # Half-open, in code points of the parsed text.
    sa.Column("start_index", sa.BigInteger, nullable=False),
    sa.Column("end_index", sa.BigInteger, nullable=False),
    # From 1; null for files without pages.
    sa.Column("page", sa.BigInteger),
    sa.PrimaryKeyConstraint("file_seq", "ordinal"),
)

# What a file is about, as a vector of its summary: f16, little-endian. Files whose summary is near to a query are preferred.
summary_vectors = sa.Table(
    "summary_vectors",
    metadata,
    sa.Column(
        "file_seq", sa.BigInteger, sa.ForeignKey("vector_store_files.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False
    ),
    sa.Column("vector", sa.LargeBinary, nullable=False),
)

# The searchable form of at most 8,192 passages of one file: vectors and postings as blobs. Written once, never changed.
segments = sa.Table(
    "segments",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    _vector_store_column(),
    _vector_store_file_column(),
    sa.Column("first_ordinal", sa.BigInteger, nullable=False),
    sa.Column("passage_count", sa.BigInteger, nullable=False),
    # Which words postings are made of; a newer analyzer reads older segments as they were written.
    sa.Column("analyzer", sa.BigInteger, nullable=False),
    sa.Column("vectors", sa.LargeBinary, nullable=False),
    sa.Column("postings", sa.LargeBinary, nullable=False),
    sa.Index("segments_of_store", "vector_store_id", "seq"),
    sa.Index("segments_of_file", "file_seq"),
    sqlite_autoincrement=True,
)

# Keys of clients. The key itself is nowhere: `hash` is the SHA-256 of the whole key, and `prefix` its part that says which row it is.
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("prefix", sa.Text, nullable=False, unique=True),
    sa.Column("hash", sa.Text, nullable=False),
    # The scopes with spaces between them.
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
)

# What a project may still do of a kind in this minute (`requests team-a`), as a bucket that fills up again: what was in it, and when.
rate_limits = sa.Table(
    "rate_limits",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("left", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
)


def _usage_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("runs", sa.BigInteger, nullable=False),
        sa.Column("tool_calls", sa.BigInteger, nullable=False),
        sa.Column("sandbox_seconds", sa.Float, nullable=False),
    ]


# Usage as it comes about, written with what it is about. Sweeps add it to its day, so that nobody waits for the row of a day.
usage_entries = sa.Table(
    "usage_entries",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    *_usage_columns(),
    sa.Index("usage_entries_of_project", "project_id"),
    sqlite_autoincrement=True,
)

usage_days = sa.Table(
    "usage_days",
    metadata,
    sa.Column("project_id", sa.Text, primary_key=True),
    # UTC, as 2026-11-25.
    sa.Column("day", sa.Text, primary_key=True),
    *_usage_columns(),
    # The most that sweeps have seen in the day.
    sa.Column("storage_bytes", sa.BigInteger, nullable=False),
    sa.Column("vector_bytes", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Who did what that cannot be undone, or that lets somebody in.
audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    # The id of the key, `settings` for a key of the settings, `nobody` without a key, `command` for the command line, `retention`.
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("object_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Index("audit_log_in_order", "created_at", "seq"),
    sqlite_autoincrement=True,
)

webhooks = sa.Table(
    "webhooks",
    metadata,
    *_object_columns(),
    # What the calls are signed with; the wire object does not show it.
    sa.Column("secret", sa.Text, nullable=False),
    sa.Index("webhooks_in_order", "project_id", "created_at", "seq"),
    sqlite_autoincrement=True,
)

# Which types of events a webhook is called for.
webhook_events = sa.Table(
    "webhook_events",
    metadata,
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("type", sa.Text, primary_key=True),
    sa.Column("webhook_id", sa.Text, sa.ForeignKey("webhooks.id", ondelete="CASCADE"), primary_key=True),
    sqlite_with_rowid=False,
)

# Events on their way. A delivery is claimed by moving `next_at` into the future; whoever is lost meanwhile leaves it to the next.
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("webhook_id", sa.Text, sa.ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    # The JSON that is sent.
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("attempts", sa.BigInteger, nullable=False),
    # None: it was taken by the receiver, or given up.
    sa.Column("next_at", sa.Float),
    sa.Column("last_error", sa.Text),
    sa.Index("webhook_deliveries_of_webhook", "webhook_id", "seq"),
    sqlite_autoincrement=True,
)
_is_due_text = sa.text("next_at IS NOT NULL")
sa.Index("webhook_deliveries_due", webhook_deliveries.c.next_at, sqlite_where=_is_due_text, postgresql_where=_is_due_text)
