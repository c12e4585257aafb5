"""Which rows belong to a project, and how they are written into an archive, a line each.

Every table is named here: a new one has to be decided about. Rows keep their ids, and their numbers (`seq`) in the order that they have.
"""

import functools
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa

from mini_assistant.db import tables
from mini_assistant.db.tables import deleted_cursors, runs, vector_store_files

EXPORTED = (
    tables.assistants,
    tables.threads,
    tables.messages,
    tables.runs,
    tables.run_steps,
    tables.run_events,
    tables.files,
    tables.uploads,
    tables.upload_parts,
    tables.vector_stores,
    tables.vector_store_file_batches,
    tables.vector_store_files,
    tables.code_file_owners,
    tables.vector_store_file_attributes,
    tables.passages,
    tables.summary_vectors,
    tables.segments,
    tables.webhooks,
    tables.webhook_events,
    tables.deleted_cursors,
    tables.idempotency_keys,
)
"""The tables whose rows are in an archive, parents before their children."""

NOT_EXPORTED = {
    "api_keys": "whoever may come in is decided by each server",
    "audit_log": "it says what was done on this server",
    "claim_limits": "rows to queue at, without a content",
    "rate_limits": "what is left of this minute on this server",
    "unneeded_blobs": "what is to be deleted on this server",
    "usage_days": "what was used on this server, and is counted there",
    "usage_entries": "what was used on this server, and is counted there",
    "webhook_deliveries": "events on their way, which this server still sends",
}
"""The other tables, and why their rows stay behind."""

TABLES_WITH_BLOBS = (tables.files, tables.upload_parts)
"""Tables whose rows name bytes in the blob store (`blob_key`, `size_bytes`)."""

# Rows read and written at a time: those of segments have megabytes.
_BATCH_ROWS = 500
_BATCH_SEGMENTS = 4

_CURSOR_TABLES = {
    "asst_": tables.assistants,
    "thread_": tables.threads,
    "msg_": tables.messages,
    "file-": tables.files,
    "vs_": tables.vector_stores,
    "wh_": tables.webhooks,
}
_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_TYPES: dict[type, Any] = {str: str, int: _Integer, float: float, bool: bool, bytes: bytes}


def project_rows(table: sa.Table) -> sa.ColumnElement[bool]:
    """The condition that a row of an exported table belongs to the project `project_id`."""
    project = sa.bindparam("project_id", type_=sa.Text)
    if "project_id" in table.c:
        return table.c.project_id == project
    if "run_id" in table.c:
        return table.c.run_id.in_(sa.select(runs.c.id).where(runs.c.project_id == project))
    return table.c.file_seq.in_(sa.select(vector_store_files.c.seq).where(vector_store_files.c.project_id == project))


def select_rows(table: sa.Table) -> sa.Select[Any]:
    """The rows of the project `project_id`, in the order of their keys."""
    return sa.select(table).where(project_rows(table)).order_by(*table.primary_key.columns)


def batch_rows(table: sa.Table) -> int:
    """How many rows of a table are held in memory at a time."""
    return _BATCH_SEGMENTS if table is tables.segments else _BATCH_ROWS


@functools.cache
def row_decoder(table: sa.Table) -> msgspec.json.Decoder[tuple[Any, ...]]:
    """Reads a line of an archive: the values of all columns, bytes as base64. Raises MsgspecError for what is no row of the table."""
    types = [_TYPES[column.type.python_type] for column in table.columns]
    wanted = [type_ | None if column.nullable else type_ for type_, column in zip(types, table.columns, strict=True)]
    row: Any = tuple[tuple(wanted)]  # type: ignore[misc] - as many types as there are columns
    return msgspec.json.Decoder(row)


def own_number(table: sa.Table) -> str | None:
    """The column that the database counts up; None for tables without one."""
    column = table.autoincrement_column
    return None if column is None else column.name


def numbered_table_or_none(cursor_id: str) -> sa.Table | None:
    """The table among whose rows a deleted cursor has its place; None for one that needs not be kept."""
    if "/" in cursor_id:
        return vector_store_files
    return next((table for prefix, table in _CURSOR_TABLES.items() if cursor_id.startswith(prefix)), None)


def number_references(table: sa.Table) -> dict[str, sa.Table]:
    """Columns that hold a number of another table's row."""
    return {key.parent.name: key.column.table for key in table.foreign_keys if key.column.name == "seq"}


def parents(table: sa.Table) -> dict[str, sa.Table]:
    """Columns that hold the id of another table's row, which must be the project's own."""
    return {key.parent.name: key.column.table for key in table.foreign_keys if key.column.name == "id"}


def is_cursor(table: sa.Table) -> bool:
    """Whether its numbers are those of other tables."""
    return table is deleted_cursors
