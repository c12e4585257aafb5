"""The seam of live events: what a run does, from the worker that executes it to every reader of its stream.

An event that changes the state of a run, step or message is a row too, numbered without gaps from 1 within the run (`seq`). Deltas
are not rows: they count from 1 after the last numbered event (`part`). A position is therefore (`seq`, `part`).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

ALL_PARTS = 2**31 - 1
"""The part of a position that lies behind every delta after `seq`, however many there were."""


class Position(NamedTuple):
    """A place in the events of a run. Ordered; (0, 0) lies before everything."""

    seq: int
    part: int = 0


START = Position(0, 0)


class StreamEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as readers get it. `part` is 0 for events that are rows; `data` is one line of JSON."""

    seq: int
    part: int
    attempt: int
    name: str
    data: bytes


class PositionLost(Exception):
    """The events after the asked position cannot be given exactly any more. The message says why; a reader attaches again."""


class Subscription(Protocol):
    """One reader's place in the live events of a run."""

    @property
    def first_seq(self) -> int:
        """The number of the first event that this subscription gives; earlier ones are rows."""
        ...

    async def next(self) -> Sequence[StreamEvent]:
        """What came since the last call, in order, waiting until something does; empty when `nudge` ended the waiting.

        Raises PositionLost when this reader was so slow that events are gone, or when the attempt that it was reading has been
        abandoned after part of an answer was read.
        """
        ...

    def nudge(self) -> None:
        """End the waiting of `next`, now or when it begins."""
        ...

    def close(self) -> None:
        """Stop reading. Safe to call twice."""
        ...


class EventBus(Protocol):
    """The live events of all runs."""

    def publish(self, run_id: str, attempt: int, events: Sequence[tuple[int, str, bytes]]) -> None:
        """Give rows (`seq`, name, data) to the readers, right after their commit and in its order."""
        ...

    def publish_delta(self, run_id: str, attempt: int, name: str, data: bytes) -> None:
        """Give a delta to the readers; it follows the last row."""
        ...

    def begin_attempt(self, run_id: str, attempt: int, last_seq: int) -> None:
        """A worker has claimed the run, whose last row is `last_seq`: deltas of an earlier attempt after that row are void."""
        ...

    async def subscribe(self, run_id: str, after: Position, attempt: int, last_seq: int) -> Subscription:
        """Read what follows `after`.

        attempt: the one whose delta `after` names; of no meaning when it names a row. last_seq: the run's last row as the caller
        knows it. Raises PositionLost, and StoreUnavailable where events come through a database.
        """
        ...

    def forget(self, run_id: str) -> None:
        """The run is gone: end its readers and drop what is kept."""
        ...

    def close(self) -> None:
        """The server stops: end all readers. They may attach again, here or elsewhere."""
        ...

    def prune(self) -> None:
        """Drop what is kept of runs that stopped longer ago than `event_retention_seconds`."""
        ...
