"""The only reader of the wall clock, so that tests can move time.

Wire times are whole unix seconds (behaviour: every `*_at` field); leases and timers use floats.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where the server gets the time from."""

    def now(self) -> float:
        """Unix time in seconds."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()


class DatabaseClock:
    """The machine's clock set by the clock of the database, so that all processes of a cluster agree on leases and expiry."""

    def __init__(self) -> None:
        self._offset_seconds = 0.0

    def set_offset(self, seconds: float) -> None:
        """Say how far the database's clock is ahead of the machine's, as measured by `PostgresDatabase.clock_offset_seconds`."""
        self._offset_seconds = seconds

    def now(self) -> float:
        return time.time() + self._offset_seconds


class ManualClock:
    """A clock that moves only when told to, for tests of expiry."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the time forward."""
        self._now += seconds
