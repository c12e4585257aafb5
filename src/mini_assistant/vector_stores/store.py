"""Rows of vector stores and of the files in them.

A store and a batch count their files by status. Whatever changes a file's status moves both counters in the same list of statements,
and where rows have not been read by then, the database computes by how much. Nothing here waits for an ingest or starts one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Query, Row
from mini_assistant.db.tables import deleted_cursors, passages, vector_store_files, vector_stores
from mini_assistant.db.tables import vector_store_file_batches as batches
from mini_assistant.errors import InvalidRequest, NotFound
from mini_assistant.pagination import Listing
from mini_assistant.services import Services
from mini_assistant.vector_stores.filters import matching_files
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.schema import (
    Attributes,
    ExpiresAfter,
    FileCounts,
    FileStatus,
    Filter,
    VectorStore,
    VectorStoreFile,
    VectorStoreFileError,
)
from mini_assistant.webhooks.store import batch_event_query

SECONDS_PER_DAY = 86_400
STORE_GUARD = "vector_store"
"""Fails when the store of a list of statements is gone or has expired."""
FILE_GUARD = "file"
"""Fails when a file of a list of statements is not as it was read, or is gone."""

STATUSES: tuple[FileStatus, ...] = ("in_progress", "completed", "failed", "cancelled")

decode_file = msgspec.json.Decoder(VectorStoreFile).decode
decode_store = msgspec.json.Decoder(VectorStore).decode


# --- vector stores --------------------------------------------------------------------------------------------------------------


class _StoreRow(NamedTuple):
    """The columns that a wire object is made of. The body ends before what is counted or passes with time."""

    body: str
    in_progress: int
    completed: int
    failed: int
    cancelled: int
    usage_bytes: int
    last_active_at: int
    expires_after_days: int | None
    expires_at: int | None


_store_columns = ("body", *[f"files_{status}" for status in STATUSES], "usage_bytes", "last_active_at", "expires_after_days", "expires_at")
store_listing = Listing(vector_stores, ("project_id",), "vector store", columns=_store_columns)

_of_project = (vector_stores.c.id == sa.bindparam("object_id"), vector_stores.c.project_id == sa.bindparam("project_id"))
_is_alive = sa.or_(vector_stores.c.expires_at.is_(None), vector_stores.c.expires_at > sa.bindparam("now_seconds", type_=sa.BigInteger))
_select_store = Query(sa.select(*[vector_stores.c[name] for name in _store_columns]).where(*_of_project))
_insert_store = Query.insert_into(vector_stores)
_replace_store = Query(
    sa.update(vector_stores)
    .where(*_of_project, vector_stores.c.body == sa.bindparam("seen_body"))
    .values(body=sa.bindparam("new_body"))
    .returning(vector_stores.c.id)
)
_days = sa.bindparam("days", type_=sa.BigInteger)
_set_expiry = Query(
    sa.update(vector_stores)
    .where(*_of_project, _is_alive)
    .values(expires_after_days=_days, expires_at=vector_stores.c.last_active_at + _days * SECONDS_PER_DAY)
    .returning(vector_stores.c.id)
)
_touch_store = Query(
    sa.update(vector_stores)
    .where(*_of_project, _is_alive)
    .values(
        last_active_at=sa.bindparam("now_seconds", type_=sa.BigInteger),
        expires_at=sa.bindparam("now_seconds", type_=sa.BigInteger) + vector_stores.c.expires_after_days * SECONDS_PER_DAY,
    )
)
_count_new_files = Query(
    sa.update(vector_stores)
    .where(*_of_project, _is_alive)
    .values(
        files_in_progress=vector_stores.c.files_in_progress + sa.bindparam("in_progress", type_=sa.BigInteger),
        files_failed=vector_stores.c.files_failed + sa.bindparam("failed", type_=sa.BigInteger),
    )
    .returning(vector_stores.c.id)
)
_delete_store = Query(sa.delete(vector_stores).where(*_of_project).returning(vector_stores.c.id))
_pin_embedder = Query(
    sa.update(vector_stores)
    .where(
        vector_stores.c.id == sa.bindparam("object_id"),
        sa.or_(
            vector_stores.c.embedder.is_(None),
            sa.and_(
                vector_stores.c.embedder == sa.bindparam("pinned", type_=sa.Text),
                vector_stores.c.dimension == sa.bindparam("pinned_dimension", type_=sa.BigInteger),
            ),
        ),
    )
    .values(embedder=sa.bindparam("pinned", type_=sa.Text), dimension=sa.bindparam("pinned_dimension", type_=sa.BigInteger))
    .returning(vector_stores.c.id)
)


def store_not_found(vector_store_id: str) -> NotFound:
    """The error for an unknown vector store."""
    return NotFound(f"No vector store found with id '{vector_store_id[:100]}'.")


def store_expired(vector_store_id: str) -> InvalidRequest:
    """The error for what an expired vector store cannot do any more."""
    return InvalidRequest(
        f"Vector store {vector_store_id} is expired. Its list of files can still be read: add them to a new vector store.",
        code="vector_store_expired",
    )


def store_json(row: Row, now: int) -> str:
    """The wire JSON of a row of `store_listing`'s columns, as it is at a unix time."""
    store = _StoreRow(*row)
    is_expired = store.expires_at is not None and store.expires_at <= now
    status = "expired" if is_expired else "in_progress" if store.in_progress else "completed"
    days = store.expires_after_days
    rest = {
        "usage_bytes": store.usage_bytes,
        "file_counts": counts_of(store[1:5]),
        "status": status,
        "expires_after": None if days is None else ExpiresAfter("last_active_at", days),
        "expires_at": store.expires_at,
        "last_active_at": store.last_active_at,
    }
    return f"{store.body[:-1]},{msgspec.json.encode(rest).decode()[1:]}"


def counts_of(columns: Sequence[int]) -> FileCounts:
    """The wire object of counters in the order of STATUSES."""
    in_progress, completed, failed, cancelled = columns
    return FileCounts(in_progress, completed, failed, cancelled, sum(columns))


async def get_store_json(services: Services, project_id: str, vector_store_id: str) -> str:
    """A vector store's wire JSON. Raises NotFound."""
    rows = await services.db.read(_select_store(object_id=vector_store_id, project_id=project_id))
    if not rows:
        raise store_not_found(vector_store_id)
    return store_json(rows[0], services.now())


async def get_store_or_none(services: Services, project_id: str, vector_store_id: str) -> VectorStore | None:
    """A vector store, None when it does not exist (any more)."""
    rows = await services.db.read(_select_store(object_id=vector_store_id, project_id=project_id))
    return decode_store(store_json(rows[0], services.now())) if rows else None


async def get_usable_store(services: Services, project_id: str, vector_store_id: str) -> VectorStore:
    """A vector store that files can be added to. Raises NotFound, and InvalidRequest when it has expired."""
    store = decode_store(await get_store_json(services, project_id, vector_store_id))
    if store.status == "expired":
        raise store_expired(vector_store_id)
    return store


def insert_store(project_id: str, store: VectorStore) -> Bound:
    """Writes a new vector store."""
    counts = {f"files_{status}": getattr(store.file_counts, status) for status in STATUSES}
    return _insert_store(
        id=store.id,
        project_id=project_id,
        created_at=store.created_at,
        body=_store_body(store),
        **counts,
        usage_bytes=0,
        last_active_at=store.last_active_at,
        expires_after_days=None if store.expires_after is None else store.expires_after.days,
        expires_at=store.expires_at,
        revision=0,
        embedder=None,
        dimension=None,
    )


def _store_body(store: VectorStore) -> str:
    stored = ("id", "object", "created_at", "name", "description", "metadata")
    return msgspec.json.encode({name: getattr(store, name) for name in stored}).decode()


def replace_store(project_id: str, seen: VectorStore, changed: VectorStore) -> Bound:
    """Writes a changed name or metadata; its guard `changed` fails when the row is not as it was seen any more."""
    return _replace_store.guard(
        "changed", object_id=seen.id, project_id=project_id, seen_body=_store_body(seen), new_body=_store_body(changed)
    )


def set_expiry(project_id: str, vector_store_id: str, days: int | None, now: int) -> Bound:
    """Lets a store expire so many days after it was last active, or never. Its guard STORE_GUARD fails when it has expired."""
    return _set_expiry.guard(STORE_GUARD, object_id=vector_store_id, project_id=project_id, days=days, now_seconds=now)


def touch_stores(project_id: str, vector_store_ids: Sequence[str], now: int) -> list[Bound]:
    """Says that a run uses these stores, which moves their expiry along. Those that have expired stay so; unknown ones do no harm."""
    return [
        _touch_store(object_id=vector_store_id, project_id=project_id, now_seconds=now)
        for vector_store_id in dict.fromkeys(vector_store_ids)
    ]


def count_new_files(project_id: str, vector_store_id: str, statuses: Sequence[FileStatus], now: int) -> Bound:
    """Counts files that are added by the same list; its guard STORE_GUARD fails when the store is gone or has expired."""
    return _count_new_files.guard(
        STORE_GUARD,
        object_id=vector_store_id,
        project_id=project_id,
        in_progress=statuses.count("in_progress"),
        failed=statuses.count("failed"),
        now_seconds=now,
    )


def delete_store(project_id: str, vector_store_id: str, now: int) -> list[Bound]:
    """Deletes a store with all that is in it; the guard STORE_GUARD fails when there is none."""
    return [
        store_listing.keep_place(project_id, vector_store_id, now),
        _delete_store.guard(STORE_GUARD, object_id=vector_store_id, project_id=project_id),
    ]


def pin_embedder(vector_store_id: str, embedder: str, dimension: int) -> Bound:
    """Says what the vectors of a store are made with; its guard `embedder` fails when they are made with something else."""
    return _pin_embedder.guard("embedder", object_id=vector_store_id, pinned=embedder, pinned_dimension=dimension)


# --- files of a vector store ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A file of a vector store and the bookkeeping of its row.

    seq: names the row, and is never given twice. attempt: how many ingest tasks have claimed it so far. lease_until: unix time.
    """

    seq: int
    project_id: str
    vector_store_id: str
    file: VectorStoreFile
    batch_id: str | None
    attempt: int
    lease_owner: str | None
    lease_until: float


_f = vector_store_files.c
file_listing = Listing(vector_store_files, ("project_id", "vector_store_id"), "file", parent="vector_store_id")
batch_file_listing = Listing(vector_store_files, ("project_id", "vector_store_id", "batch_id"), "file", parent="vector_store_id")

_in_store = (_f.project_id == sa.bindparam("project_id"), _f.vector_store_id == sa.bindparam("vector_store_id"))
_select_file = Query(sa.select(_f.body).where(*_in_store, _f.id == sa.bindparam("file_id")))
_select_record = Query(
    sa.select(_f.seq, _f.project_id, _f.vector_store_id, _f.body, _f.batch_id, _f.attempt, _f.lease_owner, _f.lease_until).where(
        _f.seq == sa.bindparam("file_seq")
    )
)
_select_passages = Query(
    sa.select(passages.c.text, passages.c.start_index, passages.c.end_index)
    .join(vector_store_files, _f.seq == passages.c.file_seq)
    .where(*_in_store, _f.id == sa.bindparam("file_id"))
    .order_by(passages.c.ordinal)
)

_end_file = Query(
    sa.update(vector_store_files)
    .where(_f.seq == sa.bindparam("file_seq"), _f.status == "in_progress", _f.attempt == sa.bindparam("seen_attempt"))
    .values(
        status=sa.bindparam("new_status"),
        # Attributes are the client's, who may have changed them since the file was read.
        body=sa.bindparam("body_before_attributes", type_=sa.Text) + _f.attributes + "}",
        usage_bytes=sa.bindparam("new_usage_bytes"),
        summary=sa.bindparam("new_summary"),
        lease_owner=sa.null(),
        lease_until=sa.literal(0.0),
    )
    .returning(_f.seq)
)
_count_ended_in_store = {
    status: Query(
        sa.update(vector_stores)
        .where(vector_stores.c.id == sa.bindparam("object_id"))
        .values(
            {
                "files_in_progress": vector_stores.c.files_in_progress - 1,
                f"files_{status}": vector_stores.c[f"files_{status}"] + 1,
                "usage_bytes": vector_stores.c.usage_bytes + sa.bindparam("more_bytes", type_=sa.BigInteger),
                "revision": vector_stores.c.revision + 1,
            }
        )
    )
    for status in STATUSES[1:]
}
# The batch of the row as it is now: the file may have been moved to another one.
_count_ended_in_batch = {
    status: Query(
        sa.update(batches)
        .where(batches.c.id == sa.select(_f.batch_id).where(_f.seq == sa.bindparam("file_seq")).scalar_subquery())
        .values({"files_in_progress": batches.c.files_in_progress - 1, f"files_{status}": batches.c[f"files_{status}"] + 1})
    )
    for status in STATUSES[1:]
}
_tell_of_batch_of_file = batch_event_query(
    "completed",
    batches.c.id == sa.select(_f.batch_id).where(_f.seq == sa.bindparam("file_seq")).scalar_subquery(),
    batches.c.files_in_progress == 0,
)


def file_not_in_store(file_id: str, vector_store_id: str) -> NotFound:
    """The error for a file that is not in a vector store."""
    return NotFound(f"No file found with id '{file_id[:100]}' in vector store '{vector_store_id[:100]}'.")


def file_json(file: VectorStoreFile) -> str:
    """The wire JSON of a file of a vector store, as its row has it."""
    return _before_attributes(file) + attributes_json(file.attributes) + "}"


def _before_attributes(file: VectorStoreFile) -> str:
    fields = {name: getattr(file, name) for name in file.__struct_fields__ if name != "attributes"}
    return msgspec.json.encode(fields).decode()[:-1] + ',"attributes":'


def attributes_json(attributes: Attributes) -> str:
    """The wire JSON of a file's attributes."""
    return msgspec.json.encode(attributes).decode()


async def get_file_json(services: Services, scope: StoreScope, file_id: str) -> str:
    """The wire JSON of a file of a vector store. Raises NotFound for the store or the file."""
    rows = await services.db.read(_select_file(**scope._asdict(), file_id=file_id))
    if not rows:
        await get_store_json(services, *scope)
        raise file_not_in_store(file_id, scope.vector_store_id)
    return rows[0][0]


async def get_file_record_or_none(services: Services, seq: int) -> FileRecord | None:
    """A file of whatever project by its row; None when it was detached. For the ingest worker."""
    rows = await services.db.read(_select_record(file_seq=seq))
    if not rows:
        return None
    row = rows[0]
    return FileRecord(
        seq=row[0],
        project_id=row[1],
        vector_store_id=row[2],
        file=decode_file(row[3]),
        batch_id=row[4],
        attempt=row[5],
        lease_owner=row[6],
        lease_until=row[7],
    )


async def get_text(services: Services, scope: StoreScope, file_id: str) -> str:
    """The text that a file was parsed to, put together from its passages; empty while there are none."""
    pieces: list[str] = []
    reached = 0
    for text, start, end in await services.db.read(_select_passages(**scope._asdict(), file_id=file_id)):
        pieces.append(text[max(reached - start, 0) :])  # passages overlap
        reached = max(reached, end)
    return "".join(pieces)


def end_file(
    record: FileRecord,
    status: Literal["completed", "failed", "cancelled"],
    *,
    now: int,
    usage_bytes: int = 0,
    last_error: VectorStoreFileError | None = None,
    summary: str | None = None,
) -> list[Bound]:
    """Brings the ingest of a file to its end, with the counters of its store and batch.

    usage_bytes: what the file takes in the store. summary: what it is about, None when nobody knows. The first statement's guard
    FILE_GUARD fails when the file is not in progress any more or another attempt has it.
    """
    ended = msgspec.structs.replace(record.file, status=status, usage_bytes=usage_bytes, last_error=last_error)
    return [
        _end_file.guard(
            FILE_GUARD,
            file_seq=record.seq,
            seen_attempt=record.attempt,
            new_status=status,
            body_before_attributes=_before_attributes(ended),
            new_usage_bytes=usage_bytes,
            new_summary=summary,
        ),
        _count_ended_in_store[status](object_id=record.vector_store_id, more_bytes=usage_bytes),
        _count_ended_in_batch[status](file_seq=record.seq),
        _tell_of_batch_of_file(file_seq=record.seq, now_seconds=now),
    ]


async def matching_file_seqs(services: Services, scope: StoreScope, filter: Filter | None) -> list[int] | None:
    """The rows (`seq`) of the files of a store that a filter on attributes lets through; None for all of them, without a filter."""
    return None if filter is None else [seq for (seq,) in await services.db.read(matching_files(scope, filter))]


# --- detaching ------------------------------------------------------------------------------------------------------------------


class _Detaching:
    """The statements that take files out of vector stores, with everything that was made of them; passages go with their row."""

    def __init__(self, *chosen: sa.ColumnElement[bool]) -> None:
        place = _f.vector_store_id + "/" + _f.id
        kept = deleted_cursors.c
        self._statements = [
            Query(sa.delete(deleted_cursors).where(kept.id.in_(sa.select(place).where(*chosen)))),
            Query(
                sa.insert(deleted_cursors).from_select(
                    [kept.id, kept.project_id, kept.created_at, kept.seq, kept.deleted_at],
                    sa.select(place, _f.project_id, _f.created_at, _f.seq, sa.bindparam("now_seconds", type_=sa.BigInteger)).where(*chosen),
                )
            ),
            Query(
                sa.update(vector_stores)
                .where(vector_stores.c.id.in_(sa.select(_f.vector_store_id).where(*chosen)))
                .values(
                    {
                        **{f"files_{status}": self._fewer(status, chosen) for status in STATUSES},
                        "usage_bytes": vector_stores.c.usage_bytes - self._used_bytes(chosen),
                        "revision": vector_stores.c.revision + 1,
                    }
                )
            ),
            leave_batches(*chosen),
            tell_of_left_batches(*chosen),
        ]
        self._delete = Query(sa.delete(vector_store_files).where(*chosen).returning(_f.seq))

    def _fewer(self, status: FileStatus, chosen: Sequence[sa.ColumnElement[bool]]) -> sa.ColumnElement[int]:
        gone = sa.select(sa.func.count()).where(*chosen, _f.vector_store_id == vector_stores.c.id, _f.status == status)
        return vector_stores.c[f"files_{status}"] - gone.scalar_subquery()

    def _used_bytes(self, chosen: Sequence[sa.ColumnElement[bool]]) -> sa.ColumnElement[int]:
        used = sa.select(sa.func.coalesce(sa.func.sum(_f.usage_bytes), 0)).where(*chosen, _f.vector_store_id == vector_stores.c.id)
        return used.scalar_subquery()

    def __call__(self, now: int, guard: str | None = None, **parameters: str) -> list[Bound]:
        """guard: fails when no file is taken out."""
        statements = [query(now_seconds=now, **parameters) for query in self._statements]
        return [*statements, self._delete(**parameters) if guard is None else self._delete.guard(guard, **parameters)]


def leave_batches(*chosen: sa.ColumnElement[bool]) -> Query:
    """A batch counts a file that leaves it while in progress as cancelled: what else it counts, tells how its files have ended."""
    leaving = sa.select(sa.func.count()).where(*chosen, _f.batch_id == batches.c.id, _f.status == "in_progress").scalar_subquery()
    return Query(
        sa.update(batches)
        .where(batches.c.id.in_(sa.select(_f.batch_id).where(*chosen, _f.status == "in_progress")))
        .values(files_in_progress=batches.c.files_in_progress - leaving, files_cancelled=batches.c.files_cancelled + leaving)
    )


def tell_of_left_batches(*chosen: sa.ColumnElement[bool]) -> Query:
    """Tells webhooks of batches that end because a file has left them; it takes `now_seconds`, too, and comes after `leave_batches`."""
    left = batches.c.id.in_(sa.select(_f.batch_id).where(*chosen, _f.status == "in_progress"))
    return batch_event_query("completed", left, batches.c.files_in_progress == 0)


_detach_from_store = _Detaching(*_in_store, _f.id == sa.bindparam("file_id"))
_detach_everywhere = _Detaching(_f.project_id == sa.bindparam("project_id"), _f.id == sa.bindparam("file_id"))


def detach_file(scope: StoreScope, file_id: str, now: int) -> list[Bound]:
    """Takes a file out of a vector store; the guard FILE_GUARD fails when it is not in it. The uploaded file stays."""
    return _detach_from_store(now, FILE_GUARD, **scope._asdict(), file_id=file_id)


def detach_file_everywhere(project_id: str, file_id: str, now: int) -> list[Bound]:
    """Takes a file out of all vector stores of its project; it need not be in any."""
    return _detach_everywhere(now, project_id=project_id, file_id=file_id)
