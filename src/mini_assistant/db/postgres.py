"""Rows in PostgreSQL, shared by all processes of a cluster: reads on a few connections, writes in groups on one (`postgres_writer.py`).

A commit is on the server's disk before it is answered, unless the caller says that nobody is waiting for it (`durable=False`).
A server that restarts is waited for, by reads and by writes that have not been sent yet.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect

from mini_assistant.clock import SystemClock
from mini_assistant.db.base import Bound, Row
from mini_assistant.db.migrations import MigrationFailed, check_revision
from mini_assistant.db.postgres_connections import FAILURES, Address, Connection, ReadConnections, reason, say_goodbye
from mini_assistant.db.postgres_writer import Statement, Write, Writer, has_nul
from mini_assistant.errors import StoreUnavailable

_CLOCK_SAMPLES = 3


def _make_dialect() -> Any:
    dialect: Any = asyncpg_dialect()
    # Or else every insert would ask for its new key, and in another way for that of a table without one.
    dialect.insert_returning = dialect.preexecute_autoincrement_sequences = dialect.supports_sequences = False
    return dialect


DIALECT = _make_dialect()
"""How statements are worded for PostgreSQL."""


class PostgresDatabase:
    """A PostgreSQL database that `mini-assistant migrate` has prepared."""

    def __init__(self, url: str, *, connections_max: int, wait_seconds: float) -> None:
        """connections_max: of reads; one more writes. wait_seconds: longest wait for a connection."""
        self._address = Address(url, wait_seconds)
        self._connections_max = connections_max
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reads: ReadConnections | None = None
        self._writer: Writer | None = None

    async def open(self) -> None:
        """Connect. Raises StoreUnavailable when the server is not there in time, or its tables are not the ones of this version."""
        connection = await self._address.connect_in_time()
        try:
            await self._check_tables(connection)
        except StoreUnavailable:
            await say_goodbye(connection)
            raise
        self._loop = asyncio.get_running_loop()
        self._reads = ReadConnections(self._address, self._connections_max)
        self._writer = Writer(self._address)
        self._writer.start(connection)

    async def _check_tables(self, connection: Connection) -> None:
        try:
            rows = await connection.fetch("SELECT version_num FROM alembic_version")
        except asyncpg.UndefinedTableError:
            rows = []
        except FAILURES as exc:
            raise StoreUnavailable(f"PostgreSQL at {self._address} cannot be used: {reason(exc)}.") from exc
        try:
            check_revision(rows[0][0] if rows else None)
        except MigrationFailed as exc:
            raise StoreUnavailable(f"The database at {self._address} cannot be used: {exc}.") from exc

    async def read(self, statement: Bound) -> list[Row]:
        if self._reads is None:
            raise StoreUnavailable("The database is closed.")
        compiled = statement.query.compiled(DIALECT)
        parameters = compiled.in_order(statement.parameters)
        try:
            return list(map(tuple, await self._reads.fetch(compiled.text, parameters)))
        except asyncpg.CharacterNotInRepertoireError as exc:
            if has_nul(parameters):
                return []  # no row has such a text
            raise StoreUnavailable(f"The database cannot be read: {reason(exc)}.") from exc
        except FAILURES as exc:
            raise StoreUnavailable(f"The database cannot be read: {reason(exc)}.") from exc

    async def write(
        self, statements: Sequence[Bound], on_commit: Callable[[], None] | None = None, *, durable: bool = True
    ) -> list[list[Row]]:
        if self._loop is None or self._writer is None:
            raise StoreUnavailable("The database is closed.")
        answer: asyncio.Future[list[list[Row]]] = self._loop.create_future()
        wait_until = self._loop.time() + self._address.wait_seconds
        self._writer.put(Write([_compiled(bound) for bound in statements], on_commit, durable, answer, wait_until))
        return await answer

    async def check(self) -> str:
        connection = await self._address.connect_in_time()
        try:
            await self._check_tables(connection)
            rows = await connection.fetch("SELECT current_setting('server_version'), pg_is_in_recovery()")
        except FAILURES as exc:
            raise StoreUnavailable(f"PostgreSQL at {self._address} cannot be used: {reason(exc)}.") from exc
        finally:
            await say_goodbye(connection)
        version, is_standby = rows[0]
        if is_standby:
            raise StoreUnavailable(f"PostgreSQL at {self._address} is a standby, which cannot be written.")
        return f"PostgreSQL {version}, {self._address}"

    async def clock_offset_seconds(self) -> float:
        """How far the database's clock is ahead of this machine's; of several samples the one with the shortest way there and back.

        Raises StoreUnavailable.
        """
        if self._reads is None:
            raise StoreUnavailable("The database is closed.")
        clock = SystemClock()
        samples: list[tuple[float, float]] = []
        for _ in range(_CLOCK_SAMPLES):
            before = clock.now()
            try:
                rows = await self._reads.fetch("SELECT extract(epoch FROM clock_timestamp())::float8", ())
            except FAILURES as exc:
                raise StoreUnavailable(f"The database cannot be read: {reason(exc)}.") from exc
            after = clock.now()
            samples.append((after - before, rows[0][0] - (before + after) / 2))
        return min(samples)[1]

    async def close(self) -> None:
        writer, reads = self._writer, self._reads
        self._writer = self._reads = None
        if writer is not None:
            await writer.stop()
        if reads is not None:
            await reads.close()


def _compiled(bound: Bound) -> Statement:
    compiled = bound.query.compiled(DIALECT)
    return compiled.text, compiled.in_order(bound.parameters), bound.guard
