"""Rows of files, and the list of blobs that no row needs (any more).

A file that has expired is not there for any query, whether or not it has been swept. A blob is in `unneeded_blobs` from before its
first byte until a row claims it, and again from the commit that drops that row, so a crash at any moment leaves no bytes behind.
`since` says from when a blob may be deleted; 0 is for good: no row can claim it any more.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Query
from mini_assistant.db.tables import files, unneeded_blobs
from mini_assistant.errors import NotFound
from mini_assistant.files.schema import File
from mini_assistant.pagination import Listing
from mini_assistant.services import Services

# A blob must be written and claimed in this time.
_WRITING_SECONDS_MAX = 86_400
_IDS_PER_QUERY = 256

decode_file = msgspec.json.Decoder(File).decode

_now = sa.bindparam("now_seconds", type_=sa.BigInteger)
_is_there = sa.or_(files.c.expires_at.is_(None), files.c.expires_at > _now)
_of_project = (files.c.id == sa.bindparam("object_id"), files.c.project_id == sa.bindparam("project_id"))

file_listing = Listing(files, ("project_id",), "file", _is_there)

_select = Query(sa.select(files.c.body, files.c.blob_key, files.c.sha256).where(*_of_project, _is_there))
_insert = Query.insert_into(files)
_delete = Query(sa.delete(files).where(*_of_project).returning(files.c.id))
_require = Query(sa.select(files.c.id).where(*_of_project, _is_there).with_for_update())
_select_expired = Query(
    sa.select(files.c.project_id, files.c.id).where(files.c.expires_at <= _now).limit(sa.bindparam("row_limit", type_=sa.Integer))
)

_blobs = unneeded_blobs.c
_reserve_blob = Query.insert_into(unneeded_blobs)
_claim_blob = Query(sa.delete(unneeded_blobs).where(_blobs.blob_key == sa.bindparam("key"), _blobs.since > 0).returning(_blobs.blob_key))
_doom_blob = Query(
    sa.update(unneeded_blobs).where(_blobs.blob_key == sa.bindparam("key")).values(since=sa.literal(0)).returning(_blobs.blob_key)
)
_doom_blob_of_file = Query(
    sa.insert(unneeded_blobs).from_select([_blobs.blob_key, _blobs.since], sa.select(files.c.blob_key, sa.literal(0)).where(*_of_project))
)
_doom_overdue_blobs = Query(sa.update(unneeded_blobs).where(_blobs.since > 0, _blobs.since <= _now).values(since=sa.literal(0)))
_select_doomed = Query(sa.select(_blobs.blob_key).where(_blobs.since == 0).limit(sa.bindparam("row_limit", type_=sa.Integer)))
_forget_blob = Query(sa.delete(unneeded_blobs).where(_blobs.blob_key == sa.bindparam("key"), _blobs.since == 0))


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file with what only the server knows. sha256: lower-case hex of its bytes."""

    file: File
    blob_key: str
    sha256: str


def file_not_found(file_id: str) -> NotFound:
    """The error for an unknown, deleted or expired file."""
    return NotFound(f"No such File object: {file_id[:100]}", param="id")


async def get_file_or_none(services: Services, project_id: str, file_id: str) -> FileRecord | None:
    """A file, None when it does not exist (any more)."""
    rows = await services.db.read(_select(object_id=file_id, project_id=project_id, now_seconds=services.now()))
    return FileRecord(decode_file(rows[0][0]), rows[0][1], rows[0][2]) if rows else None


async def get_file(services: Services, project_id: str, file_id: str) -> FileRecord:
    """A file. Raises NotFound."""
    record = await get_file_or_none(services, project_id, file_id)
    if record is None:
        raise file_not_found(file_id)
    return record


async def get_file_json(services: Services, project_id: str, file_id: str) -> str:
    """A file's wire JSON. Raises NotFound."""
    rows = await services.db.read(_select(object_id=file_id, project_id=project_id, now_seconds=services.now()))
    if not rows:
        raise file_not_found(file_id)
    return rows[0][0]


async def existing_file_ids(services: Services, project_id: str, ids: Iterable[str]) -> set[str]:
    """Those of the ids that are files of the project."""
    wanted = list(dict.fromkeys(ids))
    found: set[str] = set()
    for start in range(0, len(wanted), _IDS_PER_QUERY):
        some = wanted[start : start + _IDS_PER_QUERY]
        size = 1 << (len(some) - 1).bit_length()
        some += some[:1] * (size - len(some))
        values = {f"id_{place}": file_id for place, file_id in enumerate(some)}
        rows = await services.db.read(_select_ids(size)(project_id=project_id, now_seconds=services.now(), **values))
        found.update(file_id for (file_id,) in rows)
    return found


@functools.cache
def _select_ids(size: int) -> Query:
    """A query for so many ids; asked for in powers of two, so that there are few."""
    ids = [sa.bindparam(f"id_{place}", type_=sa.Text) for place in range(size)]
    return Query(sa.select(files.c.id).where(files.c.project_id == sa.bindparam("project_id"), _is_there, files.c.id.in_(ids)))


def require_file(project_id: str, file_id: str, now: int) -> Bound:
    """Guard `file exists`: the file is there, and stays until the list is committed."""
    return _require.guard("file exists", object_id=file_id, project_id=project_id, now_seconds=now)


def insert_file(project_id: str, record: FileRecord) -> list[Bound]:
    """Writes a new file; its guard `blob` fails when the blob was not reserved, or not in time."""
    file = record.file
    return [
        _claim_blob.guard("blob", key=record.blob_key),
        _insert(
            id=file.id,
            project_id=project_id,
            created_at=file.created_at,
            body=msgspec.json.encode(file).decode(),
            purpose=file.purpose,
            filename=file.filename,
            size_bytes=file.bytes,
            sha256=record.sha256,
            blob_key=record.blob_key,
            expires_at=file.expires_at,
        ),
    ]


def drop_file(project_id: str, file_id: str, now: int) -> list[Bound]:
    """Deletes a file's row and gives its blob up; its guard `exists` fails when there is no such row."""
    return [
        file_listing.keep_place(project_id, file_id, now),
        _doom_blob_of_file(object_id=file_id, project_id=project_id),
        _delete.guard("exists", object_id=file_id, project_id=project_id),
    ]


async def expired_files(services: Services, row_limit: int) -> list[tuple[str, str]]:
    """Project and id of files whose time is over."""
    return [
        (project_id, file_id)
        for project_id, file_id in await services.db.read(_select_expired(now_seconds=services.now(), row_limit=row_limit))
    ]


def reserve_blob(key: str, now: int) -> Bound:
    """Notes a blob that is about to be written."""
    return _reserve_blob(blob_key=key, since=now + _WRITING_SECONDS_MAX)


def claim_blob(key: str) -> Bound:
    """Guard `blob`: belongs into the list that writes the row to which a reserved blob belongs from now on."""
    return _claim_blob.guard("blob", key=key)


async def give_up_blob(services: Services, key: str) -> bool:
    """Give a reserved blob up for good. False when a row has claimed it, also by a list that was on its way."""
    [rows] = await services.db.write([_doom_blob(key=key)])
    return bool(rows)


async def doomed_blobs(services: Services, row_limit: int) -> list[str]:
    """Blobs to delete now, among them those whose writer has not come to its end in time."""
    await services.db.write([_doom_overdue_blobs(now_seconds=services.now())])
    return [key for (key,) in await services.db.read(_select_doomed(row_limit=row_limit))]


def forget_blob(key: str) -> Bound:
    """Says that the bytes of a doomed blob are gone."""
    return _forget_blob(key=key)
