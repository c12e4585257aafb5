"""Live events inside one process: a bounded ring for each run, read by any number of streams at their own pace.

A reader is a place in the ring and holds nothing else, so a slow one costs nobody anything. What a full ring drops can be told from
the rows, or is merged: nothing is kept twice and nothing is lost for a reader that attaches from the start.
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import groupby

import msgspec

from mini_assistant.events.base import ALL_PARTS, Position, PositionLost, StreamEvent, Subscription
from mini_assistant.events.deltas import merged_delta

_STOPPED = ("requires_action", "completed", "incomplete", "failed", "cancelled", "expired")
_STOPS = frozenset(f"thread.run.{status}" for status in _STOPPED)
_STEP_CREATED = "thread.run.step.created"
_STEP_ENDS = frozenset(f"thread.run.step.{status}" for status in ("completed", "failed", "cancelled", "expired"))
_EVENT_OVERHEAD_BYTES = 120
_TOO_SLOW = "This reader was too slow and some events are gone. Attach again without Last-Event-ID."
_RESTARTED = "The worker that wrote this answer was lost, and the answer is being written again. Attach again without Last-Event-ID."
_UNKNOWN = "The events after this Last-Event-ID are no longer kept. Attach again without Last-Event-ID."
_DELETED = "The run was deleted."
_STOPPING = "The server is stopping. The run goes on when it is started again; attach again then."


class _Ring:
    """The kept events of one run; places are counted from the first event ever kept, `dropped` of which are gone."""

    def __init__(self, last_seq: int, bytes_max: int) -> None:
        self.bytes_max = self.shrinks_above_bytes = bytes_max
        self.has_writer = False
        self.first_seq = last_seq + 1
        self.last_seq = last_seq
        self.last_part = 0
        self.events: list[StreamEvent] = []
        self.dropped = 0
        self.size_bytes = 0
        self.stopped_at: float | None = None
        self.readers: list[_RingReader] = []

    @property
    def end(self) -> int:
        return self.dropped + len(self.events)

    def append(self, event: StreamEvent) -> None:
        self.events.append(event)
        self.size_bytes += len(event.data) + _EVENT_OVERHEAD_BYTES
        self.last_seq, self.last_part = event.seq, event.part

    def wake(self) -> None:
        for reader in self.readers:
            reader.wake()

    def shrink(self) -> None:
        """Drop the steps that have ended in the older half of the events; when there are none, merge the deltas of that half.

        The newer half stays as it is, so that no reader is lost who had no time to read.
        """
        half = len(self.events) // 2
        front = _last_start_of_a_step(self.events[: half + 1])
        if front > 0:
            self._replace_front(front, [])
            self.first_seq = self.events[0].seq
        else:
            merged = _with_merged_deltas(self.events[:half])
            if len(merged) < half:
                self._replace_front(half, merged)
        # What cannot be made smaller is not tried again with every event.
        self.shrinks_above_bytes = max(self.bytes_max, self.size_bytes + self.bytes_max // 4)

    def _replace_front(self, count: int, substitute: list[StreamEvent]) -> None:
        """Put `substitute` in place of the first `count` events; readers that were still among them are lost."""
        for reader in self.readers:
            if reader.place < self.dropped + count:
                reader.lose(_TOO_SLOW)
        self.events[:count] = substitute
        self.dropped += count - len(substitute)
        self.size_bytes = _size_bytes(self.events)

    def drop_deltas_after(self, last_seq: int) -> None:
        """Take back the deltas behind the row `last_seq`; readers that have read one of them are lost."""
        keep = len(self.events)
        while keep and self.events[keep - 1].part and self.events[keep - 1].seq >= last_seq:
            keep -= 1
        for reader in self.readers:
            if reader.place > self.dropped + keep:
                reader.lose(_RESTARTED)
        del self.events[keep:]
        self.size_bytes = _size_bytes(self.events)
        self.last_seq, self.last_part = last_seq, 0


class _RingReader:
    """A stream's place in a ring."""

    def __init__(self, ring: _Ring, place: int, bus: "LocalEventBus", run_id: str) -> None:
        self._ring = ring
        self._bus = bus
        self._run_id = run_id
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self._is_nudged = False
        self.place = place
        self.first_seq = ring.first_seq

    async def next(self) -> Sequence[StreamEvent]:
        ring = self._ring
        if self.place == ring.end and self._lost is None and not self._is_nudged:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._lost is not None:
            raise PositionLost(self._lost)
        self._is_nudged = False
        events = ring.events[self.place - ring.dropped :]
        self.place = ring.end
        return events

    def nudge(self) -> None:
        self._is_nudged = True
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lose(self, reason: str) -> None:
        self._lost = reason
        self.wake()

    def close(self) -> None:
        if self in self._ring.readers:
            self._ring.readers.remove(self)
            self._bus.drop_if_unused(self._run_id, self._ring)


class LocalEventBus:
    """The rings of all runs of this process.

    ring_bytes_max bounds one ring, memory_bytes_max the rings of stopped runs together, retention_seconds their age.
    """

    def __init__(self, *, ring_bytes_max: int, memory_bytes_max: int, retention_seconds: float) -> None:
        self._ring_bytes_max = ring_bytes_max
        self._memory_bytes_max = memory_bytes_max
        self._retention_seconds = retention_seconds
        self._rings: dict[str, _Ring] = {}

    def publish(self, run_id: str, attempt: int, events: Sequence[tuple[int, str, bytes]]) -> None:
        ring = self._ring(run_id, events[0][0] - 1)
        ring.has_writer = True
        for seq, name, data in events:
            if seq >= ring.first_seq:  # the reader for whom the ring was made has read earlier ones as rows, just after their commit
                ring.append(StreamEvent(seq, 0, attempt, name, data))
            ring.stopped_at = time.monotonic() if name in _STOPS else None
        self._after_append(ring)

    def publish_delta(self, run_id: str, attempt: int, name: str, data: bytes) -> None:
        ring = self._rings.get(run_id)
        if ring is not None:  # None: the run was deleted a moment ago
            ring.append(StreamEvent(ring.last_seq, ring.last_part + 1, attempt, name, data))
            self._after_append(ring)

    def _after_append(self, ring: _Ring) -> None:
        if ring.size_bytes > ring.shrinks_above_bytes:
            ring.shrink()
        ring.wake()

    def begin_attempt(self, run_id: str, attempt: int, last_seq: int) -> None:
        ring = self._ring(run_id, last_seq)
        ring.has_writer = True
        ring.drop_deltas_after(last_seq)

    async def subscribe(self, run_id: str, after: Position, attempt: int, last_seq: int) -> Subscription:
        ring = self._ring(run_id, last_seq)
        reader = _RingReader(ring, _place_after(ring, after, attempt), self, run_id)
        ring.readers.append(reader)
        return reader

    def forget(self, run_id: str) -> None:
        ring = self._rings.pop(run_id, None)
        if ring is not None:
            for reader in ring.readers:
                reader.lose(_DELETED)

    def close(self) -> None:
        for ring in self._rings.values():
            for reader in ring.readers:
                reader.lose(_STOPPING)

    def prune(self) -> None:
        stopped = sorted(
            ((ring.stopped_at, run_id, ring) for run_id, ring in self._rings.items() if ring.stopped_at is not None and not ring.readers),
            key=lambda entry: entry[0],
        )
        size_bytes = sum(ring.size_bytes for _, _, ring in stopped)
        oldest = time.monotonic() - self._retention_seconds
        for stopped_at, run_id, ring in stopped:
            if stopped_at >= oldest and size_bytes <= self._memory_bytes_max:
                break
            size_bytes -= ring.size_bytes
            del self._rings[run_id]

    def drop_if_unused(self, run_id: str, ring: _Ring) -> None:
        """Drop a ring that was made for a reader of a run that nobody works on."""
        if not ring.readers and not ring.has_writer and self._rings.get(run_id) is ring:
            del self._rings[run_id]

    def _ring(self, run_id: str, last_seq: int) -> _Ring:
        ring = self._rings.get(run_id)
        if ring is None:
            ring = self._rings[run_id] = _Ring(last_seq, self._ring_bytes_max)
        return ring


def _last_start_of_a_step(events: Sequence[StreamEvent]) -> int:
    """The place of the last event that begins a step while no other step is open; 0 when there is none."""
    answer = open_steps = 0
    for place, event in enumerate(events):
        if event.name in _STEP_ENDS:
            open_steps -= 1
        elif event.name == _STEP_CREATED:
            answer = place if open_steps <= 0 else answer
            open_steps += 1
    return answer


def _with_merged_deltas(events: Sequence[StreamEvent]) -> list[StreamEvent]:
    """The events with deltas of one object that follow each other merged, at the position of the last of them."""
    answer: list[StreamEvent] = []
    for (_, is_delta), group in groupby(events, key=lambda event: (event.name, event.part > 0)):
        same = list(group)
        if is_delta and len(same) > 1:
            same = [msgspec.structs.replace(same[-1], data=merged_delta([event.data for event in same]))]
        answer += same
    return answer


def _size_bytes(events: Sequence[StreamEvent]) -> int:
    return sum(len(event.data) + _EVENT_OVERHEAD_BYTES for event in events)


def _place_after(ring: _Ring, after: Position, attempt: int) -> int:
    """Where a reader begins that has read `after`. Raises PositionLost."""
    if after.seq < ring.first_seq - 1:
        return ring.dropped
    place = 0
    while place < len(ring.events) and (ring.events[place].seq, ring.events[place].part) <= after:
        place += 1
    if after.part not in (0, ALL_PARTS):
        # Exactly this delta must be the last one read: a merged one says more, and one of an abandoned attempt said something else.
        last_read = ring.events[place - 1] if place else None
        if last_read is None or (last_read.seq, last_read.part, last_read.attempt) != (*after, attempt):
            raise PositionLost(_UNKNOWN)
    return ring.dropped + place
