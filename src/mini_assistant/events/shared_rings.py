"""A ring that several processes tell of: it takes what it is told in any order of processes and keeps the order of the run.

Rows have their numbers from the database. Deltas are numbered by the worker that writes them, which may not have heard of a row that
another process wrote in the meantime (`thread.run.cancelling`): its deltas come late, and go on counting behind that row. A delta is
known by its attempt and number, so that hearing of one twice changes nothing, and a missing one is noticed.
"""

import time
from collections.abc import Iterable, Mapping

import msgspec

from mini_assistant.events.base import ALL_PARTS, Position, PositionLost, StreamEvent
from mini_assistant.events.rings import RESTARTED, STOPS, UNKNOWN, Ring, place_after

ATTEMPT = "mini_assistant.attempt"
DELETED_RUN = "mini_assistant.deleted"
PIECES_LOST = "mini_assistant.pieces_lost"
_CANCELLING = "thread.run.cancelling"
_INCOMPLETE = "Some pieces of this answer were lost on their way. Attach again without Last-Event-ID."


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What one process tells the others: a row (`part` 0), a delta, or one of the names above.

    seq and part: as the writer has numbered them; of ATTEMPT, `seq` is the run's last row.
    """

    run_id: str
    attempt: int
    seq: int
    part: int
    name: str
    data: bytes

    @property
    def rows_needed(self) -> int:
        """The row that must be there before this."""
        return self.seq - 1 if self.part == 0 and self.name not in (ATTEMPT, PIECES_LOST) else self.seq


class SharedRing(Ring):
    """The kept events of a run that other processes write to as well.

    attempt: the highest one heard of. written: the position that this process's worker has given last. read_to: the log has been read
    up to this number. held: entries that wait for rows before them, since gap_since. is_whole: nothing has been left out. open_seq: the
    last row but `cancelling`; deltas before it are settled. begins_uncertain: deltas before the first event may be missing. touched_at:
    when it was last known to be up to date.
    """

    def __init__(self, last_seq: int, bytes_max: int, attempt: int = 0) -> None:
        super().__init__(last_seq, bytes_max)
        self.attempt = attempt
        self.writes_attempt = 0
        self.written = Position(last_seq)
        self.read_to = 0
        self.held: list[Entry] = []
        self.gap_since: float | None = None
        self.is_behind = False
        self.is_whole = True
        self.touched_at = time.monotonic()
        self.open_seq = last_seq
        self._last_delta = (0, 0, 0)
        self.begins_uncertain = False
        self._skips_deltas = False

    @property
    def is_written_here(self) -> bool:
        """Whether a worker of this process has the run, as far as is known. What it tells may still be held, its attempt with it."""
        return 0 < self.writes_attempt >= self.attempt

    @property
    def is_followed(self) -> bool:
        """Whether what others write has to be heard."""
        return bool(self.readers) or self.is_written_here

    def place_after(self, after: Position, attempt: int) -> int:
        """Where a reader begins that has read `after`. Raises PositionLost.

        Other processes may know `cancelling` at another place among the deltas: what follows it here may not be what follows it there.
        """
        place = place_after(self, after, attempt)
        if after.part == 0 and after.seq:
            at = place - self.dropped - 1
            is_cancelling = at >= 0 and self.events[at].part == 0 and self.events[at].name == _CANCELLING
            if is_cancelling or (self.begins_uncertain and after.seq == self.first_seq - 1):
                raise PositionLost(UNKNOWN)
        return place

    def restart(self, row: Entry) -> None:
        """Keep nothing, and go on behind this row: it is not known what came before it. For a ring without readers."""
        self.dropped += len(self.events)
        self.events.clear()
        self.size_bytes = 0
        self.first_seq, self.last_seq, self.last_part = row.seq + 1, row.seq, 0
        self.attempt = max(self.attempt, row.attempt)
        self.written = max(self.written, Position(row.seq))
        self.stopped_at = time.monotonic() if row.name in STOPS else None
        self.touched_at = time.monotonic()
        self.open_seq, self.begins_uncertain = row.seq, row.name == _CANCELLING

    def take_all(self, entries: Iterable[Entry], rows: Mapping[int, Entry]) -> list[Entry]:
        """Take entries in their order, with missing rows from `rows`; returns what needs a row that is not there.

        Processes tell independently, so that what one waits for may come behind it; it is taken as soon as it can be, before the next row.
        """
        waiting: list[Entry] = []
        for entry in entries:
            last_seq = self.last_seq
            if not self.take(entry):
                waiting.append(entry)
            elif waiting and self.last_seq != last_seq:
                waiting = self._take_again(waiting)
        while waiting:
            last_seq = self.last_seq
            self.fill(rows, min(entry.rows_needed for entry in waiting))
            if self.last_seq == last_seq:
                break
            waiting = self._take_again(waiting)
        return waiting

    def _take_again(self, waiting: list[Entry]) -> list[Entry]:
        """Take what waits as far as it can be taken now; returns the rest."""
        while True:
            rest = [entry for entry in waiting if not self.take(entry)]
            if not rest or len(rest) == len(waiting):
                return rest
            waiting = rest

    def take(self, entry: Entry) -> bool:
        """Take one entry; False when rows before it are missing, nothing is changed then."""
        if entry.part and entry.name != PIECES_LOST:
            return self._take_delta(entry)
        if entry.name == ATTEMPT:
            return self._take_attempt(entry)
        if entry.name == PIECES_LOST:
            return self._take_loss(entry)
        if entry.seq > self.last_seq + 1:
            return False
        if entry.seq == self.last_seq + 1:
            self._append_row(entry)
        return True

    def fill(self, rows: Mapping[int, Entry], last_seq: int) -> None:
        """Take rows from the table because nobody told of them in time. Deltas may be missing before them, except before `cancelling`."""
        while self.last_seq < last_seq and (row := rows.get(self.last_seq + 1)) is not None:
            if row.name != _CANCELLING:
                self.is_whole = False
                self._void_deltas(self.open_seq, None, _INCOMPLETE)
            self._append_row(row)

    def lose_pieces(self) -> None:
        """Deltas of the open answer are missing: take it back, and wait for its end as a row."""
        self.is_whole = False
        self._skips_deltas = True
        self._void_deltas(self.open_seq, None, _INCOMPLETE)

    def has_open_deltas(self) -> bool:
        """Whether deltas are kept that no row has settled yet."""
        return any(event.part for event in self._since(self.open_seq))

    def _append_row(self, row: Entry) -> None:
        self.append(StreamEvent(row.seq, 0, row.attempt, row.name, row.data))
        self.attempt = max(self.attempt, row.attempt)
        if row.seq > self.written.seq:
            self.written = Position(row.seq, self.written.part)
        if row.name != _CANCELLING:
            self.open_seq = row.seq
            self._skips_deltas = False
        self.stopped_at = time.monotonic() if row.name in STOPS else None
        self.is_behind = False

    def _take_delta(self, entry: Entry) -> bool:
        name = (entry.attempt, entry.seq, entry.part)
        if entry.attempt < self.attempt or entry.seq < self.open_seq or name <= self._last_delta:
            return True
        if entry.seq > self.last_seq:
            return False
        attempt, seq, part = self._last_delta
        if entry.attempt > attempt:
            self._void_deltas(entry.seq, entry.attempt, RESTARTED)
            follows = entry.part == 1
        else:
            follows = entry.part == part + 1 or (entry.part == 1 and entry.seq > seq)
        self.attempt, self._last_delta = entry.attempt, name
        if not follows:
            self.lose_pieces()
        elif not self._skips_deltas:
            self.append(StreamEvent(self.last_seq, max(entry.part, self.last_part + 1), entry.attempt, entry.name, entry.data))
        return True

    def _take_attempt(self, entry: Entry) -> bool:
        if entry.attempt < self.attempt:
            return True
        if entry.seq > self.last_seq:
            return False
        self.attempt = entry.attempt
        self._void_deltas(entry.seq, entry.attempt, RESTARTED)
        if entry.attempt > self._last_delta[0]:
            self._skips_deltas = False
        return True

    def _take_loss(self, entry: Entry) -> bool:
        if entry.attempt < self.attempt or entry.seq < self.open_seq or (entry.attempt, entry.seq, entry.part) <= self._last_delta:
            return True
        if entry.seq > self.last_seq:
            return False
        self.lose_pieces()
        return True

    def _since(self, seq: int) -> Iterable[StreamEvent]:
        for event in reversed(self.events):
            if event.seq < seq:
                return
            yield event

    def _void_deltas(self, seq: int, below_attempt: int | None, reason: str) -> None:
        """Take back deltas from the row `seq` on, of lower attempts or (None) of all; readers that have read one are lost."""
        if not any(_is_void(event, seq, below_attempt) for event in self._since(seq)):
            return
        first = next(place for place, event in enumerate(self.events) if _is_void(event, seq, below_attempt))
        for reader in self.readers:
            if reader.place > self.dropped + first:
                reader.lose(reason)
        self.replace_events([event for event in self.events if not _is_void(event, seq, below_attempt)])


def _is_void(event: StreamEvent, seq: int, below_attempt: int | None) -> bool:
    return event.part > 0 and event.seq >= seq and (below_attempt is None or event.attempt < below_attempt)


def is_exact(position: Position) -> bool:
    """Whether a position lies between two deltas."""
    return position.part not in (0, ALL_PARTS)
