"""The ingest tasks: rows of vector store files that are in progress, across all projects. Only the ingest worker calls this.

A file that waits, or whose worker has given no sign of life, is found here whatever became of its queue message. Leases as those of
runs: every claim counts `attempt` up, and a worker that has lost its lease writes nothing, because the guard of `end_file` names it.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa

from mini_assistant.db.base import Query
from mini_assistant.db.tables import vector_store_files as files
from mini_assistant.services import Services
from mini_assistant.vector_stores.store import FileRecord, get_file_record_or_none


class IngestTask(NamedTuple):
    """A file that waits to be ingested: its row, and whose turn it takes. Tasks of one store come in the order of their rows."""

    seq: int
    project_id: str
    vector_store_id: str


# Spelled out in the statements, so that the partial index serves them.
_is_ingesting = files.c.status == sa.literal_column("'in_progress'")
_is_free = files.c.lease_until <= sa.bindparam("now")
_task_columns = (files.c.seq, files.c.project_id, files.c.vector_store_id)
_held = (files.c.seq == sa.bindparam("file_seq"), files.c.attempt == sa.bindparam("seen_attempt"), _is_ingesting)

_select_task = Query(sa.select(*_task_columns).where(files.c.seq == sa.bindparam("file_seq"), _is_ingesting, _is_free))
# The first files of every store before the second ones of any: a store with more files than rows are read hides no other.
_place_in_store = sa.func.row_number().over(partition_by=files.c.vector_store_id, order_by=files.c.seq)
_select_tasks = Query(
    sa.select(*_task_columns)
    .where(_is_ingesting, _is_free)
    .order_by(_place_in_store, files.c.seq)
    .limit(sa.bindparam("row_limit", type_=sa.Integer))
)
_claim = Query(
    sa.update(files)
    .where(*_held, _is_free)
    .values(attempt=files.c.attempt + 1, lease_owner=sa.bindparam("owner"), lease_until=sa.bindparam("until"))
    .returning(files.c.attempt)
)
_renew = Query(sa.update(files).where(*_held).values(lease_until=sa.bindparam("until")).returning(files.c.seq))
_postpone = Query(sa.update(files).where(*_held).values(lease_owner=sa.null(), lease_until=sa.bindparam("until")))
_hand_back = Query(
    sa.update(files)
    .where(files.c.lease_owner == sa.bindparam("owner"), _is_ingesting)
    .values(lease_owner=sa.null(), lease_until=sa.literal(0.0))
)
_free_all = Query(sa.update(files).where(_is_ingesting).values(lease_owner=sa.null(), lease_until=sa.literal(0.0)))


async def get_ingest_task_or_none(services: Services, seq: int) -> IngestTask | None:
    """The task of a row; None when it is done or gone, somebody works on it, or it is to be tried again later."""
    rows = await services.db.read(_select_task(file_seq=seq, now=services.clock.now()))
    return IngestTask(*rows[0]) if rows else None


async def get_waiting_tasks(services: Services, limit: int) -> list[IngestTask]:
    """Tasks that nobody works on, from as many stores as there are."""
    rows = await services.db.read(_select_tasks(now=services.clock.now(), row_limit=limit))
    return [IngestTask(*row) for row in rows]


async def claim_file_or_none(services: Services, seq: int, owner: str) -> FileRecord | None:
    """Take a file for `lease_seconds`; None when there is nothing to do or somebody else was faster."""
    record = await get_file_record_or_none(services, seq)
    if record is None:
        return None
    now = services.clock.now()
    until = now + services.settings.lease_seconds
    [rows] = await services.db.write([_claim(file_seq=seq, seen_attempt=record.attempt, now=now, owner=owner, until=until)])
    return dataclasses.replace(record, attempt=rows[0][0], lease_owner=owner, lease_until=until) if rows else None


async def renew_leases(services: Services, attempts: Mapping[int, int]) -> list[int]:
    """Say that a worker lives: the files that it works on (row to attempt) stay its own. Returns those that are not its own any more."""
    until = services.clock.now() + services.settings.lease_seconds
    renewals = [_renew(file_seq=seq, seen_attempt=attempt, until=until) for seq, attempt in attempts.items()]
    if not renewals:
        return []
    return [seq for seq, found in zip(attempts, await services.db.write(renewals), strict=True) if not found]


async def postpone_file(services: Services, record: FileRecord, seconds: float) -> None:
    """Give up a file, to be tried again after some time. Nothing happens when it is this worker's no more."""
    until = services.clock.now() + seconds
    await services.db.write([_postpone(file_seq=record.seq, seen_attempt=record.attempt, until=until)])


async def hand_back_leases(services: Services, owner: str) -> None:
    """Give up all files of a worker that stops, so that another can go on at once."""
    await services.db.write([_hand_back(owner=owner)])


async def free_all_leases(services: Services) -> None:
    """Take the files of workers that cannot be alive: called once at start by a server that owns its database alone."""
    await services.db.write([_free_all()])
