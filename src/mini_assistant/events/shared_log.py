"""The log of events in PostgreSQL by which processes tell each other: sends what this one tells, hears of others, reads.

Telling never waits and never fails: what cannot be sent is kept, up to a limit. Only `events/postgres.py` uses this.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any

import asyncpg
import msgspec

from mini_assistant.errors import StoreUnavailable
from mini_assistant.events.rings import STOPS
from mini_assistant.events.shared_rings import ATTEMPT, DELETED_RUN, PIECES_LOST, Entry

log = logging.getLogger("mini_assistant.events")

_CHANNEL = "mini_assistant_events"
_WAKE_BYTES_MAX = 7500
_BATCH_ENTRIES_MAX = 2000
_BATCH_BYTES_MAX = 4 * 1024 * 1024
_UNSENT_BYTES_MAX = 32 * 1024 * 1024
_ENTRY_OVERHEAD_BYTES = 120
_PAUSE_SECONDS = 0.2
_PRUNE_ENTRIES_MAX = 5000
KEPT_SECONDS = 30.0
"""Entries that are younger than this are never deleted."""

# Entries are numbered in the order of their commits, over all runs and processes: `share_events` takes a lock before it takes numbers, and
# PostgreSQL gives it back when what was written can be seen. So whoever has read up to a number misses nothing below it.
_SHARE = "SELECT share_events($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::bytea[], $7::text[])"
_SELECT_NEW = (
    "SELECT e.n, e.run_id, e.attempt, e.seq, e.part, e.name, e.data FROM unnest($1::text[], $2::bigint[]) AS wanted (run_id, n)"
    " JOIN shared_events e ON e.run_id = wanted.run_id AND e.n > wanted.n ORDER BY e.n"
)
_SELECT_FROM = (
    "SELECT n, run_id, attempt, seq, part, name, data FROM shared_events"
    " WHERE run_id = $1 AND (seq >= $2 OR name = 'mini_assistant.deleted') ORDER BY n"
)
_SELECT_ROWS = (
    "SELECT e.run_id, e.attempt, e.seq, e.name, e.data FROM unnest($1::text[], $2::bigint[]) AS wanted (run_id, seq)"
    " JOIN run_events e ON e.run_id = wanted.run_id AND e.seq > wanted.seq"
)
_SELECT_OPEN_ROW = (
    "SELECT seq, attempt FROM run_events WHERE run_id = $1 AND seq <= $2 AND name <> 'thread.run.cancelling' ORDER BY seq DESC LIMIT 1"
)
_SELECT_VERSIONS = "SELECT id, version, attempt FROM runs WHERE id = ANY($1::text[])"
_STARTED_AT = "SELECT pg_postmaster_start_time()::text"
# What rows have settled, of runs that are gone, and of runs that have ended: it can be told from rows.
_PRUNE = f"""
DELETE FROM shared_events WHERE n IN (
    SELECT e.n FROM shared_events e LEFT JOIN runs r ON r.id = e.run_id
    WHERE e.written_at < clock_timestamp() - interval '{KEPT_SECONDS} seconds'
        AND (r.id IS NULL OR e.seq < r.version OR r.status NOT IN ('queued', 'in_progress', 'requires_action', 'cancelling'))
    ORDER BY e.n LIMIT {_PRUNE_ENTRIES_MAX} FOR UPDATE OF e SKIP LOCKED)
"""  # noqa: S608 - made of this module's own numbers
# The log is planned when it is empty and read when it is long: by its indexes, whatever it looks like in between.
_READER_SETTINGS = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
_UNREACHABLE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

Connection = Any
"""An asyncpg connection; the driver has no types."""


class Outbox:
    """What this process has told and not sent. Bounded: deltas are given up first, then rows, which are in the table as well."""

    def __init__(self, bytes_max: int = _UNSENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._size_bytes = 0
        self._entries: list[Entry] = []
        self._sending: Sequence[Entry] = ()
        self.has_entries = asyncio.Event()
        self.has_stop = asyncio.Event()

    def put(self, entries: Iterable[Entry]) -> None:
        """Tell something, after all that was told before."""
        for entry in entries:
            self._entries.append(entry)
            self._size_bytes += len(entry.data) + _ENTRY_OVERHEAD_BYTES
            if entry.name in STOPS:
                self.has_stop.set()
        if self._size_bytes > self._bytes_max:
            self._give_up_deltas()
        self.has_entries.set()

    def of_run(self, run_id: str) -> list[Entry]:
        """What others may not be able to read yet."""
        return [entry for entry in (*self._sending, *self._entries) if entry.run_id == run_id]

    def begin(self) -> Sequence[Entry]:
        """The entries to send now: those of a batch that failed, or the next ones."""
        if not self._sending and self._entries:
            size_bytes = count = 0
            while count < min(len(self._entries), _BATCH_ENTRIES_MAX) and size_bytes < _BATCH_BYTES_MAX:
                size_bytes += len(self._entries[count].data) + _ENTRY_OVERHEAD_BYTES
                count += 1
            self._sending, self._entries = self._entries[:count], self._entries[count:]
            self._size_bytes -= size_bytes
        if not self._entries:
            self.has_entries.clear()
            self.has_stop.clear()
        return self._sending

    def end(self) -> None:
        """The batch has been sent."""
        self._sending = ()

    def _give_up_deltas(self) -> None:
        kept: list[Entry] = []
        told: set[tuple[str, int]] = set()
        for entry in self._entries:
            if entry.part == 0:
                kept.append(entry)
            elif (entry.run_id, entry.attempt) not in told:
                told.add((entry.run_id, entry.attempt))
                kept.append(msgspec.structs.replace(entry, name=PIECES_LOST, data=b""))
        size_bytes = sum(len(entry.data) + _ENTRY_OVERHEAD_BYTES for entry in kept)
        if size_bytes > self._bytes_max // 2:
            kept = [entry for entry in kept if entry.name in (ATTEMPT, DELETED_RUN, PIECES_LOST)]
            kept = kept[-self._bytes_max // 4 // _ENTRY_OVERHEAD_BYTES :]
            size_bytes = sum(len(entry.data) + _ENTRY_OVERHEAD_BYTES for entry in kept)
        self._entries, self._size_bytes = kept, size_bytes


class SharedLog:
    """Two connections to PostgreSQL: one sends, the other reads, and listens from the first time that somebody wants to hear.

    Every process that listens is woken by whatever any other tells, so one without readers, such as a worker, does not.

    on_wake: called with ids of runs that others have told of. on_reconnect: called when wake-ups may have been lost; its argument says
    that the server was started anew, so that what nobody had read of the log may be lost too.
    """

    def __init__(
        self,
        url: str,
        *,
        flush_interval_seconds: float,
        wait_seconds: float,
        on_wake: Callable[[Sequence[str]], None],
        on_reconnect: Callable[[bool], None],
    ) -> None:
        self._url = url
        self._flush_interval_seconds = flush_interval_seconds
        self._wait_seconds = wait_seconds
        self._on_wake = on_wake
        self._on_reconnect = on_reconnect
        self.outbox = Outbox()
        self._sender: Connection = None
        self._reader: Connection = None
        self._reading = asyncio.Lock()
        self._started_at: str | None = None
        self._wants_to_hear = False
        self._listener: Connection = None
        self._is_stopping = False
        self._has_to_prune = False
        self._is_away = False
        self._flushing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and begin to send. Raises StoreUnavailable."""
        async with self.reading():
            pass
        self._flushing = asyncio.create_task(self._flush_always())

    async def stop(self) -> None:
        """Send what is left, if PostgreSQL takes it in time, and give back the connections."""
        self._is_stopping = True
        self.outbox.has_entries.set()
        self.outbox.has_stop.set()  # ends a pause
        if self._flushing is not None:
            await asyncio.wait({self._flushing}, timeout=self._wait_seconds)
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        async with self._reading:
            for connection in (self._sender, self._reader):
                await self._close(connection)
            self._sender = self._reader = None

    def prune(self) -> None:
        """Delete old entries soon."""
        self._has_to_prune = True
        self.outbox.has_entries.set()

    # --- sending --------------------------------------------------------------------------------------------------------------

    async def _flush_always(self) -> None:
        """Send what is there, then pause: what comes meanwhile is one batch. A run that has stopped is waited for, and cuts it short."""
        while True:
            await self.outbox.has_entries.wait()
            if not await self._flush():
                if self._is_stopping:
                    return
                await asyncio.sleep(_PAUSE_SECONDS)
                self.outbox.has_entries.set()
            elif self._is_stopping and not self.outbox.has_entries.is_set():
                return
            elif not self._is_stopping:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._flush_interval_seconds):
                        await self.outbox.has_stop.wait()

    async def _flush(self) -> bool:
        """Send one batch; False when PostgreSQL does not take it."""
        batch = self.outbox.begin()
        try:
            if self._sender is None or self._sender.is_closed():
                self._sender = await self._connected()
            if batch:
                await self._send(batch)
                self.outbox.end()
            if self._has_to_prune and not self._is_stopping:
                deleted = await self._sender.execute(_PRUNE)
                self._has_to_prune = deleted == f"DELETE {_PRUNE_ENTRIES_MAX}"
                if self._has_to_prune:
                    self.outbox.has_entries.set()
        except _UNREACHABLE as exc:
            if not self._is_away:
                log.warning("events cannot be told to other processes now, and are kept: %s", type(exc).__name__)
            self._is_away = True
            await self._close(self._sender)
            self._sender = None
            return False
        if self._is_away:
            log.info("events are told to other processes again")
        self._is_away = False
        return True

    async def _send(self, batch: Sequence[Entry]) -> None:
        columns = zip(*[(e.run_id, e.attempt, e.seq, e.part, e.name, e.data) for e in batch], strict=True)
        await self._sender.execute(_SHARE, *columns, _wakes({entry.run_id: None for entry in batch}))

    # --- hearing and reading --------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def reading(self, *, to_hear: bool = False) -> AsyncGenerator["LogReader"]:
        """The connection for reading, one task at a time. to_hear: be woken from now on. Raises StoreUnavailable."""
        self._wants_to_hear = self._wants_to_hear or to_hear
        async with self._reading:
            try:
                if self._reader is None or self._reader.is_closed():
                    await self._open_reader()
                if self._wants_to_hear and self._listener is not self._reader:
                    await self._listen(self._reader)
                yield LogReader(self._reader)
            except _UNREACHABLE as exc:
                await self._close(self._reader)
                self._reader = None
                raise StoreUnavailable(f"The events cannot be read from PostgreSQL now ({type(exc).__name__}).", retryable=True) from exc

    async def _open_reader(self) -> None:
        if self._is_stopping:
            raise StoreUnavailable("The server is stopping.", retryable=True)
        connection = await self._connected(_READER_SETTINGS)
        try:
            if self._wants_to_hear:
                await self._listen(connection)
            started_at: str = await connection.fetchval(_STARTED_AT)
        except BaseException:
            await self._close(connection)
            raise
        connection.add_termination_listener(self._lose_connection)
        self._reader, known = connection, self._started_at
        self._started_at = started_at
        if known is not None:
            self._on_reconnect(started_at != known)

    async def _listen(self, connection: Connection) -> None:
        await connection.add_listener(_CHANNEL, self._hear)
        self._listener = connection

    def _hear(self, _connection: object, sender: int, _channel: str, payload: object) -> None:
        is_own = self._sender is not None and not self._sender.is_closed() and sender == self._sender.get_server_pid()
        if not is_own:
            self._on_wake(str(payload).split(" "))

    def _lose_connection(self, connection: object) -> None:
        if connection is self._reader:
            self._on_wake(())

    async def _connected(self, settings: Mapping[str, str] | None = None) -> Connection:
        connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        limits = {"timeout": self._wait_seconds, "command_timeout": self._wait_seconds}
        return await connect(self._url, **limits, server_settings=settings and dict(settings))

    async def _close(self, connection: Connection) -> None:
        if connection is not None and not connection.is_closed():
            try:
                await connection.close(timeout=1.0)
            except _UNREACHABLE:
                connection.terminate()


class LogReader:
    """What can be read of the log and of the rows beside it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def new_entries(self, read_to: Mapping[str, int]) -> list[tuple[int, Entry]]:
        """The entries of runs after a number for each, in order, with their numbers."""
        records = await self._connection.fetch(_SELECT_NEW, list(read_to), list(read_to.values()))
        return [(record[0], Entry(*record[1:])) for record in records]

    async def entries_from(self, run_id: str, seq: int) -> list[tuple[int, Entry]]:
        """The entries of a run whose position is not before a row, in order, with their numbers."""
        return [(record[0], Entry(*record[1:])) for record in await self._connection.fetch(_SELECT_FROM, run_id, seq)]

    async def rows_after(self, last_seqs: Mapping[str, int]) -> dict[str, dict[int, Entry]]:
        """The rows of runs after a number for each, by run and number."""
        answer: dict[str, dict[int, Entry]] = {run_id: {} for run_id in last_seqs}
        for run_id, attempt, seq, name, data in await self._connection.fetch(_SELECT_ROWS, list(last_seqs), list(last_seqs.values())):
            answer[run_id][seq] = Entry(run_id, attempt, seq, 0, name, data.encode())
        return answer

    async def open_row(self, run_id: str, last_seq: int) -> tuple[int, int]:
        """Number and attempt of the last row up to `last_seq` that settles the deltas before it."""
        found = await self._connection.fetchrow(_SELECT_OPEN_ROW, run_id, last_seq)
        return (last_seq, 0) if found is None else (found[0], found[1])

    async def versions(self, run_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Last row and attempt of runs; those that are gone are left out."""
        return {record[0]: (record[1], record[2]) for record in await self._connection.fetch(_SELECT_VERSIONS, run_ids)}


def _wakes(run_ids: Iterable[str]) -> list[str]:
    """Payloads that name the runs, each small enough for a notification."""
    answer: list[str] = []
    for run_id in run_ids:
        if answer and len(answer[-1]) + 1 + len(run_id) <= _WAKE_BYTES_MAX:
            answer[-1] += " " + run_id
        else:
            answer.append(run_id)
    return answer
