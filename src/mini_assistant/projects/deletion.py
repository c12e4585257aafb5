"""Deletes a whole project: revokes its keys first, so that nobody comes in any more, then deletes its rows and the bytes of its files.

It goes in small steps, beside servers that run, and can be done again when it was cut off. What says how much was used and what was done
stays until it is old (`usage_ttl_days`, `audit_ttl_days`): it has numbers and ids in it, and nothing that users have said.
"""

from collections.abc import Callable

import sqlalchemy as sa

from mini_assistant.db import tables
from mini_assistant.db.base import Bound, Database, Query
from mini_assistant.db.tables import metadata, unneeded_blobs
from mini_assistant.files.blobs.base import BlobStore
from mini_assistant.projects.audit import audit_entry

KEPT = {
    "api_keys": "they are revoked: a server without any key would be open to everybody",
    "audit_log": "it says what was done, by whom",
    "usage_days": "what was used was used, also by a project that is gone",
    "usage_entries": "they become days",
}
"""Tables that keep their rows of a deleted project, and why."""
# Rows that are named after a project without being its own, and those of no project.
_BY_NAME = ("claim_limits", "rate_limits")
_NO_PROJECT = {"unneeded_blobs"}

# Of a table in one transaction, for which an embedded server waits. A thread takes its messages and runs along, a vector store all that
# was made of its files. None: all of them, in tables that have small rows and no index by project.
_ROWS_PER_STEP: dict[sa.Table, int | None] = {
    tables.webhooks: 100,
    tables.threads: 20,
    tables.vector_stores: 1,
    tables.assistants: 100,
    tables.files: 100,
    tables.upload_parts: None,
    tables.uploads: None,
    tables.idempotency_keys: 100,
    tables.code_file_owners: None,
    tables.deleted_cursors: None,
}
_BLOBS_PER_READ = 200

_project = sa.bindparam("project", type_=sa.Text)
_revoke_keys = Query(
    sa.update(tables.api_keys)
    .where(tables.api_keys.c.project_id == _project, tables.api_keys.c.revoked_at.is_(None))
    .values(revoked_at=sa.bindparam("now_seconds", type_=sa.BigInteger))
    .returning(tables.api_keys.c.id)
)
_has_valid_key = Query(
    sa.select(sa.literal(1)).where(sa.exists().where(tables.api_keys.c.project_id == _project, tables.api_keys.c.revoked_at.is_(None)))
)


def _some(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Rows of the project, so many as are deleted in a step; by their key, for not every database deletes with a limit."""
    count, key = _ROWS_PER_STEP[table], list(table.primary_key.columns)
    condition = sa.and_(table.c.project_id == _project, *conditions)
    if count is None:
        return condition
    some = sa.select(*key).where(condition).limit(count)
    return (key[0] if len(key) == 1 else sa.tuple_(*key)).in_(some)


def _given_up(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.exists().where(unneeded_blobs.c.blob_key == table.c.blob_key)


def _delete_some(table: sa.Table) -> Query:
    conditions = [_given_up(table)] if "blob_key" in table.c else []
    return Query(sa.delete(table).where(_some(table, *conditions)).returning(next(iter(table.primary_key.columns))))


def _doom_some(table: sa.Table) -> Query:
    """Gives up the bytes that rows name, which are deleted after that."""
    blobs = unneeded_blobs.c
    given_up = sa.select(table.c.blob_key, sa.literal(0)).where(_some(table, ~_given_up(table)), ~_given_up(table))
    return Query(sa.insert(unneeded_blobs).from_select([blobs.blob_key, blobs.since], given_up))


_deletes = {table.name: _delete_some(table) for table in _ROWS_PER_STEP}
_dooms = {table.name: _doom_some(table) for table in (tables.upload_parts, tables.files)}


def _forget_named(table: sa.Table) -> Query:
    """Rows whose name is a limit and the project, as in `requests team-a`."""
    end = sa.func.substr(table.c.name, sa.func.length(table.c.name) - sa.func.length(_project))
    return Query(sa.delete(table).where(end == sa.literal(" ") + _project))


_forgets = [_forget_named(metadata.tables[name]) for name in _BY_NAME]
_select_doomed = Query(sa.select(unneeded_blobs.c.blob_key).where(unneeded_blobs.c.since == 0).limit(_BLOBS_PER_READ))
_forget_blob = Query(sa.delete(unneeded_blobs).where(unneeded_blobs.c.blob_key == sa.bindparam("key"), unneeded_blobs.c.since == 0))


def decided_tables() -> set[str]:
    """The names of all tables that something is said of here."""
    with_parents = {table.name for table in metadata.tables.values() if table.foreign_keys}
    return {*_deletes, *KEPT, *with_parents, *_BY_NAME, *_NO_PROJECT}


async def delete_project(db: Database, blobs: BlobStore, project_id: str, *, now: int, tell: Callable[[str], None]) -> bool:
    """Delete all of a project; False when there was nothing of it. now: unix seconds. tell: told of the progress, a line at a time.

    The audit log has a line of it before anything is gone. Raises StoreUnavailable; what is left is deleted by the next call.
    """
    if not await _has_rows(db, project_id):
        await _delete_blobs(db, blobs)  # an earlier call may have been cut off before its end
        return False
    audit = audit_entry(project_id, now, "project.deleted", project_id, actor="command")
    [_, revoked] = await db.write([audit, _revoke_keys(project=project_id, now_seconds=now)])
    if revoked:
        tell(f"{len(revoked)} keys revoked")
    for table in _ROWS_PER_STEP:
        count = 0
        while deleted := len((await db.write(_step(table, project_id)))[-1]):
            count += deleted
        if count:
            tell(f"{table.name}: {count} rows")
    await db.write([forget(project=project_id) for forget in _forgets])
    tell(f"{await _delete_blobs(db, blobs)} blobs")
    return True


def _step(table: sa.Table, project_id: str) -> list[Bound]:
    doom = _dooms.get(table.name)
    return [*([] if doom is None else [doom(project=project_id)]), _deletes[table.name](project=project_id)]


async def _has_rows(db: Database, project_id: str) -> bool:
    if await db.read(_has_valid_key(project=project_id)):
        return True
    for table in _ROWS_PER_STEP:
        if await db.read(_has_row(table)(project=project_id)):
            return True
    return False


def _has_row(table: sa.Table) -> Query:
    return Query(sa.select(sa.literal(1)).select_from(table).where(table.c.project_id == _project).limit(1))


async def _delete_blobs(db: Database, blobs: BlobStore) -> int:
    """Delete the bytes that no row needs any more; a running server may be doing the same."""
    count = 0
    while keys := [key for (key,) in await db.read(_select_doomed())]:
        for key in keys:
            await blobs.delete(key)
            await db.write([_forget_blob(key=key)], durable=False)
        count += len(keys)
    return count
