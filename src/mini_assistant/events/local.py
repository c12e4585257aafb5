"""Live events inside one process: a bounded ring for each run, read by any number of streams at their own pace."""

import time
from collections.abc import Sequence
from functools import partial

from mini_assistant.events.base import Position, StreamEvent, Subscription
from mini_assistant.events.rings import DELETED, STOPPING, STOPS, Ring, RingReader, place_after


class LocalEventBus:
    """The rings of all runs of this process.

    ring_bytes_max bounds one ring, memory_bytes_max the rings of stopped runs together, retention_seconds their age.
    """

    def __init__(self, *, ring_bytes_max: int, memory_bytes_max: int, retention_seconds: float) -> None:
        self._ring_bytes_max = ring_bytes_max
        self._memory_bytes_max = memory_bytes_max
        self._retention_seconds = retention_seconds
        self._rings: dict[str, Ring] = {}

    def publish(self, run_id: str, attempt: int, events: Sequence[tuple[int, str, bytes]]) -> None:
        ring = self._ring(run_id, events[0][0] - 1)
        ring.has_writer = True
        for seq, name, data in events:
            if seq >= ring.first_seq:  # the reader for whom the ring was made has read earlier ones as rows, just after their commit
                ring.append(StreamEvent(seq, 0, attempt, name, data))
            ring.stopped_at = time.monotonic() if name in STOPS else None
        ring.wake()

    def publish_delta(self, run_id: str, attempt: int, name: str, data: bytes) -> None:
        ring = self._rings.get(run_id)
        if ring is not None:  # None: the run was deleted a moment ago
            ring.append(StreamEvent(ring.last_seq, ring.last_part + 1, attempt, name, data))
            ring.wake()

    def begin_attempt(self, run_id: str, attempt: int, last_seq: int) -> None:
        ring = self._ring(run_id, last_seq)
        ring.has_writer = True
        ring.drop_deltas_after(last_seq)

    async def subscribe(self, run_id: str, after: Position, attempt: int, last_seq: int) -> Subscription:
        ring = self._ring(run_id, last_seq)
        reader = RingReader(ring, place_after(ring, after, attempt), partial(self._drop_if_unused, run_id, ring))
        ring.readers.append(reader)
        return reader

    def forget(self, run_id: str) -> None:
        ring = self._rings.pop(run_id, None)
        if ring is not None:
            for reader in ring.readers:
                reader.lose(DELETED)

    def close(self) -> None:
        for ring in self._rings.values():
            for reader in ring.readers:
                reader.lose(STOPPING)

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

    def _drop_if_unused(self, run_id: str, ring: Ring) -> None:
        """Drop a ring that was made for a reader of a run that nobody works on."""
        if not ring.readers and not ring.has_writer and self._rings.get(run_id) is ring:
            del self._rings[run_id]

    def _ring(self, run_id: str, last_seq: int) -> Ring:
        ring = self._rings.get(run_id)
        if ring is None:
            ring = self._rings[run_id] = Ring(last_seq, self._ring_bytes_max)
        return ring
