"""The kept events of one run in one process, and the places of its readers in them. Used by every bus.

A reader is a place in the ring and holds nothing else, so a slow one costs nobody anything. What a full ring drops can be told from
the rows, or is merged: nothing is kept twice and nothing is lost for a reader that attaches from the start.
"""

import asyncio
from collections.abc import Callable, Sequence
from itertools import groupby

import msgspec

from mini_assistant.events.base import ALL_PARTS, Position, PositionLost, StreamEvent
from mini_assistant.events.deltas import merged_delta

_STOP_STATUSES = ("requires_action", "completed", "incomplete", "failed", "cancelled", "expired")
STOPS = frozenset(f"thread.run.{status}" for status in _STOP_STATUSES)
_STEP_CREATED = "thread.run.step.created"
_STEP_ENDS = frozenset(f"thread.run.step.{status}" for status in ("completed", "failed", "cancelled", "expired"))
_EVENT_OVERHEAD_BYTES = 120
TOO_SLOW = "This reader was too slow and some events are gone. Attach again without Last-Event-ID."
RESTARTED = "The worker that wrote this answer was lost, and the answer is being written again. Attach again without Last-Event-ID."
UNKNOWN = "The events after this Last-Event-ID are no longer kept. Attach again without Last-Event-ID."
DELETED = "The run was deleted."
STOPPING = "The server is stopping. The run goes on when it is started again; attach again then."


class Ring:
    """The kept events of one run; places are counted from the first event ever kept, `dropped` of which are gone."""

    def __init__(self, last_seq: int, bytes_max: int) -> None:
        self.bytes_max = self.shrinks_above_bytes = bytes_max
        self.has_writer = False
        self.first_seq = last_seq + 1
        self.last_seq = last_seq
        self.last_part = 0
        self.events: list[StreamEvent] = []
        self.dropped: int = 0
        self.size_bytes = 0
        self.stopped_at: float | None = None
        self.readers: list[RingReader] = []

    @property
    def end(self) -> int:
        return self.dropped + len(self.events)

    def append(self, event: StreamEvent) -> None:
        """Keep one more event, the latest."""
        self.events.append(event)
        self.size_bytes += len(event.data) + _EVENT_OVERHEAD_BYTES
        self.last_seq, self.last_part = event.seq, event.part

    def wake(self) -> None:
        """Tell all readers that there is something to read, and make room when there is too much."""
        if self.size_bytes > self.shrinks_above_bytes:
            self.shrink()
        for reader in self.readers:
            if reader.place != self.end:
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
                reader.lose(TOO_SLOW)
        self.events[:count] = substitute
        self.dropped += count - len(substitute)
        self.size_bytes = _size_bytes(self.events)

    def replace_events(self, events: list[StreamEvent]) -> None:
        """Keep these of the events, without some behind every reader that is not lost."""
        self.events = events
        self.size_bytes = _size_bytes(events)
        self.last_part = events[-1].part if events and events[-1].seq == self.last_seq else 0

    def drop_deltas_after(self, last_seq: int) -> None:
        """Take back the deltas behind the row `last_seq`; readers that have read one of them are lost."""
        keep = len(self.events)
        while keep and self.events[keep - 1].part and self.events[keep - 1].seq >= last_seq:
            keep -= 1
        for reader in self.readers:
            if reader.place > self.dropped + keep:
                reader.lose(RESTARTED)
        del self.events[keep:]
        self.size_bytes = _size_bytes(self.events)
        self.last_seq, self.last_part = last_seq, 0


class RingReader:
    """A stream's place in a ring."""

    def __init__(self, ring: Ring, place: int, on_unread: Callable[[], None], after: Position | None = None) -> None:
        """after: what this reader has read already, when the ring may not have come so far yet."""
        self._ring = ring
        self._on_unread = on_unread
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self._is_nudged = False
        self._after = after
        self.place = place
        self.first_seq = ring.first_seq

    async def next(self) -> Sequence[StreamEvent]:
        while True:
            is_nudged = self._is_nudged
            events = await self._next()
            after = self._after
            if not events or after is None:
                return events
            events = [event for event in events if (event.seq, event.part) > after]
            if events:
                self._after = None
            if events or is_nudged:
                return events

    async def _next(self) -> Sequence[StreamEvent]:
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
            self._on_unread()


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


def place_after(ring: Ring, after: Position, attempt: int) -> int:
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
            raise PositionLost(UNKNOWN)
    return ring.dropped + place
