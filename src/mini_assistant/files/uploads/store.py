"""Rows of uploads and their parts. Statuses are a column; the body has what the client asked for."""

from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Query
from mini_assistant.db.tables import unneeded_blobs, upload_parts, uploads
from mini_assistant.errors import NotFound
from mini_assistant.files.schema import FileExpirationAfter
from mini_assistant.files.uploads.schema import Upload, UploadPart, UploadStatus
from mini_assistant.services import Services

# How long an upload that has come to its end can still be named by clients, to be told so.
_KEPT_SECONDS = 86_400


class UploadRecord(msgspec.Struct):
    """An upload with what the wire does not show."""

    upload: Upload
    mime_type: str
    expires_after: FileExpirationAfter | None


class PartRecord(NamedTuple):
    """The bytes of a part."""

    size_bytes: int
    blob_key: str


_decode = msgspec.json.Decoder(UploadRecord).decode

_now = sa.bindparam("now_seconds", type_=sa.BigInteger)
_of_project = (uploads.c.id == sa.bindparam("object_id"), uploads.c.project_id == sa.bindparam("project_id"))
_is_pending = sa.and_(uploads.c.status == "pending", uploads.c.expires_at > _now)
_is_overdue = sa.and_(uploads.c.status == "pending", uploads.c.expires_at <= _now)

_select = Query(sa.select(uploads.c.body, uploads.c.status).where(*_of_project))
_insert = Query.insert_into(uploads)
_require_pending = Query(sa.select(uploads.c.id).where(*_of_project, _is_pending).with_for_update())
_end = Query(sa.update(uploads).where(*_of_project, _is_pending).values(status=sa.bindparam("new_status")).returning(uploads.c.id))
_expire = Query(sa.update(uploads).where(_is_overdue).values(status="expired"))
_delete_old = Query(sa.delete(uploads).where(uploads.c.expires_at <= _now - _KEPT_SECONDS))

_of_upload = upload_parts.c.upload_id == sa.bindparam("object_id")
_of_overdue = upload_parts.c.upload_id.in_(sa.select(uploads.c.id).where(_is_overdue))
_stored_bytes = sa.select(sa.func.coalesce(sa.func.sum(upload_parts.c.size_bytes), 0)).where(_of_upload).scalar_subquery()
_room_for_part = Query(
    sa.select(sa.literal(1)).where(
        _stored_bytes + sa.bindparam("part_bytes", type_=sa.BigInteger) <= sa.bindparam("bytes_max", type_=sa.BigInteger)
    )
)
_insert_part = Query.insert_into(upload_parts)
_select_parts = Query(
    sa.select(upload_parts.c.id, upload_parts.c.size_bytes, upload_parts.c.blob_key).where(
        _of_upload, upload_parts.c.project_id == sa.bindparam("project_id")
    )
)


def _dooming(condition: sa.ColumnElement[bool]) -> Query:
    blobs = unneeded_blobs.c
    return Query(
        sa.insert(unneeded_blobs).from_select(
            [blobs.blob_key, blobs.since], sa.select(upload_parts.c.blob_key, sa.literal(0)).where(condition)
        )
    )


_doom_parts = _dooming(_of_upload)
_delete_parts = Query(sa.delete(upload_parts).where(_of_upload))
_doom_overdue_parts = _dooming(_of_overdue)
_delete_overdue_parts = Query(sa.delete(upload_parts).where(_of_overdue))


def upload_not_found(upload_id: str) -> NotFound:
    """The error for an unknown upload."""
    return NotFound(f"No such Upload object: {upload_id[:100]}", param="id")


def insert_upload(project_id: str, record: UploadRecord) -> Bound:
    """Writes a new upload."""
    upload = record.upload
    return _insert(
        id=upload.id,
        project_id=project_id,
        created_at=upload.created_at,
        body=msgspec.json.encode(record).decode(),
        status=upload.status,
        expires_at=upload.expires_at,
    )


async def get_upload(services: Services, project_id: str, upload_id: str) -> UploadRecord:
    """An upload with the status that it has now. Raises NotFound."""
    rows = await services.db.read(_select(object_id=upload_id, project_id=project_id))
    if not rows:
        raise upload_not_found(upload_id)
    record, status = _decode(rows[0][0]), rows[0][1]
    is_overdue = status == "pending" and record.upload.expires_at <= services.now()
    record.upload.status = "expired" if is_overdue else status
    return record


def insert_part(project_id: str, part: UploadPart, stored: PartRecord, *, upload_bytes_max: int, now: int) -> list[Bound]:
    """Writes a new part, after guards: `pending`, the upload takes parts; `room`, all its parts are not above `upload_bytes_max`."""
    return [
        _require_pending.guard("pending", object_id=part.upload_id, project_id=project_id, now_seconds=now),
        _room_for_part.guard("room", object_id=part.upload_id, part_bytes=stored.size_bytes, bytes_max=upload_bytes_max),
        _insert_part(
            id=part.id,
            project_id=project_id,
            created_at=part.created_at,
            body=msgspec.json.encode(part).decode(),
            upload_id=part.upload_id,
            size_bytes=stored.size_bytes,
            blob_key=stored.blob_key,
        ),
    ]


async def get_parts(services: Services, project_id: str, upload_id: str) -> dict[str, PartRecord]:
    """The parts of an upload by their ids."""
    rows = await services.db.read(_select_parts(object_id=upload_id, project_id=project_id))
    return {part_id: PartRecord(size_bytes, blob_key) for part_id, size_bytes, blob_key in rows}


def end_upload(project_id: str, upload_id: str, status: UploadStatus, now: int) -> list[Bound]:
    """Ends an upload and gives its parts up; its guard `pending` fails when it has ended already."""
    return [
        _end.guard("pending", object_id=upload_id, project_id=project_id, new_status=status, now_seconds=now),
        _doom_parts(object_id=upload_id),
        _delete_parts(object_id=upload_id),
    ]


def expire_uploads(now: int) -> list[Bound]:
    """Ends the uploads whose time is over, gives their parts up, and forgets those that ended long ago."""
    return [
        _doom_overdue_parts(now_seconds=now),
        _delete_overdue_parts(now_seconds=now),
        _expire(now_seconds=now),
        _delete_old(now_seconds=now),
    ]
