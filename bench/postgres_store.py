"""CPU of an operation on PostgreSQL against bare asyncpg: the same statements, written by hand, on as many connections."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import sqlalchemy as sa

from bench import machine
from bench.report import Row, at_most, median
from bench.scale import Scale
from mini_assistant.db.base import Query
from mini_assistant.db.postgres import PostgresDatabase
from mini_assistant.db.tables import assistants
from mini_assistant.ids import new_id

TARGET = 2.0
CALLERS = (1, 32)
_CONNECTIONS = 10
_WAIT_SECONDS = 10.0
_WARM_UP = 320
_OPERATIONS_PER_ROUND_SECOND = 2500
_BODY = '{"id":"asst_abcdefghijklmnopqrstuvwx","object":"assistant","name":"Tower guide"}' * 4

_insert = Query.insert_into(assistants)
_select = Query(
    sa.select(assistants.c.body).where(assistants.c.id == sa.bindparam("object_id"), assistants.c.project_id == sa.bindparam("project_id"))
)
_BARE_INSERT = "INSERT INTO assistants (id, project_id, created_at, body) VALUES ($1, $2, $3, $4)"
_BARE_SELECT = "SELECT body FROM assistants WHERE id = $1 AND project_id = $2"


class BareConnections:
    """Some connections that read, and one that writes what waits together in one transaction."""

    def __init__(self, reads: list[Any], writes: Any) -> None:
        self._reads, self._writes = reads, writes
        self._free = asyncio.Semaphore(len(reads))
        self._waiting: list[tuple[tuple[object, ...], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    @classmethod
    async def to(cls, url: str) -> "BareConnections":
        """Open them."""
        return cls([await asyncpg.connect(url) for _ in range(_CONNECTIONS)], await asyncpg.connect(url))

    async def get(self, object_id: str) -> list[Any]:
        """One read."""
        async with self._free:
            connection = self._reads.pop()
            try:
                return await connection.fetch(_BARE_SELECT, object_id, "default")
            finally:
                self._reads.append(connection)

    async def insert(self, *values: object) -> None:
        """One insert, answered after its commit."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((values, answer))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_waiting())
        await answer

    async def _write_waiting(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting, []
            if len(together) == 1:
                await self._writes.fetch(_BARE_INSERT, *together[0][0])
            else:
                await self._writes.executemany(_BARE_INSERT, [values for values, _ in together])
            for _, answer in together:
                answer.set_result(None)
            await asyncio.sleep(0)  # those who have their answer hand in their next one
        self._writing = None

    async def close(self) -> None:
        """Close them."""
        for connection in (*self._reads, self._writes):
            await connection.close()


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """Inserts and reads, by one caller and by 32."""
    with machine.postgres() as database:
        db = PostgresDatabase(database.url, connections_max=_CONNECTIONS, wait_seconds=_WAIT_SECONDS)
        await db.open()
        bare = await BareConnections.to(database.url)
        known = new_id("asst")
        await db.write([_insert(id=known, project_id="default", created_at=1, body=_BODY)])
        operations: dict[str, tuple[Callable[[], Awaitable[object]], Callable[[], Awaitable[object]]]] = {
            "insert": (
                lambda: db.write([_insert(id=new_id("asst"), project_id="default", created_at=1, body=_BODY)]),
                lambda: bare.insert(new_id("asst"), "default", 1, _BODY),
            ),
            "get": (lambda: db.read(_select(object_id=known, project_id="default")), lambda: bare.get(known)),
        }
        for name, (ours, least) in operations.items():
            for callers in CALLERS:
                yield await _compared(f"PostgreSQL: {name}, {_named(callers)}", ours, least, callers, scale)
        await bare.close()
        await db.close()


async def _compared(
    what: str, ours: Callable[[], Awaitable[object]], least: Callable[[], Awaitable[object]], callers: int, scale: Scale
) -> Row:
    count = int(_OPERATIONS_PER_ROUND_SECOND * scale.round_seconds) // callers
    for operation in (least, ours):
        await _cpu_us(operation, callers, _WARM_UP // callers)
    ours_us: list[float] = []
    least_us: list[float] = []
    for _ in range(scale.rounds):
        least_us.append(await _cpu_us(least, callers, count))
        ours_us.append(await _cpu_us(ours, callers, count))
    ratio = median(a / b for a, b in zip(ours_us, least_us, strict=True))
    note = f" ({median(ours_us):.0f} us CPU)"
    return at_most(what, ratio, TARGET, unit=" x", note=note, bound=f"{median(least_us):.0f} us CPU, bare asyncpg")


async def _cpu_us(operation: Callable[[], Awaitable[object]], callers: int, count: int) -> float:
    """CPU of this process for an operation, while each caller does one after another."""

    async def repeat() -> None:
        for _ in range(count):
            await operation()

    began = time.process_time()
    await asyncio.gather(*(repeat() for _ in range(callers)))
    return (time.process_time() - began) / (count * callers) * 1e6


def _named(callers: int) -> str:
    return "1 caller" if callers == 1 else f"{callers} callers"
