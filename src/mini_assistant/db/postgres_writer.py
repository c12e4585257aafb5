"""Writes to PostgreSQL: one connection of the process, on which all lists that wait at the same time share one commit.

Round trips are what a write costs, so equal statements that follow each other travel together, and a single one commits itself.
A list that fails is taken out of the group. Lists are repeated only when PostgreSQL has undone them.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import asyncpg

from mini_assistant.db.base import GuardFailed, Row, UniqueViolation
from mini_assistant.db.postgres_connections import FAILURES, Address, Connection, Pauses, is_cut_off, reason, say_goodbye
from mini_assistant.db.tables import metadata
from mini_assistant.errors import StoreUnavailable

_GROUP_MAX = 256
_TRIES_MAX = 5
# A group holds the locks of all its lists, taken in an order that no other process knows; so it gives way early, and each list goes alone.
_GROUP_LOCK_WAIT = "SET LOCAL lock_timeout = '200ms'"

# Text, parameters and guard. A plain tuple: one is made for every statement.
Statement = tuple[str, tuple[Any, ...], str | None]


class Write(NamedTuple):
    """A list of statements and who waits for it. wait_until: when to give up waiting for a connection, by the event loop's clock."""

    statements: list[Statement]
    on_commit: Callable[[], None] | None
    is_durable: bool
    answer: "asyncio.Future[list[list[Row]]]"
    wait_until: float


class _Batch(NamedTuple):
    """Statements that go to the server together: equal ones without rows, or a single one of any kind."""

    text: str
    parameters: list[tuple[Any, ...]]
    guard: str | None
    yields_rows: bool


class _RunAlone(Exception):
    """A group met the lock of another process. Nothing of it was written; each of its lists has to be tried by itself."""


# PostgreSQL undid the list because of others, or because a migration has changed what it had planned; again it may succeed.
_UNDONE = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.InvalidCachedStatementError)
# The last ones come from values of a kind that no column has.
_LIST_FAILURES = (GuardFailed, *FAILURES, AttributeError, TypeError, ValueError, OverflowError)


class Writer:
    """The task that writes, and the lists that wait for it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._jobs: deque[Write] = deque()
        self._news = asyncio.Event()
        self._is_stopping = False
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, connection: Connection) -> None:
        """Begin to write on a connection; later ones are opened when this one is lost."""
        self._connection = connection
        self._task = asyncio.create_task(self._run(), name="database-writer")

    def put(self, job: Write) -> None:
        """Hand in a list. Its `answer` is set in any case."""
        self._jobs.append(job)
        self._news.set()

    async def stop(self) -> None:
        """Write what has been handed in and close the connection."""
        self._is_stopping = True
        self._news.set()
        if self._task is not None:
            await self._task
        if self._connection is not None:
            await say_goodbye(self._connection)

    async def _run(self) -> None:
        while self._jobs or not self._is_stopping:
            self._news.clear()
            jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), _GROUP_MAX))]
            if jobs:
                await self._write_group(jobs)
            else:
                await self._news.wait()

    async def _write_group(self, jobs: list[Write]) -> None:
        connection = await self._open(jobs)
        if connection is None:
            return
        try:
            await _write_all(connection, [job for job in jobs if not _has_failed(job)])
        except FAILURES as exc:
            failure = f"The connection to PostgreSQL was lost ({reason(exc)}): this may or may not have been written."
            for job in jobs:
                _refuse(job, StoreUnavailable(failure))
            connection.terminate()
        if connection.is_closed():
            self._connection = None

    async def _open(self, jobs: list[Write]) -> Connection | None:
        """A connection; None when all of `jobs` have waited too long for it and have been told so."""
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        pauses, now = Pauses(self._address.wait_seconds), asyncio.get_running_loop().time
        while not all(map(_has_failed, jobs)):
            try:
                self._connection = await self._address.connect(max(jobs[-1].wait_until - now(), 0.1))
                return self._connection
            except StoreUnavailable as exc:
                for job in (*jobs, *self._jobs):
                    if not exc.retryable or now() >= job.wait_until:
                        _refuse(job, StoreUnavailable(exc.message))
            await pauses.next()
        return None


def _has_failed(job: Write) -> bool:
    """Whether it was refused already; a caller that was cancelled is no reason not to write."""
    return job.answer.done() and not job.answer.cancelled()


def _refuse(job: Write, failure: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(failure)


def _deliver(job: Write, rows: list[list[Row]]) -> None:
    if job.on_commit is not None:
        # Before the caller goes on, but by itself: one that breaks is reported, and stops nobody else.
        asyncio.get_running_loop().call_soon(job.on_commit)
    if not job.answer.done():
        job.answer.set_result(rows)


async def _write_all(connection: Connection, jobs: list[Write]) -> None:
    """Answer every job. Raises what the driver raises when the connection is lost; then some are not answered."""
    if len(jobs) > 1:
        try:
            if await _write_together(connection, jobs) or await _write_with_savepoints(connection, jobs):
                return
        except _RunAlone:
            await _roll_back(connection)
    for job in jobs:
        await _write_alone(connection, job)


async def _write_together(connection: Connection, jobs: list[Write]) -> bool:
    """False, with nothing written, when one of the lists fails."""
    batches = _batches([statement for job in jobs for statement in job.statements])
    is_durable = any(job.is_durable for job in jobs)
    try:
        rows = await _run_in_transaction(connection, batches, is_durable, _GROUP_LOCK_WAIT)
    except _LIST_FAILURES as exc:
        _check_group(connection, exc)
        await _roll_back(connection)
        return False
    place = 0
    for job in jobs:
        _deliver(job, rows[place : place + len(job.statements)])
        place += len(job.statements)
    return True


async def _write_with_savepoints(connection: Connection, jobs: list[Write]) -> bool:
    """One commit for all lists that hold; those that do not are refused by themselves."""
    outcomes: list[list[list[Row]] | Exception] = []
    await connection.execute(_begin(any(job.is_durable for job in jobs), _GROUP_LOCK_WAIT))
    for job in jobs:
        await connection.execute("RELEASE SAVEPOINT list; SAVEPOINT list" if outcomes else "SAVEPOINT list")
        try:
            outcomes.append(await _run_batches(connection, _batches(job.statements)))
        except _LIST_FAILURES as exc:
            _check_group(connection, exc)
            if _may_hold_again(exc, job):
                raise _RunAlone from exc
            await connection.execute("ROLLBACK TO SAVEPOINT list")
            outcomes.append(_translated(exc))
    await _commit(connection)
    for job, outcome in zip(jobs, outcomes, strict=True):
        if isinstance(outcome, Exception):
            _refuse(job, outcome)
        else:
            _deliver(job, outcome)
    return True


async def _write_alone(connection: Connection, job: Write) -> None:
    batches = _batches(job.statements)
    for tries_left in reversed(range(_TRIES_MAX)):
        try:
            rows = await _run_in_transaction(connection, batches, job.is_durable)
        except _LIST_FAILURES as exc:
            _check_connection(connection, exc)
            await _roll_back(connection)
            if tries_left and _may_hold_again(exc, job):
                continue
            return _refuse(job, _translated(exc))
        return _deliver(job, rows)
    return None


def _check_connection(connection: Connection, exc: Exception) -> None:
    """Raise the failure again when it is not one of the list: what follows needs another connection."""
    if isinstance(exc, OSError) or is_cut_off(connection, exc):
        raise exc
    if isinstance(exc, asyncpg.ReadOnlySQLTransactionError):
        # Another server has become the one to write to; the next connection is to it.
        connection.terminate()


def _check_group(connection: Connection, exc: Exception) -> None:
    _check_connection(connection, exc)
    if isinstance(exc, (*_UNDONE, asyncpg.LockNotAvailableError)):
        raise _RunAlone from exc


def _may_hold_again(exc: Exception, job: Write) -> bool:
    if isinstance(exc, asyncpg.UniqueViolationError):
        # "Insert unless it exists" by two processes at once: the second one sees the other's row the next time.
        return any("NOT (EXISTS" in text for text, _, _ in job.statements)
    return isinstance(exc, _UNDONE)


async def _run_in_transaction(connection: Connection, batches: list[_Batch], is_durable: bool, *settings: str) -> list[list[Row]]:
    if len(batches) == 1 and is_durable and (batches[0].guard is None or batches[0].yields_rows):
        return await _run_batches(connection, batches)  # a transaction by itself
    await connection.execute(_begin(is_durable, *settings))
    rows = await _run_batches(connection, batches)
    await _commit(connection)
    return rows


def _begin(is_durable: bool, *settings: str) -> str:
    return "; ".join(["BEGIN", *settings] if is_durable else ["BEGIN", "SET LOCAL synchronous_commit = off", *settings])


async def _commit(connection: Connection) -> None:
    await connection.execute("COMMIT")


async def _roll_back(connection: Connection) -> None:
    if not connection.is_closed() and connection.is_in_transaction():
        await connection.execute("ROLLBACK")


async def _run_batches(connection: Connection, batches: list[_Batch]) -> list[list[Row]]:
    answer: list[list[Row]] = []
    for batch in batches:
        if len(batch.parameters) > 1:
            await connection.executemany(batch.text, batch.parameters)
            answer.extend([] for _ in batch.parameters)
            continue
        try:
            rows: list[Row] = list(map(tuple, await connection.fetch(batch.text, *batch.parameters[0])))
        except asyncpg.CharacterNotInRepertoireError as exc:
            if batch.guard is not None and has_nul(batch.parameters[0]):
                raise GuardFailed(batch.guard) from exc  # no row has such a text
            raise
        if batch.guard is not None and not rows:
            raise GuardFailed(batch.guard)
        answer.append(rows)
    return answer


def has_nul(parameters: tuple[Any, ...]) -> bool:
    """Whether a text has a character that PostgreSQL cannot hold, so that no row has it."""
    return any(isinstance(value, str) and "\x00" in value for value in parameters)


def _batches(statements: Sequence[Statement]) -> list[_Batch]:
    batches: list[_Batch] = []
    for text, parameters, guard in statements:
        yields_rows = _yields_rows(text)
        last = batches[-1] if batches else None
        if last is not None and not yields_rows and guard is None and last.guard is None and last.text == text:
            last.parameters.append(parameters)
        else:
            batches.append(_Batch(text, [parameters], guard, yields_rows))
    return batches


@functools.lru_cache(maxsize=4096)
def _yields_rows(text: str) -> bool:
    return not text.startswith(("INSERT", "UPDATE", "DELETE")) or "RETURNING" in text


def _translated(exc: Exception) -> Exception:
    if isinstance(exc, GuardFailed):
        return exc
    if isinstance(exc, asyncpg.UniqueViolationError):
        named: Any = exc
        return UniqueViolation(unique_columns().get(named.constraint_name, f"{named.table_name}.{named.constraint_name}"))
    return StoreUnavailable(f"The database refused a write: {reason(exc)}.")


@functools.cache
def unique_columns() -> dict[str, str]:
    """The columns of each unique index by the name that PostgreSQL knows it by, as SQLite words them: `runs.thread_id`."""
    found: dict[str, str] = {}
    for table in metadata.tables.values():
        found[f"{table.name}_pkey"] = ", ".join(f"{table.name}.{column.name}" for column in table.primary_key.columns)
        found.update({f"{table.name}_{column.name}_key": f"{table.name}.{column.name}" for column in table.columns if column.unique})
        for index in table.indexes:
            if index.unique and index.name is not None:
                found[index.name] = ", ".join(f"{table.name}.{column.name}" for column in index.columns)
    return found
