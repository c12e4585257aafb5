"""The queue of many processes: procrastinate on the same PostgreSQL as the rows, in a schema of its own.

Its jobs are hints. A job is finished as soon as a process has taken its id, `put` neither waits nor fails, and what is lost with a
process or a connection is found by the sweepers. What is for all processes is no job but a notification to whoever listens.
"""

import asyncio
import contextlib
import importlib.metadata
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable
from itertools import islice
from typing import Any, NamedTuple, cast, get_args

import psycopg
from procrastinate import App, PsycopgConnector
from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException
from procrastinate.manager import get_channel_for_queues
from procrastinate.sql import queries
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

from mini_assistant.errors import StoreUnavailable
from mini_assistant.queue.base import TaskKind
from mini_assistant.queue.procrastinate_schema import SCHEMA

log = logging.getLogger("mini_assistant.queue")

_CHANNEL = "mini_assistant_attention"
_PENDING_MAX = 10_000
_BATCH_MAX = 1000
_CONNECTIONS_MAX = 3
_FREE_CONNECTION_SECONDS_MAX = 3.0
_FIRST_PAUSE_SECONDS = 0.1
_PAUSE_SECONDS_MAX = 5.0
_STEADY_SECONDS = 10.0
_POLL_INTERVAL_SECONDS = 5.0
_CLEAN_INTERVAL_SECONDS = 60.0
_STALLED_SECONDS = 30.0
_LAST_BATCH_SECONDS = 2.0

_NEW_JOB = '{"type": "job_inserted", "job_id": 0}'
_NOTIFY = "SELECT pg_notify(%(channel)s, payload) FROM unnest(%(payloads)s::text[]) AS payload"
_FETCH_JOB = queries["fetch_job"]
_SEE_JOB = "SELECT EXISTS (SELECT 1 FROM procrastinate_jobs WHERE status = 'todo' AND queue_name = ANY(%(queues)s)) AS is_there"
_NO_JOB: dict[str, Any] = {"id": None}
_MISS_SECONDS = 0.001
_MISSES_MAX = 10
_COUNT_WAITING = "SELECT count(*) AS waiting FROM procrastinate_jobs WHERE status = 'todo'"
# A job whose worker is gone has no worker. What has waited for an hour is wanted by nobody, or its row has been found long since.
_DELETE_LOST_JOBS = """
DELETE FROM procrastinate_jobs WHERE (status = 'doing' AND worker_id IS NULL) OR id IN (
    SELECT job_id FROM procrastinate_events WHERE type = 'deferred' AND at < now() - interval '1 hour'
)"""

# What comes from procrastinate and psycopg when PostgreSQL is away, or its tables are missing.
_FAILURES = (ConnectorException, psycopg.Error, OSError, TimeoutError)


class _Hint(NamedTuple):
    kind: TaskKind
    task_id: str
    to_all: bool


class _Connector(PsycopgConnector):
    """procrastinate's connections, but for the one that it would listen on: the queue has one for everything it hears.

    Every worker is told of every job. To take one costs PostgreSQL much more than to see that there is none, so it is looked for before;
    and a worker that comes too late again and again waits a little longer, by chance, so that the others have taken the job by then.
    """

    def __init__(self, listen: Callable[[Notify], Awaitable[None]]) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType] - of bare callables
        self._listen = listen
        self.is_not_looking = asyncio.Event()
        self.is_not_looking.set()
        self._misses = 0

    async def execute_query_one_async(self, query: Any, **arguments: Any) -> dict[str, Any]:
        if query != _FETCH_JOB:
            return await super().execute_query_one_async(query, **arguments)
        self.is_not_looking.clear()
        try:
            if self._misses:
                await asyncio.sleep(random.random() * self._misses * _MISS_SECONDS)  # noqa: S311 - no secret
            seen = await super().execute_query_one_async(_SEE_JOB, queues=arguments["queues"])
            found = await super().execute_query_one_async(query, **arguments) if seen["is_there"] else _NO_JOB
            self._misses = min(self._misses + 1, _MISSES_MAX) if found["id"] is None else 0
            return found
        finally:
            self.is_not_looking.set()

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        await self._listen(on_notification)


class ProcrastinateQueue:
    """Hands ids from any process to one of those that work on their kind, or to all of them.

    kinds: what this process works on; empty: it only puts. A process keeps up to three connections, and one more when it works.
    wait_seconds: how long PostgreSQL may take to accept a connection.
    """

    def __init__(self, url: str, *, kinds: Collection[TaskKind], wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds
        self._connection = _connection_options(url, wait_seconds)
        self._waiting: dict[TaskKind, asyncio.Queue[str]] = {kind: asyncio.Queue() for kind in get_args(TaskKind) if kind in kinds}
        self._connector = _Connector(self._wake_worker)
        self._app = App(connector=self._connector)
        # Each kind is a queue of procrastinate, with one task that takes an id.
        self._offers = {kind: self._make_offer(kind) for kind in cast("tuple[TaskKind, ...]", get_args(TaskKind))}
        # What is still to be sent, in its order. An id that waits already is not sent twice.
        self._pending: dict[_Hint, None] = {}
        self._has_pending = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._listens = asyncio.Event()
        self._has_jobs = asyncio.Event()
        self._pool: AsyncConnectionPool[Any] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closing = False
        self._is_away = False
        self._has_dropped = False

    def _make_offer(self, kind: TaskKind) -> Any:
        async def offer(task_id: str) -> None:
            self._waiting[kind].put_nowait(task_id)
            job = asyncio.current_task()
            if job is not None:
                # It fails when it cannot be deleted, and procrastinate does not look. The clean-up removes it.
                job.add_done_callback(lambda job: job.cancelled() or job.exception())

        return self._app.task(name=f"attend_{kind}", queue=kind)(offer)

    async def open(self) -> None:
        """Connect, and begin to send and to listen. A queue is opened once.

        Raises StoreUnavailable when PostgreSQL does not answer in time, or has no tables of the queue (`apply_schema` makes them).
        """
        # Both tell of every job, and of every attempt to reach a database that is away. What matters is logged here, once.
        logging.getLogger("procrastinate").setLevel(logging.CRITICAL)
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
        self._pool = AsyncConnectionPool(
            kwargs=self._connection,
            configure=_commit_each_statement,
            min_size=1,
            max_size=_CONNECTIONS_MAX,
            open=False,
            timeout=min(self._wait_seconds, _FREE_CONNECTION_SECONDS_MAX),
            reconnect_timeout=_FREE_CONNECTION_SECONDS_MAX,
            name="queue",
        )
        try:
            await self._pool.open(wait=True, timeout=self._wait_seconds)
            await self._app.open_async(self._pool)
            await self.check()
            self._start(self._send)
            self._start(self._clean_regularly)
            if self._waiting:
                self._start(self._listen)
                self._start(self._work)
                async with asyncio.timeout(self._wait_seconds):
                    await self._listens.wait()
        except _FAILURES as exc:
            await self.close()
            raise _unavailable(exc) from exc
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Send what waits if that is quickly done, and leave. Ids that were taken from PostgreSQL and not from here are lost."""
        if self._tasks and not self._is_away:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_BATCH_SECONDS):
                    await self._all_sent.wait()
        self._is_closing = True
        await _cancel(self._tasks)
        self._tasks.clear()
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    async def check(self) -> str:
        """What this queue is and how much waits in it, in a few words. Raises StoreUnavailable."""
        try:
            row = await self._app.connector.execute_query_one_async(_COUNT_WAITING)
        except _FAILURES as exc:
            raise _unavailable(exc) from exc
        return f"procrastinate {importlib.metadata.version('procrastinate')}, {row['waiting']} waiting"

    def put(self, kind: TaskKind, task_id: str, *, to_all: bool = False) -> None:
        """Offer a task to a process that works on its kind, or to all of them that listen now. Never waits, never fails.

        While PostgreSQL is away the last 10,000 ids are kept, and sent when it is back.
        """
        self._pending[_Hint(kind, task_id, to_all)] = None
        if len(self._pending) > _PENDING_MAX:
            self._drop_oldest()
        self._all_sent.clear()
        self._has_pending.set()

    async def get(self, kind: TaskKind) -> str:
        """The next id of a kind. Raises KeyError for a kind that this process does not work on."""
        return await self._waiting[kind].get()

    def _drop_oldest(self) -> None:
        del self._pending[next(iter(self._pending))]
        if not self._has_dropped:
            self._has_dropped = True
            log.warning("More than %d tasks wait to be put into the queue: the oldest are left to the sweepers.", _PENDING_MAX)

    # ---- what goes on behind --------------------------------------------------------------------------------------------------------

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(self._keep_up(work)))

    async def _keep_up(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin a piece of work again whenever it ends, with longer pauses the more often it does so in a row."""
        now, pause = asyncio.get_running_loop().time, _FIRST_PAUSE_SECONDS
        while not self._is_closing:
            began = now()
            try:
                await work()
            except _FAILURES as exc:
                self._tell_away(exc)
            pause = _FIRST_PAUSE_SECONDS if now() - began > _STEADY_SECONDS else min(pause * 2, _PAUSE_SECONDS_MAX)
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        # Before Python 3.12 a cancellation may be lost in `asyncio.wait_for`, which the pool uses: it must not be slept over.
        if not self._is_closing:
            await asyncio.sleep(seconds)

    def _tell_away(self, exc: BaseException) -> None:
        if not self._is_away and not self._is_closing:
            self._is_away = True
            log.warning("%s It is tried again; the sweepers find what waits.", _unavailable(exc).message)

    def _tell_back(self) -> None:
        if self._is_away:
            self._is_away = self._has_dropped = False
            log.info("The task queue is back.")

    async def _send(self) -> None:
        """Send what is put, in one batch whatever has come together while the last one was on its way."""
        while not self._is_closing:
            self._has_pending.clear()
            while self._pending:
                batch = list(islice(self._pending, _BATCH_MAX))
                for hint in batch:
                    del self._pending[hint]
                try:
                    await self._send_batch(batch)
                except BaseException:
                    self._keep(batch)
                    raise
                self._tell_back()
            self._all_sent.set()
            if not self._is_closing:
                await self._has_pending.wait()

    def _keep(self, batch: list[_Hint]) -> None:
        self._pending = dict.fromkeys(batch) | self._pending
        while len(self._pending) > _PENDING_MAX:
            self._drop_oldest()

    async def _send_batch(self, batch: list[_Hint]) -> None:
        for kind, offer in self._offers.items():
            arguments = [{"task_id": hint.task_id} for hint in batch if hint.kind == kind and not hint.to_all]
            if arguments:
                await offer.batch_defer_async(*arguments)
        payloads = [f"{hint.kind} {hint.task_id}" for hint in batch if hint.to_all]
        if payloads:
            await self._app.connector.execute_query_async(_NOTIFY, channel=_CHANNEL, payloads=payloads)

    async def _work(self) -> None:
        """Take jobs as procrastinate's worker. It ends by itself when a connection of it is cut."""
        await self._app.run_worker_async(
            queues=list(self._waiting),
            concurrency=2,  # the next job is fetched while the last one is being deleted; their order stays
            fetch_job_polling_interval=_POLL_INTERVAL_SECONDS,
            listen_notify=True,
            install_signal_handlers=False,
            delete_jobs="always",
            stalled_worker_timeout=_STALLED_SECONDS,
        )

    async def _listen(self) -> None:
        """Hear of new jobs, and of what is for all."""
        async with await psycopg.AsyncConnection.connect(**self._connection, autocommit=True) as connection:
            for channel in (_CHANNEL, *get_channel_for_queues(self._waiting)):
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            self._listens.set()
            self._has_jobs.set()  # there may be some since before
            self._tell_back()
            async for notification in connection.notifies():
                if notification.channel != _CHANNEL:
                    self._has_jobs.set()
                    continue
                kind, _, task_id = notification.payload.partition(" ")
                waiting = self._waiting.get(cast(TaskKind, kind))
                if waiting is not None:
                    waiting.put_nowait(task_id)

    async def _wake_worker(self, on_notification: Notify) -> None:
        """Tell procrastinate's worker of new jobs, but not while it looks for one.

        It forgets what it is told meanwhile, as soon as it has its answer, and would find that job only with its next poll.
        """
        while True:
            await self._has_jobs.wait()
            while not self._connector.is_not_looking.is_set():
                await self._connector.is_not_looking.wait()
            self._has_jobs.clear()
            await on_notification(channel="", payload=_NEW_JOB)

    async def _clean_regularly(self) -> None:
        """Remove what killed processes have left, and what nobody comes for."""
        while not self._is_closing:
            await self.clean()
            await self._pause(_CLEAN_INTERVAL_SECONDS)

    async def clean(self) -> None:
        """Remove workers that have shown no sign of life for half a minute, their jobs, and jobs of more than an hour."""
        await self._app.job_manager.prune_stalled_workers(_STALLED_SECONDS)
        await self._app.connector.execute_query_async(_DELETE_LOST_JOBS)


def _connection_options(url: str, wait_seconds: float) -> dict[str, Any]:
    """What libpq needs to connect to the queue's schema, and to notice in half a minute that the other side is gone."""
    options = conninfo_to_dict(url)
    return {
        "connect_timeout": max(2, round(wait_seconds)),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 30_000,
        "application_name": "mini-assistant queue",
        **options,
        "options": f"{options.get('options') or ''} -c search_path={SCHEMA}".strip(),
    }


async def _commit_each_statement(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.set_autocommit(True)  # saves a round trip before and one after each


def _unavailable(exc: BaseException) -> StoreUnavailable:
    """The error in our words; a driver's may hold an address."""
    cause = exc.__cause__ if isinstance(exc, ConnectorException) else exc
    if isinstance(cause, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction):
        return StoreUnavailable("The database has no tables of the task queue; `mini-assistant migrate` makes them.")
    return StoreUnavailable(f"The task queue's database does not answer ({type(cause).__name__}).")


async def _cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end, whatever it is; once more those that have not ended in a while."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=2 * _FREE_CONNECTION_SECONDS_MAX)
    await asyncio.gather(*tasks, return_exceptions=True)
