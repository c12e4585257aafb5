"""Rows in SQLite: one writer thread that commits in groups, one reader thread, both on raw `sqlite3`.

A commit is on disk before it is answered (WAL, synchronous=FULL), unless the caller says that nobody is waiting for it
(`durable=False`); all writes that wait at the same time share one commit. A list that fails is taken out of the group, and its
neighbours are not touched.
"""

import asyncio
import contextlib
import fcntl
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy.dialects import sqlite as sqlite_dialect

from mini_assistant.db.base import Bound, GuardFailed, Row, UniqueViolation
from mini_assistant.db.migrations import MigrationFailed, migrate, require_head
from mini_assistant.errors import StoreUnavailable

_DIALECT = sqlite_dialect.dialect(paramstyle="qmark")
_GROUP_MAX = 256
_LOCK_WAIT_SECONDS = 1.0


# Text, parameters and guard. A plain tuple: one is made for every statement.
_Statement = tuple[str, tuple[Any, ...], str | None]


class _Write(NamedTuple):
    statements: list[_Statement]
    on_commit: Callable[[], None] | None
    is_durable: bool
    answer: "asyncio.Future[list[list[Row]]]"


# Text, parameters and who waits for the rows. Again a plain tuple.
_Read = tuple[str, tuple[Any, ...], "asyncio.Future[list[Row]]"]
_ReadOutcome = tuple["asyncio.Future[list[Row]]", list[Row] | Exception]
_WriteOutcome = tuple[_Write, list[list[Row]] | Exception]
_Outcomes = TypeVar("_Outcomes")
_Job = TypeVar("_Job")


class ServerHasDatabase(StoreUnavailable):
    """Another server has taken the file."""


class SqliteDatabase:
    """The embedded database: a file in `data_dir` that one server at a time may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._lock_file: Any = None
        self._writer = _ConnectionThread("database-writer", self._write_group)
        self._reader = _ConnectionThread("database-reader", self._read_group)

    async def open(self) -> None:
        """Take the file, bring it to the current shape and start the threads.

        Raises StoreUnavailable when another server uses the file or it cannot be opened.
        """
        self._loop = asyncio.get_running_loop()
        try:
            writer, reader = await asyncio.to_thread(self._prepare_file)
        except StoreUnavailable:
            self._release_lock()
            raise
        self._writer.start(writer)
        self._reader.start(reader)
        self._is_open = True

    async def open_beside_server(self) -> None:
        """Open the file for a command: as `open` when no server has it, else beside the server, which goes on.

        Raises StoreUnavailable when the file is not there, or its shape is not that of this version.
        """
        if not self.path.is_file():
            raise StoreUnavailable(f"{self.path} is not there. It is made by the first start of the server, or named by --data-dir.")
        try:
            await self.open()
        except ServerHasDatabase:
            self._loop = asyncio.get_running_loop()
            writer, reader = await asyncio.to_thread(self._open_connections)
            self._writer.start(writer)
            self._reader.start(reader)
            self._is_open = True

    def _prepare_file(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_file = open(self.path.with_suffix(".lock"), "w")  # noqa: SIM115 - held until close
            self._take_lock(self._lock_file.fileno())
        except BlockingIOError as exc:
            raise ServerHasDatabase(f"{self.path} is in use by another server.") from exc
        except OSError as exc:
            raise StoreUnavailable(f"{self.path} cannot be used: {exc.strerror}.") from exc
        try:
            with contextlib.closing(_connect(self.path)) as connection:
                migrate(connection, f"sqlite:///{self.path}")
        except (sqlite3.Error, MigrationFailed) as exc:
            raise StoreUnavailable(f"{self.path} cannot be opened: {exc}.") from exc
        return self._open_connections()

    def _open_connections(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        try:
            with contextlib.ExitStack() as opened:
                writer = opened.enter_context(contextlib.closing(_connect(self.path)))
                reader = opened.enter_context(contextlib.closing(_connect(self.path)))
                reader.execute("PRAGMA query_only = ON")
                require_head(reader)
                opened.pop_all()  # from here on their threads close them
        except (sqlite3.Error, MigrationFailed) as exc:
            raise StoreUnavailable(f"{self.path} cannot be opened: {exc}.") from exc
        return writer, reader

    def _take_lock(self, descriptor: int) -> None:
        """Raises BlockingIOError when another server holds it.

        A child that a killed server was just starting has the lock for some milliseconds more, until it becomes another program.
        """
        deadline = time.monotonic() + _LOCK_WAIT_SECONDS
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def read(self, statement: Bound) -> "asyncio.Future[list[Row]]":
        compiled = statement.query.compiled(_DIALECT)
        answer: asyncio.Future[list[Row]] = self._open_loop().create_future()
        self._reader.put((compiled.text, compiled.in_order(statement.parameters), answer))
        return answer

    async def write(
        self, statements: Sequence[Bound], on_commit: Callable[[], None] | None = None, *, durable: bool = True
    ) -> list[list[Row]]:
        answer: asyncio.Future[list[list[Row]]] = self._open_loop().create_future()
        self._writer.put(_Write([_compiled(bound) for bound in statements], on_commit, durable, answer))
        return await answer

    def _open_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or not self._is_open:
            raise StoreUnavailable("The database is closed.")
        return self._loop

    def _read_group(self, connection: sqlite3.Connection, reads: list[_Read]) -> None:
        outcomes: list[_ReadOutcome] = []
        if len(reads) > 1:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("BEGIN")  # one look at the log for all of them
        for text, parameters, answer in reads:
            try:
                outcomes.append((answer, connection.execute(text, parameters).fetchall()))
            except (sqlite3.Error, ValueError, OverflowError) as exc:
                outcomes.append((answer, StoreUnavailable(f"The database cannot be read: {exc}.")))
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        self._call_in_loop(_deliver_reads, outcomes)

    def _write_group(self, connection: sqlite3.Connection, jobs: list[_Write]) -> None:
        outcomes: list[_WriteOutcome]
        is_durable = any(job.is_durable for job in jobs)
        try:
            if not is_durable:
                connection.execute("PRAGMA synchronous = NORMAL")
            outcomes = _write_together(connection, jobs) or _write_separately(connection, jobs)
        except sqlite3.Error as exc:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            failure = StoreUnavailable(f"The database cannot be written: {exc}.")
            outcomes = [(job, failure) for job in jobs]
        if not is_durable:
            connection.execute("PRAGMA synchronous = FULL")
        self._call_in_loop(_deliver_writes, outcomes)

    def _call_in_loop(self, deliver: Callable[[asyncio.AbstractEventLoop, _Outcomes], None], outcomes: _Outcomes) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            self._loop.call_soon_threadsafe(deliver, self._loop, outcomes)

    async def check(self) -> str:
        await asyncio.to_thread(_check_file, self.path)
        return f"SQLite {sqlite3.sqlite_version}, {self.path}"

    async def close(self) -> None:
        self._is_open = False
        await asyncio.to_thread(self._reader.stop)
        await asyncio.to_thread(self._writer.stop)
        self._release_lock()

    def _release_lock(self) -> None:
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None


class _ConnectionThread(Generic[_Job]):
    """A thread with a connection that takes all waiting jobs at once."""

    def __init__(self, name: str, process: Callable[[sqlite3.Connection, list[_Job]], None]) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._process = process
        self._name = name
        self._thread: threading.Thread | None = None
        self.put = self._jobs.put

    def start(self, connection: sqlite3.Connection) -> None:
        self._thread = threading.Thread(target=self._run, args=(connection,), name=self._name, daemon=True)
        self._thread.start()

    def _run(self, connection: sqlite3.Connection) -> None:
        stopping = False
        while not stopping:
            taken = [self._jobs.get()]
            while len(taken) < _GROUP_MAX and not self._jobs.empty():
                taken.append(self._jobs.get())  # at once: nobody else takes from this queue
            stopping = None in taken
            jobs = [job for job in taken if job is not None]
            if jobs:
                self._process(connection, jobs)
        connection.close()

    def stop(self) -> None:
        """Finish the waiting jobs and end the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 5000", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _compiled(bound: Bound) -> _Statement:
    compiled = bound.query.compiled(_DIALECT)
    return compiled.text, compiled.in_order(bound.parameters), bound.guard


def _run_all(connection: sqlite3.Connection, statements: Sequence[_Statement]) -> list[list[Row]]:
    answer: list[list[Row]] = []
    for text, parameters, guard in statements:
        rows: list[Row] = connection.execute(text, parameters).fetchall()
        if guard is not None and not rows:
            raise GuardFailed(guard)
        answer.append(rows)
    return answer


def _write_together(connection: sqlite3.Connection, jobs: list[_Write]) -> list[_WriteOutcome] | None:
    """One transaction for the whole group; None, with nothing written, when one of several lists fails."""
    outcomes: list[_WriteOutcome] = []
    connection.execute("BEGIN IMMEDIATE")
    for job in jobs:
        try:
            outcomes.append((job, _run_all(connection, job.statements)))
        except _LIST_FAILURES as exc:
            if not connection.in_transaction:  # a full disk has ended it already
                raise
            connection.execute("ROLLBACK")
            return [(job, _translated(exc))] if len(jobs) == 1 else None
    connection.execute("COMMIT")
    return outcomes


def _write_separately(connection: sqlite3.Connection, jobs: list[_Write]) -> list[_WriteOutcome]:
    """One transaction with a savepoint for each list, so that a failing one leaves the others alone."""
    outcomes: list[_WriteOutcome] = []
    connection.execute("BEGIN IMMEDIATE")
    for job in jobs:
        connection.execute("SAVEPOINT list")
        try:
            outcomes.append((job, _run_all(connection, job.statements)))
        except _LIST_FAILURES as exc:
            if not connection.in_transaction:  # a full disk ends the whole transaction, and with it the group
                raise
            connection.execute("ROLLBACK TO list")
            outcomes.append((job, _translated(exc)))
        connection.execute("RELEASE list")
    connection.execute("COMMIT")
    return outcomes


# ValueError and OverflowError come from parameters that SQLite cannot hold, such as lone surrogates.
_LIST_FAILURES = (GuardFailed, sqlite3.Error, ValueError, OverflowError)


def _translated(exc: Exception) -> Exception:
    if isinstance(exc, GuardFailed):
        return exc
    if isinstance(exc, sqlite3.IntegrityError) and "UNIQUE constraint failed: " in str(exc):
        return UniqueViolation(str(exc).removeprefix("UNIQUE constraint failed: "))
    return StoreUnavailable(f"The database refused a write: {exc}.")


def _deliver_reads(_: asyncio.AbstractEventLoop, outcomes: list[_ReadOutcome]) -> None:
    for answer, outcome in outcomes:
        if answer.done():
            continue  # the caller has been cancelled
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


def _deliver_writes(loop: asyncio.AbstractEventLoop, outcomes: list[_WriteOutcome]) -> None:
    for job, outcome in outcomes:
        if isinstance(outcome, Exception):
            if not job.answer.done():
                job.answer.set_exception(outcome)
            continue
        if job.on_commit is not None:
            # Before the caller goes on, but by itself: one that breaks is reported, and stops nobody else.
            loop.call_soon(job.on_commit)
        if not job.answer.done():
            job.answer.set_result(outcome)


def _check_file(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(path)
        try:
            problems = connection.execute("PRAGMA quick_check(1)").fetchall()
        finally:
            connection.close()
    except OSError as exc:
        raise StoreUnavailable(f"{path} cannot be used: {exc.strerror}.") from exc
    except sqlite3.Error as exc:
        raise StoreUnavailable(f"{path} cannot be opened: {exc}.") from exc
    if problems != [("ok",)]:
        raise StoreUnavailable(f"{path} is damaged: {problems[0][0]}.")
