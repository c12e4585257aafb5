"""The backends of many processes around one PostgreSQL: rows, tasks, events and vectors are in it.

Beside app.py, which loads this file only when the settings ask for it, the only one that names concrete backends.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from mini_assistant.clock import DatabaseClock
from mini_assistant.db.migrations import HEAD, MigrationFailed, migrate_postgres
from mini_assistant.db.postgres import PostgresDatabase
from mini_assistant.db.transfer import blob_keys, transfer_rows
from mini_assistant.errors import BackendError, StoreUnavailable
from mini_assistant.events.postgres import PostgresEventBus
from mini_assistant.files.blobs.base import BlobStore
from mini_assistant.queue.base import TaskKind
from mini_assistant.queue.procrastinate import ProcrastinateQueue
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.services import Backends
from mini_assistant.settings import Settings
from mini_assistant.vector_stores.indexes.pgvector import PgvectorIndex

log = logging.getLogger("mini_assistant")

_CLOCK_SECONDS = 60.0


async def open_cluster(settings: Settings, kinds: Collection[TaskKind], stack: contextlib.AsyncExitStack) -> Backends:
    """Rows, tasks, events and vectors in the PostgreSQL of all processes. kinds: what this one works on."""
    url, wait_seconds = settings.database_url, settings.database_wait_seconds
    db = PostgresDatabase(url, connections_max=settings.database_connections_max, wait_seconds=wait_seconds)
    await db.open()
    stack.push_async_callback(db.close)
    clock = DatabaseClock()
    clock.set_offset(await db.clock_offset_seconds())
    following = asyncio.create_task(_follow_clock(clock, db.clock_offset_seconds))
    stack.callback(following.cancel)
    index = PgvectorIndex(
        db,
        url,
        exact_passages_max=settings.index_exact_passages_max,
        cache_bytes_max=settings.index_cache_bytes_max,
        wait_seconds=wait_seconds,
    )
    await index.open()
    stack.push_async_callback(index.close)
    events = PostgresEventBus(
        url,
        ring_bytes_max=settings.event_ring_bytes_max,
        memory_bytes_max=settings.event_memory_bytes_max,
        retention_seconds=settings.event_retention_seconds,
        flush_interval_seconds=settings.event_flush_interval_seconds,
        poll_interval_seconds=settings.event_poll_interval_seconds,
        wait_seconds=wait_seconds,
    )
    await events.open()
    stack.push_async_callback(events.stop)
    queue = ProcrastinateQueue(url, kinds=kinds, wait_seconds=wait_seconds)
    await queue.open()
    stack.push_async_callback(queue.close)
    if "ingest" in kinds:
        maintaining = asyncio.create_task(_maintain(index.maintain, settings.sweep_interval_seconds))
        stack.callback(maintaining.cancel)
    return Backends(db, queue, events, index, clock)


async def _follow_clock(clock: DatabaseClock, measure: Callable[[], Awaitable[float]]) -> None:
    """Keep to the database's clock, so that all processes mean the same by now."""
    while True:
        await asyncio.sleep(_CLOCK_SECONDS)
        with contextlib.suppress(StoreUnavailable):
            clock.set_offset(await measure())


async def _maintain(maintain: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
    """Let the index do what no request should wait for."""
    while True:
        await asyncio.sleep(pause_seconds)
        try:
            await maintain()
        except BackendError as exc:
            log.error("%s The index will be looked after later.", exc.message)


def migrate_database(settings: Settings) -> str:
    """Bring the PostgreSQL of the settings to `HEAD`; returns a line about it. Raises StoreUnavailable."""
    try:
        migrate_postgres(settings.database_url)
    except MigrationFailed as exc:
        raise StoreUnavailable(f"The database cannot be migrated: {exc}.") from exc
    apply_schema(settings.database_url)
    return f"The database is at revision {HEAD}."


async def transfer(
    settings: Settings, source: Path, source_blobs: BlobStore, target_blobs: BlobStore | None, tell: Callable[[str], None]
) -> None:
    """Move all rows of an embedded database to the database of the settings, and all bytes of its files to another blob store.

    source: the SQLite file, which no server uses. target_blobs: None when the bytes stay where they are. tell: told of the progress, a line
    at a time. Raises ConfigError when the target has rows already, and StoreUnavailable; rows are written last, so what is told of is there
    whole, or can be done again.
    """
    tell(migrate_database(settings))
    keys = await asyncio.to_thread(blob_keys, source)
    if target_blobs is not None:
        for key in keys:
            await target_blobs.write(key, source_blobs.read(key), bytes_max=sys.maxsize)
        tell(f"{len(keys)} blobs copied")
    for name, count in (await asyncio.to_thread(transfer_rows, source, settings.database_url)).items():
        tell(f"{name}: {count} rows")


async def check_queue(settings: Settings) -> str:
    """One line about the queue. Raises StoreUnavailable."""
    queue = ProcrastinateQueue(settings.database_url, kinds=(), wait_seconds=settings.database_wait_seconds)
    await queue.open()
    try:
        return await queue.check()
    finally:
        await queue.close()
