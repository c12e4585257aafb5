"""Rows of file batches.

A batch counts how its files have ended. A file that leaves it while in progress, because it is detached or added anew, is counted as
cancelled, so that whoever waits for the batch comes to an end.
"""

from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Query
from mini_assistant.db.tables import vector_store_file_batches as batches
from mini_assistant.db.tables import vector_store_files, vector_stores
from mini_assistant.errors import NotFound
from mini_assistant.services import Services
from mini_assistant.vector_stores.attached_files import AttachedFile
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.schema import FileStatus
from mini_assistant.vector_stores.store import FILE_GUARD, STATUSES, counts_of, get_store_json, leave_batches, tell_of_left_batches
from mini_assistant.webhooks.store import batch_event_query

_f = vector_store_files.c
_of_batch = (
    batches.c.id == sa.bindparam("object_id"),
    batches.c.vector_store_id == sa.bindparam("vector_store_id"),
    batches.c.project_id == sa.bindparam("project_id"),
)
_select = Query(sa.select(batches.c.body, batches.c.is_cancelled, *[batches.c[f"files_{status}"] for status in STATUSES]).where(*_of_batch))
_insert = Query.insert_into(batches)
_tell_of_ended = batch_event_query("completed", *_of_batch)

_is_seen = (_f.seq == sa.bindparam("of_file"), _f.status == sa.bindparam("seen_status"))
_leave = leave_batches(*_is_seen)
_tell_of_left = tell_of_left_batches(*_is_seen)
_move_file = Query(sa.update(vector_store_files).where(*_is_seen).values(batch_id=sa.bindparam("new_batch_id")).returning(_f.seq))

_is_waiting = (
    _f.batch_id == sa.bindparam("object_id"),
    _f.vector_store_id == sa.bindparam("vector_store_id"),
    _f.project_id == sa.bindparam("project_id"),
    _f.status == "in_progress",
)
_waiting_count = sa.select(sa.func.count()).where(*_is_waiting).scalar_subquery()
# In front of the attributes nothing is the client's own text, so the status is there once.
_before_attributes = sa.func.substr(_f.body, 1, sa.func.length(_f.body) - sa.func.length(_f.attributes) - 1)
_cancelled_body = sa.func.replace(_before_attributes, '"status":"in_progress"', '"status":"cancelled"', type_=sa.Text)
_cancel = (
    Query(
        sa.update(vector_stores)
        .where(vector_stores.c.id == sa.bindparam("vector_store_id"), vector_stores.c.project_id == sa.bindparam("project_id"))
        .values(
            files_in_progress=vector_stores.c.files_in_progress - _waiting_count,
            files_cancelled=vector_stores.c.files_cancelled + _waiting_count,
        )
    ),
    # Behind the lock of the store's row, so that of two who cancel at the same time only one still sees files in progress.
    batch_event_query("cancelled", *_of_batch, batches.c.files_in_progress > 0),
    Query(
        sa.update(vector_store_files)
        .where(*_is_waiting)
        .values(
            status=sa.literal("cancelled"),
            body=_cancelled_body + _f.attributes + "}",
            lease_owner=sa.null(),
            lease_until=sa.literal(0.0),
        )
    ),
    Query(
        sa.update(batches)
        .where(*_of_batch, batches.c.files_in_progress > 0)
        .values(
            is_cancelled=sa.true(),
            files_cancelled=batches.c.files_cancelled + batches.c.files_in_progress,
            files_in_progress=sa.literal(0),
        )
    ),
)


def batch_not_found(batch_id: str) -> NotFound:
    """The error for an unknown file batch."""
    return NotFound(f"No file batch found with id '{batch_id[:100]}'.")


async def get_batch_json(services: Services, scope: StoreScope, batch_id: str) -> str:
    """A file batch's wire JSON. Raises NotFound for the store or the batch."""
    rows = await services.db.read(_select(object_id=batch_id, **scope._asdict()))
    if not rows:
        await get_store_json(services, *scope)
        raise batch_not_found(batch_id)
    body, is_cancelled, *counts = rows[0]
    return _batch_json(body, is_cancelled, counts)


def _batch_json(body: str, is_cancelled: bool, counts: Sequence[int]) -> str:
    # A batch with files that have failed is completed all the same; its counters tell. Source: behaviour §6.
    status = "cancelled" if is_cancelled else "in_progress" if counts[0] else "completed"
    rest = msgspec.json.encode({"status": status, "file_counts": counts_of(counts)}).decode()
    return f"{body[:-1]},{rest[1:]}"


def insert_batch(scope: StoreScope, batch_id: str, statuses: Sequence[FileStatus], now: int) -> tuple[str, list[Bound]]:
    """The wire JSON of a new batch and the statements that write it. statuses: of its files."""
    wire = {"id": batch_id, "object": "vector_store.file_batch", "created_at": now, "vector_store_id": scope.vector_store_id}
    body = msgspec.json.encode(wire).decode()
    counts: Mapping[str, int] = {f"files_{status}": statuses.count(status) for status in STATUSES}
    row = _insert(
        id=batch_id,
        project_id=scope.project_id,
        created_at=now,
        body=body,
        vector_store_id=scope.vector_store_id,
        is_cancelled=False,
        **counts,
    )
    statements = [row]
    if counts["files_in_progress"] == 0:
        statements.append(_tell_of_ended(object_id=batch_id, now_seconds=now, **scope._asdict()))
    return _batch_json(body, False, list(counts.values())), statements


def move_to_batch(known: AttachedFile, batch_id: str, now: int) -> list[Bound]:
    """Makes a file that is in the store already one of another batch; the guard FILE_GUARD fails when its status has changed."""
    seen = {"of_file": known.seq, "seen_status": known.file.status}
    return [_leave(**seen), _tell_of_left(**seen, now_seconds=now), _move_file.guard(FILE_GUARD, **seen, new_batch_id=batch_id)]


def cancel_batch(scope: StoreScope, batch_id: str, now: int) -> list[Bound]:
    """Cancels the files of a batch that are not ingested yet; nothing happens to a batch that has come to its end."""
    return [query(object_id=batch_id, now_seconds=now, **scope._asdict()) for query in _cancel]
