"""`Idempotency-Key`, an extension: a repeated POST gets the first answer instead of a second object.

The answer is kept by the same list of statements that makes the change, so there is no moment in which only one of them is stored.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Database, Query
from mini_assistant.db.tables import deleted_cursors, idempotency_keys
from mini_assistant.errors import InvalidRequest

KEY_CHARACTERS_MAX = 255

_table = idempotency_keys
_find = Query(
    sa.select(_table.c.request_hash, _table.c.body, _table.c.run_id, _table.c.after_seq).where(
        _table.c.project_id == sa.bindparam("project_id"), _table.c.key == sa.bindparam("key")
    )
)
_insert = Query.insert_into(_table)
_delete_old = Query(sa.delete(_table).where(_table.c.created_at < sa.bindparam("before")))
_deleted_since = sa.select(deleted_cursors.c.id).where(deleted_cursors.c.deleted_at >= sa.bindparam("since"))
_delete_of_deleted = [Query(sa.delete(_table).where(column.in_(_deleted_since))) for column in (_table.c.object_id, _table.c.thread_id)]


class _Shown(msgspec.Struct):
    """What an answer is about, as far as it says so."""

    id: str | None = None
    thread_id: str | None = None


_decode_shown = msgspec.json.Decoder(_Shown).decode


class KeptAnswer(NamedTuple):
    """The first answer. run_id, after_seq: where its stream began, None for answers that cannot stream."""

    body: str
    run_id: str | None
    after_seq: int | None


@dataclass(frozen=True, slots=True)
class IdempotentCall:
    """A request that carries a key."""

    project_id: str
    key: str
    request_hash: str

    @classmethod
    def of(cls, project_id: str, key: str, request: bytes) -> "IdempotentCall":
        """`request`: path and body. Raises InvalidRequest when the key is empty or too long."""
        if not 0 < len(key) <= KEY_CHARACTERS_MAX:
            raise InvalidRequest(
                f"Invalid 'Idempotency-Key': expected 1 to {KEY_CHARACTERS_MAX} characters, but got {len(key)}.",
                param="Idempotency-Key",
                code="invalid_value",
            )
        return cls(project_id, key, hashlib.sha256(request).hexdigest())

    def statement(self, now: int, answer: str, run_id: str | None, after_seq: int | None) -> Bound:
        """Keeps the answer; breaks a unique index when another request with the key was faster."""
        shown = _decode_shown(answer)
        return _insert(
            project_id=self.project_id,
            key=self.key,
            request_hash=self.request_hash,
            body=answer,
            run_id=run_id,
            after_seq=after_seq,
            created_at=now,
            object_id=shown.id,
            thread_id=shown.thread_id,
        )

    async def kept_answer_or_none(self, db: Database) -> KeptAnswer | None:
        """The first answer. Raises InvalidRequest when the key was used for another request."""
        rows = await db.read(_find(project_id=self.project_id, key=self.key))
        if not rows:
            return None
        request_hash, body, run_id, after_seq = rows[0]
        if request_hash != self.request_hash:
            raise InvalidRequest(
                "This Idempotency-Key was used for a request with another path or body. Use a new key.",
                param="Idempotency-Key",
                code="idempotency_key_reused",
            )
        return KeptAnswer(body, run_id, after_seq)


def delete_kept_answers(before: int) -> Bound:
    """Forgets answers older than a unix time."""
    return _delete_old(before=before)


def delete_answers_of_deleted(since: int) -> list[Bound]:
    """Forgets answers that show an object, or one of a thread, that was deleted at a unix time or later. Files have no such answers."""
    return [query(since=since) for query in _delete_of_deleted]
