"""Live events of a cluster: a ring per run in each process, kept the same through a log in PostgreSQL.

What a worker tells is given to the readers of its own process at once, and to the others with the next batch. A process reads what is
told of the runs that somebody reads there, and nothing else. Rows of events are in `run_events` before they are told: whatever is lost
on its way, with a process or with PostgreSQL, is found there. Deltas that may be incomplete are never given: their readers are lost, and
attach again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from mini_assistant.errors import StoreUnavailable
from mini_assistant.events.base import Position, Subscription
from mini_assistant.events.rings import DELETED, STOPPING, UNKNOWN, RingReader
from mini_assistant.events.shared_log import KEPT_SECONDS, LogReader, SharedLog
from mini_assistant.events.shared_rings import ATTEMPT, DELETED_RUN, Entry, SharedRing, is_exact

_PAUSE_SECONDS = 0.2
# A gap is filled from rows after this time: what fills it is mostly on its way, with the deltas before it.
_GAP_SECONDS = 0.15
_CLAIMED = "thread.run.in_progress"
# A ring that was complete so long ago can still be brought up to date from the log.
_UNREAD_SECONDS_MAX = KEPT_SECONDS * 2 / 3


class PostgresEventBus:
    """The live events of all runs of a cluster, as one process sees them.

    ring_bytes_max bounds one ring, memory_bytes_max the rings of stopped runs together, retention_seconds their age.
    flush_interval_seconds: pause between two batches. poll_interval_seconds: pause between two looks for rows that nobody has told of.
    """

    def __init__(
        self,
        url: str,
        *,
        ring_bytes_max: int,
        memory_bytes_max: int,
        retention_seconds: float,
        flush_interval_seconds: float,
        poll_interval_seconds: float,
        wait_seconds: float,
    ) -> None:
        self._ring_bytes_max = ring_bytes_max
        self._memory_bytes_max = memory_bytes_max
        self._retention_seconds = retention_seconds
        self._poll_interval_seconds = poll_interval_seconds
        self._rings: dict[str, SharedRing] = {}
        self._loading: Counter[str] = Counter()
        self._wanted: dict[str, None] = {}
        self._has_wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._log = SharedLog(
            url,
            flush_interval_seconds=flush_interval_seconds,
            wait_seconds=wait_seconds,
            on_wake=self._want,
            on_reconnect=self._begin_anew,
        )

    async def open(self) -> None:
        """Connect and begin to tell and hear. Raises StoreUnavailable."""
        await self._log.open()
        self._tasks = [asyncio.create_task(self._read_always()), asyncio.create_task(self._poll_always())]

    async def stop(self) -> None:
        """Tell what has not been told, and give back the connections."""
        self.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._log.stop()

    # --- what this process tells ----------------------------------------------------------------------------------------------

    def publish(self, run_id: str, attempt: int, events: Sequence[tuple[int, str, bytes]]) -> None:
        ring, first_seq = self._ring(run_id, events[0][0] - 1), events[0][0]
        ring.has_writer = True
        entries = [Entry(run_id, attempt, seq, 0, name, data) for seq, name, data in events]
        if attempt >= ring.attempt:
            ring.written = max(ring.written, Position(events[-1][0]))
            if any(name == _CLAIMED for _, name, _ in events):
                ring.writes_attempt = attempt
        # Otherwise another process may have told of more before these rows.
        if ring.is_followed or ring.stopped_at is not None or (first_seq == 1 and ring.last_seq == 0):
            self._tell(ring, entries)
        else:
            self._log.outbox.put(entries)
            ring.restart(entries[-1])

    def publish_delta(self, run_id: str, attempt: int, name: str, data: bytes) -> None:
        ring = self._rings.get(run_id)
        if ring is None or attempt < ring.attempt:
            return  # the run was deleted a moment ago, or taken over while this process was held up
        ring.writes_attempt = attempt
        ring.written = Position(ring.written.seq, ring.written.part + 1)
        self._tell(ring, [Entry(run_id, attempt, *ring.written, name, data)])

    def begin_attempt(self, run_id: str, attempt: int, last_seq: int) -> None:
        ring = self._ring(run_id, last_seq)
        if attempt < ring.attempt:
            return
        ring.has_writer = True
        ring.writes_attempt = attempt
        ring.written = Position(last_seq)
        self._tell(ring, [Entry(run_id, attempt, last_seq, 0, ATTEMPT, b"")])

    def _tell(self, ring: SharedRing, entries: Sequence[Entry]) -> None:
        self._log.outbox.put(entries)
        if ring.held:
            ring.held += entries
            return
        missing = ring.take_all(entries, {})
        if missing:
            self._take_later(ring, missing)
        ring.wake()

    def _take_later(self, ring: SharedRing, missing: Sequence[Entry]) -> None:
        """Rows of another process, that this one has not heard of yet, come before these entries."""
        if ring.is_followed:
            ring.held += missing
            self._want([missing[0].run_id])
        else:
            ring.restart(missing[0])
            ring.take_all(missing, {})

    def forget(self, run_id: str) -> None:
        self._log.outbox.put([Entry(run_id, 0, 0, 0, DELETED_RUN, b"")])
        self._lose(run_id, DELETED)

    def _lose(self, run_id: str, reason: str) -> None:
        ring = self._rings.pop(run_id, None)
        if ring is not None:
            for reader in ring.readers:
                reader.lose(reason)

    def close(self) -> None:
        for ring in self._rings.values():
            for reader in ring.readers:
                reader.lose(STOPPING)

    def prune(self) -> None:
        now = time.monotonic()
        for run_id, ring in list(self._rings.items()):
            if not ring.is_followed and ring.stopped_at is None and ring.touched_at < now - _UNREAD_SECONDS_MAX:
                del self._rings[run_id]
        stopped = sorted(
            ((ring.stopped_at, run_id, ring) for run_id, ring in self._rings.items() if ring.stopped_at is not None and not ring.readers),
            key=lambda entry: entry[0],
        )
        size_bytes = sum(ring.size_bytes for _, _, ring in stopped)
        for stopped_at, run_id, ring in stopped:
            if stopped_at >= now - self._retention_seconds and size_bytes <= self._memory_bytes_max:
                break
            size_bytes -= ring.size_bytes
            del self._rings[run_id]
        self._log.prune()

    def _ring(self, run_id: str, last_seq: int) -> SharedRing:
        ring = self._rings.get(run_id)
        if ring is None:
            ring = self._rings[run_id] = SharedRing(last_seq, self._ring_bytes_max)
        return ring

    # --- readers --------------------------------------------------------------------------------------------------------------

    async def subscribe(self, run_id: str, after: Position, attempt: int, last_seq: int) -> Subscription:
        ring = self._rings.get(run_id)
        is_behind = ring is not None and (ring.last_seq < max(last_seq, after.seq) or (is_exact(after) and ring.last_part < after.part))
        if ring is None or not ring.readers or is_behind:
            ring = await self._loaded(run_id, after, last_seq)
        place, is_ahead = ring.place_after(after, attempt), after.seq > ring.last_seq
        reader = RingReader(ring, place, partial(self._leave, run_id, ring), after if is_ahead else None)
        ring.readers.append(reader)
        return reader

    def _leave(self, run_id: str, ring: SharedRing) -> None:
        ring.touched_at = time.monotonic()
        if not ring.readers and not ring.has_writer and self._rings.get(run_id) is ring:
            del self._rings[run_id]

    async def _loaded(self, run_id: str, after: Position, last_seq: int) -> SharedRing:
        """The ring of a run that nobody reads here, with everything that has been told up to now."""
        self._loading[run_id] += 1  # wake-ups from now on are heeded
        try:
            async with self._log.reading(to_hear=True) as reader:
                ring = self._rings.get(run_id)
                if ring is not None and ring.readers:
                    await self._read(reader, {run_id: ring})
                ring = self._rings.get(run_id)
                if ring is not None and ring.readers:
                    return ring
                open_seq, attempt = await reader.open_row(run_id, last_seq)
                exact_seq = min(open_seq, after.seq) if is_exact(after) else open_seq
                from_seq = exact_seq if ring is None else min(exact_seq, ring.open_seq)
                unsent = self._log.outbox.of_run(run_id)
                numbered = await reader.entries_from(run_id, from_seq)
                # What was sent while this read, or has been told since, comes last; hearing of an entry twice does nothing.
                entries = [*(entry for _, entry in numbered), *unsent, *self._log.outbox.of_run(run_id)]
                starts = dict.fromkeys([(exact_seq, 0 if exact_seq < open_seq else attempt), (open_seq, attempt)])
                read_to = numbered[-1][0] if numbered else 0
                return self._joined(run_id, entries, starts, read_to)
        finally:
            self._loading[run_id] -= 1
            if not self._loading[run_id]:
                del self._loading[run_id]

    def _joined(self, run_id: str, entries: list[Entry], starts: Collection[tuple[int, int]], read_to: int) -> SharedRing:
        """The known ring brought up to date or, when it misses something, one that begins at a row. starts: row and attempt."""
        ring = self._rings.get(run_id)
        if any(entry.name == DELETED_RUN for entry in entries):
            entries = []
        if ring is not None:
            is_recent = ring.touched_at >= time.monotonic() - _UNREAD_SECONDS_MAX and ring.first_seq - 1 <= min(starts)[0]
            if (is_recent and not ring.begins_uncertain) or ring.is_written_here:
                self._take(ring, entries)
                ring.read_to = read_to
                if (ring.is_whole and not ring.held) or ring.is_written_here:
                    return ring
        rings = [SharedRing(seq, self._ring_bytes_max, attempt) for seq, attempt in starts]
        for fresh in rings:
            self._take(fresh, entries)
            fresh.read_to = read_to
        # When the log has lost pieces of answers that rows have settled, the one that begins behind them says more.
        ring = self._rings[run_id] = next((fresh for fresh in rings if fresh.is_whole and not fresh.held), rings[-1])
        if ring.held:
            self._want([run_id])
        return ring

    # --- what other processes tell --------------------------------------------------------------------------------------------

    def _want(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            ring = self._rings.get(run_id)
            if (ring is not None and (ring.readers or ring.held)) or run_id in self._loading:
                self._wanted[run_id] = None
        self._has_wanted.set()  # also without any: the connection has to be opened again

    def _begin_anew(self, has_restarted: bool) -> None:
        """Wake-ups may have been lost and, with a server that has crashed, what was in the log."""
        for run_id, ring in self._rings.items():
            ring.read_to = 0
            if has_restarted and not ring.is_written_here:
                ring.is_whole = False  # an emptied log looks like one to which nothing was added
            if ring.readers:
                self._wanted[run_id] = None
                if has_restarted and ring.has_open_deltas() and not ring.is_written_here:
                    ring.lose_pieces()
                    ring.wake()
        self._has_wanted.set()

    async def _read_always(self) -> None:
        while True:
            await self._has_wanted.wait()
            self._has_wanted.clear()
            try:
                await self._read_wanted()
            except StoreUnavailable:
                await asyncio.sleep(_PAUSE_SECONDS)
                self._has_wanted.set()

    async def _read_wanted(self) -> None:
        async with self._log.reading() as reader:
            wanted, self._wanted = self._wanted, {}
            rings = {run_id: ring for run_id in wanted if (ring := self._rings.get(run_id)) is not None and (ring.readers or ring.held)}
            if not rings:
                return
            try:
                await self._read(reader, rings)
            except BaseException:
                self._wanted = {**wanted, **self._wanted}
                raise

    async def _read(self, reader: LogReader, rings: Mapping[str, SharedRing]) -> None:
        entries: dict[str, list[Entry]] = {run_id: [] for run_id in rings}
        for number, entry in await reader.new_entries({run_id: ring.read_to for run_id, ring in rings.items()}):
            entries[entry.run_id].append(entry)
            rings[entry.run_id].read_to = number
        for run_id, ring in rings.items():
            if any(entry.name == DELETED_RUN for entry in entries[run_id]):
                self._lose(run_id, DELETED)
            else:
                self._take(ring, entries[run_id])
        await self._fill_gaps(reader, {run_id: ring for run_id, ring in rings.items() if ring.held})

    async def _fill_gaps(self, reader: LogReader, rings: Mapping[str, SharedRing]) -> None:
        """Read rows that others wait for, once their writer has had its time to tell of them and of the deltas before them."""
        oldest = time.monotonic() - _GAP_SECONDS
        due = {run_id: ring for run_id, ring in rings.items() if ring.gap_since is not None and ring.gap_since <= oldest}
        if len(due) < len(rings):
            asyncio.get_running_loop().call_later(_GAP_SECONDS, self._want, [run_id for run_id in rings if run_id not in due])
        if due:
            rows = await reader.rows_after({run_id: ring.last_seq for run_id, ring in due.items()})
            for run_id, ring in due.items():
                self._take(ring, (), rows[run_id])
                if ring.held:
                    self._lose(run_id, UNKNOWN)  # its rows have been dropped

    def _take(self, ring: SharedRing, entries: Sequence[Entry], rows: Mapping[int, Entry] | None = None) -> None:
        """Take entries and then what had to be held back; what cannot be taken yet is held."""
        ring.held = ring.take_all([*ring.held, *entries], rows or {})
        if not ring.held:
            ring.gap_since = None
        elif ring.gap_since is None:
            ring.gap_since = time.monotonic()
        ring.wake()

    async def _poll_always(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval_seconds)
            try:
                await self._poll()
            except StoreUnavailable:
                self._has_wanted.set()

    async def _poll(self) -> None:
        """Find rows that nobody has told of: the process that wrote them, or PostgreSQL, died before it could."""
        rings = {run_id: ring for run_id, ring in self._rings.items() if ring.is_followed}
        if not rings:
            return
        async with self._log.reading() as reader:
            known = await reader.versions(list(rings))
            late: dict[str, int] = {}
            for run_id, ring in rings.items():
                if run_id not in known:
                    self._lose_gone(run_id, ring)
                    continue
                version, attempt = known[run_id]
                if attempt > ring.writes_attempt:
                    ring.writes_attempt = 0
                if version > ring.last_seq and ring.is_behind and not ring.held:
                    late[run_id] = ring.last_seq
                ring.is_behind = version > ring.last_seq
                if ring.is_behind:
                    self._want([run_id])
            if late:
                rows = await reader.rows_after(late)
                for run_id, ring in rings.items():
                    if run_id in late and ring.last_seq == late[run_id]:
                        ring.fill(rows[run_id], known[run_id][0])
                        ring.wake()

    def _lose_gone(self, run_id: str, ring: SharedRing) -> None:
        if self._rings.get(run_id) is ring:
            self._lose(run_id, DELETED)
