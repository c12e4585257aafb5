"""Rows of vector store files as they are added and changed: what `commands.py` puts into its lists of statements."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Query, Row
from mini_assistant.db.tables import files, vector_store_file_attributes, vector_store_files
from mini_assistant.services import Services
from mini_assistant.vector_stores.filters import attribute_columns
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.schema import Attributes, VectorStoreFile
from mini_assistant.vector_stores.store import FILE_GUARD, attributes_json, decode_file, file_json

_IDS_MAX = 100


class AttachedFile(NamedTuple):
    """A file that is in a vector store already. seq: its row."""

    seq: int
    file: VectorStoreFile


_f = vector_store_files.c
_a = vector_store_file_attributes.c
_ids = [sa.bindparam(f"id_{place}", type_=sa.Text) for place in range(_IDS_MAX)]
_is_there = sa.or_(files.c.expires_at.is_(None), files.c.expires_at > sa.bindparam("now_seconds", type_=sa.BigInteger))
_in_store = (_f.project_id == sa.bindparam("project_id"), _f.vector_store_id == sa.bindparam("vector_store_id"))
_select_attached = Query(sa.select(_f.seq, _f.body).where(*_in_store, _f.id.in_(_ids)))
_select_filenames = Query(
    sa.select(files.c.id, files.c.filename).where(files.c.project_id == sa.bindparam("project_id"), files.c.id.in_(_ids), _is_there)
)
# The row is written only while there is such a file, and its `seq` comes back.
_file_columns = [column for column in vector_store_files.columns if column is not vector_store_files.autoincrement_column]
_insert_file = Query(
    sa.insert(vector_store_files)
    .from_select(
        [column.name for column in _file_columns],
        sa.select(*[sa.bindparam(f"new_{column.name}", type_=column.type) for column in _file_columns]).where(
            sa.exists().where(
                files.c.id == sa.bindparam("new_id", type_=sa.Text),
                files.c.project_id == sa.bindparam("new_project_id", type_=sa.Text),
                _is_there,
            )
        ),
    )
    .returning(_f.seq)
)
_insert_attribute = Query(
    sa.insert(vector_store_file_attributes).from_select(
        [column.name for column in _a],
        sa.select(_f.seq, *[sa.bindparam(f"new_{column.name}", type_=column.type) for column in list(_a)[1:]]).where(
            _f.vector_store_id == sa.bindparam("vector_store_id"), _f.id == sa.bindparam("file_id")
        ),
    )
)
_delete_attributes = Query(sa.delete(vector_store_file_attributes).where(_a.file_seq == sa.bindparam("of_file")))
_replace_attributes = Query(
    sa.update(vector_store_files)
    .where(_f.seq == sa.bindparam("of_file"), _f.body == sa.bindparam("seen_body"))
    .values(body=sa.bindparam("new_body"), attributes=sa.bindparam("new_attributes"))
    .returning(_f.seq)
)


async def get_attached_files(services: Services, scope: StoreScope, file_ids: Sequence[str]) -> dict[str, AttachedFile]:
    """Those of the files that are in a vector store already, by file id."""
    rows = [row for ids in _by_hundreds(file_ids) for row in await services.db.read(_select_attached(**scope._asdict(), **ids))]
    attached = [AttachedFile(seq, decode_file(body)) for seq, body in rows]
    return {known.file.id: known for known in attached}


async def get_filenames(services: Services, project_id: str, file_ids: Sequence[str]) -> dict[str, str]:
    """The names of those of the uploaded files that exist, by file id."""
    names: dict[str, str] = {}
    for ids in _by_hundreds(file_ids):
        names.update(await services.db.read(_select_filenames(project_id=project_id, now_seconds=services.now(), **ids)))
    return names


def _by_hundreds(ids: Sequence[str]) -> Iterator[dict[str, str]]:
    """Parameters for as many ids as a statement takes; the last one fills up."""
    for start in range(0, len(ids), _IDS_MAX):
        some = ids[start : start + _IDS_MAX]
        yield {f"id_{place}": some[min(place, len(some) - 1)] for place in range(_IDS_MAX)}


def insert_file(project_id: str, file: VectorStoreFile, batch_id: str | None, now: int) -> list[Bound]:
    """Writes a file into a vector store; its guard FILE_GUARD fails when there is no such uploaded file.

    Breaks a unique index (`is_attached_twice`) when the file is in the store already. `count_new_files` counts it.
    """
    values = {
        "id": file.id,
        "project_id": project_id,
        "created_at": file.created_at,
        "body": file_json(file),
        "vector_store_id": file.vector_store_id,
        "batch_id": batch_id,
        "status": file.status,
        "usage_bytes": 0,
        "lease_owner": None,
        "lease_until": 0.0,
        "attempt": 0,
        "summary": None,
        "attributes": attributes_json(file.attributes),
    }
    row = _insert_file.guard(FILE_GUARD, now_seconds=now, **{f"new_{name}": value for name, value in values.items()})
    return [row, *_insert_attributes(file)]


def _insert_attributes(file: VectorStoreFile) -> list[Bound]:
    return [
        _insert_attribute(vector_store_id=file.vector_store_id, file_id=file.id, **{f"new_{name}": value for name, value in row.items()})
        for row in attribute_columns(file.attributes)
    ]


def is_attached_twice(index: str) -> bool:
    """Whether the unique index that a list of statements broke is the one of files in a store."""
    return index.startswith(vector_store_files.name)


def rows_to_ingest(statements: Sequence[Bound], results: Sequence[Sequence[Row]]) -> list[int]:
    """The rows (`seq`) that a write has made and that wait to be ingested."""
    return [
        rows[0][0]
        for bound, rows in zip(statements, results, strict=True)
        if bound.query is _insert_file and bound.parameters["new_status"] == "in_progress"
    ]


def replace_attributes(known: AttachedFile, attributes: Attributes) -> list[Bound]:
    """Gives a file other attributes; the guard FILE_GUARD fails when it is not as it was read."""
    changed = msgspec.structs.replace(known.file, attributes=attributes)
    replaced = _replace_attributes.guard(
        FILE_GUARD,
        of_file=known.seq,
        seen_body=file_json(known.file),
        new_body=file_json(changed),
        new_attributes=attributes_json(attributes),
    )
    return [replaced, _delete_attributes(of_file=known.seq), *_insert_attributes(changed)]
