"""CPU of a store operation against a writer thread that does nothing else: raw `sqlite3`, hand-written SQL, group commit."""

import asyncio
import queue
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa

from bench.report import Row, at_most, median
from bench.scale import Scale
from mini_assistant.db.base import Query
from mini_assistant.db.sqlite import SqliteDatabase
from mini_assistant.db.tables import assistants
from mini_assistant.ids import new_id

TARGET = 1.5
_COROUTINES = 32
_OPERATIONS_PER_ROUND_SECOND = 6000
_BODY = '{"id":"asst_abcdefghijklmnopqrstuvwx","object":"assistant","name":"Tower guide"}' * 4

_insert = Query.insert_into(assistants)
_select = Query(
    sa.select(assistants.c.body).where(assistants.c.id == sa.bindparam("object_id"), assistants.c.project_id == sa.bindparam("project_id"))
)
_RAW_INSERT = "INSERT INTO assistants (id, project_id, created_at, body) VALUES (?, ?, ?, ?)"
_RAW_SELECT = "SELECT body FROM assistants WHERE id = ? AND project_id = ?"

_Job = tuple[str, tuple[object, ...], "asyncio.Future[list[tuple[str, ...]]]"]


class RawThread:
    """A thread with a connection. It commits what waits together and answers with one call of the loop."""

    def __init__(self, path: Path) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def run(self, text: str, parameters: tuple[object, ...]) -> "asyncio.Future[list[tuple[str, ...]]]":
        """Hand in a statement."""
        answer: asyncio.Future[list[tuple[str, ...]]] = self._loop.create_future()
        self._jobs.put((text, parameters, answer))
        return answer

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            while not self._jobs.empty() and (further := self._jobs.get()) is not None:
                jobs.append(further)
            self._connection.execute("BEGIN IMMEDIATE" if job[0] is _RAW_INSERT else "BEGIN")
            rows = [self._connection.execute(text, parameters).fetchall() for text, parameters, _ in jobs]
            self._connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(_deliver, jobs, rows)
        self._connection.close()

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()


def _deliver(jobs: list[_Job], rows: list[list[tuple[str, ...]]]) -> None:
    for (_, _, answer), found in zip(jobs, rows, strict=True):
        answer.set_result(found)


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """One row for inserts and one for reads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite3"
        db = SqliteDatabase(path)
        await db.open()
        raw = RawThread(path)
        known = new_id("asst")
        await db.write([_insert(id=known, project_id="default", created_at=1, body=_BODY)])

        yield await _compared(
            "store: insert",
            lambda: db.write([_insert(id=new_id("asst"), project_id="default", created_at=1, body=_BODY)]),
            lambda: raw.run(_RAW_INSERT, (new_id("asst"), "default", 1, _BODY)),
            scale,
        )
        yield await _compared(
            "store: get",
            lambda: db.read(_select(object_id=known, project_id="default")),
            lambda: raw.run(_RAW_SELECT, (known, "default")),
            scale,
        )
        raw.stop()
        await db.close()


async def _compared(what: str, ours: Callable[[], Awaitable[object]], least: Callable[[], Awaitable[object]], scale: Scale) -> Row:
    count = int(_OPERATIONS_PER_ROUND_SECOND * scale.round_seconds) // _COROUTINES
    ours_us: list[float] = []
    least_us: list[float] = []
    for _ in range(scale.rounds):
        least_us.append(await _cpu_us(least, count))
        ours_us.append(await _cpu_us(ours, count))
    ratio = median(a / b for a, b in zip(ours_us, least_us, strict=True))
    note = f" ({median(ours_us):.1f} us CPU)"
    return at_most(what, ratio, TARGET, unit=" x", note=note, bound=f"{median(least_us):.1f} us CPU, raw thread")


async def _cpu_us(operation: Callable[[], Awaitable[object]], count: int) -> float:
    """CPU of this process for an operation, while 32 coroutines do one after another."""

    async def repeat() -> None:
        for _ in range(count):
            await operation()

    began = time.process_time()
    await asyncio.gather(*(repeat() for _ in range(_COROUTINES)))
    return (time.process_time() - began) / (count * _COROUTINES) * 1e6
