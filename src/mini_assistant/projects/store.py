"""Rows of keys. A key that is revoked keeps its row: a server whose keys are all gone must not be open to everybody."""

from typing import NamedTuple

import sqlalchemy as sa

from mini_assistant.db.base import Bound, Database, Query
from mini_assistant.db.tables import api_keys

_k = api_keys.c
_columns = (_k.id, _k.project_id, _k.prefix, _k.hash, _k.scopes, _k.created_at, _k.expires_at, _k.revoked_at)
_insert = Query.insert_into(api_keys)
_select_by_prefix = Query(sa.select(*_columns).where(_k.prefix == sa.bindparam("key_prefix")))
_select_by_id = Query(sa.select(*_columns).where(_k.id == sa.bindparam("key_id")))
_select_all = Query(sa.select(*_columns).order_by(_k.seq))
_select_of_project = Query(sa.select(*_columns).where(_k.project_id == sa.bindparam("project_id")).order_by(_k.seq))
_select_any = Query(sa.select(_k.seq).limit(1))
_revoke = Query(
    sa.update(api_keys)
    .where(_k.id == sa.bindparam("key_id"), _k.revoked_at.is_(None))
    .values(revoked_at=sa.bindparam("now_seconds", type_=sa.BigInteger))
    .returning(_k.id)
)


class KeyRecord(NamedTuple):
    """A key as it is kept. hash: the SHA-256 of the whole key, in hex. scopes: with spaces between them. Times are unix seconds."""

    id: str
    project_id: str
    prefix: str
    hash: str
    scopes: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None


def insert_key(record: KeyRecord) -> Bound:
    """Writes a new key."""
    return _insert(**record._asdict())


def revoke_key(key_id: str, now: int) -> Bound:
    """Revokes a key; its guard `valid` fails when there is no such key, or it is revoked already."""
    return _revoke.guard("valid", key_id=key_id, now_seconds=now)


async def find_key_or_none(db: Database, prefix: str) -> KeyRecord | None:
    """The key that has this prefix, revoked or not; None when there is none."""
    rows = await db.read(_select_by_prefix(key_prefix=prefix))
    return KeyRecord(*rows[0]) if rows else None


async def get_key_or_none(db: Database, key_id: str) -> KeyRecord | None:
    """A key by its id, revoked or not; None when there is none."""
    rows = await db.read(_select_by_id(key_id=key_id))
    return KeyRecord(*rows[0]) if rows else None


async def get_keys(db: Database, project_id: str | None) -> list[KeyRecord]:
    """All keys, or those of a project, in the order in which they were made."""
    query = _select_all() if project_id is None else _select_of_project(project_id=project_id)
    return [KeyRecord(*row) for row in await db.read(query)]


async def is_any_key(db: Database) -> bool:
    """Whether a key was ever made."""
    return bool(await db.read(_select_any()))
