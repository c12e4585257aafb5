"""Buckets of permits that fill up again, shared by all processes: so many a minute, and at most a minute's worth at once.

A bucket is a row. A process takes some permits out of it at a time and spends them by itself, so most requests ask no database; and once
the bucket was found empty, nobody asks again before there can be something in it. Permits that were taken and not spent go back. None is
kept for long, or given back, in whose place another may have flowed into the bucket until that was full: so there is never more than a
minute's worth at once, wherever it is.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from mini_assistant.clock import Clock
from mini_assistant.db.base import Bound, Database, Query
from mini_assistant.db.tables import rate_limits
from mini_assistant.errors import StoreUnavailable

log = logging.getLogger("mini_assistant.limits")

_MINUTE_SECONDS = 60.0
# Permits that nobody has wanted for so long go back with the next request, so that idle processes keep few from busy ones.
_KEPT_SECONDS = 2.0
# A process takes at most this share of a bucket at a time, unless as many requests wait for permits already.
_SHARE_MAX = 1 / 50
# A bucket is not looked at again before: what has come into an empty one by then is taken at once.
_LOOK_SECONDS = 0.05
# Who takes so many at a time takes the next ones before the last are spent, so that no request waits for them.
_AHEAD_MIN = 8
# Times and sums of fractions may miss a whole permit by as little. It is owed then, and nobody gets more in the end.
_ONE = 1 - 1e-4

_name = sa.bindparam("bucket", type_=sa.Text)
_b = rate_limits.c
# Clocks of processes differ a little: one that is late fills nothing. Nor may a clock that was once far ahead stop a bucket for long.
_fill = Query(
    sa.text(
        """INSERT INTO rate_limits (name, "left", updated_at) VALUES (:bucket, :capacity, :now_seconds)
        ON CONFLICT (name) DO UPDATE SET
        "left" = CASE
            WHEN rate_limits."left" + :given_back >= :capacity THEN :capacity
            WHEN rate_limits.updated_at >= :now_seconds THEN rate_limits."left" + :given_back
            WHEN rate_limits."left" + :given_back + (:now_seconds - rate_limits.updated_at) * :per_second >= :capacity THEN :capacity
            ELSE rate_limits."left" + :given_back + (:now_seconds - rate_limits.updated_at) * :per_second
        END,
        updated_at = CASE
            WHEN rate_limits.updated_at BETWEEN :now_seconds AND :now_seconds + 60 THEN rate_limits.updated_at
            ELSE :now_seconds
        END
        RETURNING "left\""""
    ).bindparams(
        sa.bindparam("bucket", type_=sa.Text),
        *[sa.bindparam(name, type_=sa.Float) for name in ("capacity", "now_seconds", "given_back", "per_second")],
    )
)
_wanted = sa.bindparam("wanted", type_=sa.Float)
_take = Query(
    sa.update(rate_limits)
    .where(_b.name == _name)
    .values(left=sa.case((_b.left < _ONE, _b.left), (_b.left < _wanted, sa.literal(0.0)), else_=_b.left - _wanted))
    .returning(_b.left)
)
_take_one = Query(sa.update(rate_limits).where(_b.name == _name, _b.left >= _ONE).values(left=_b.left - 1).returning(_b.left))
_select = Query(sa.select(_b.left, _b.updated_at).where(_b.name == _name))


def _filled(name: str, per_minute: int, now: float, given_back: float = 0.0) -> Bound:
    return _fill(
        bucket=name,
        capacity=float(per_minute),
        now_seconds=now,
        given_back=given_back,
        per_second=per_minute / _MINUTE_SECONDS,
    )


def take_permit(name: str, per_minute: int, now: float, guard: str) -> list[Bound]:
    """Takes a permit with what the list does; its guard fails when there is none. now: unix seconds."""
    return [_filled(name, per_minute, now), _take_one.guard(guard, bucket=name)]


async def seconds_until_permit(db: Database, name: str, per_minute: int, now: float) -> float:
    """How long it takes until there is a permit. Raises StoreUnavailable."""
    rows = await db.read(_select(bucket=name))
    if not rows:
        return 0.0
    left, updated_at = rows[0]
    return max(0.0, (1 - left) * _MINUTE_SECONDS / per_minute - max(0.0, now - updated_at))


class Taken(NamedTuple):
    """What came of wanting a permit. left: what all processes could still have at once. full_in_seconds: until that is all again.

    wait_seconds: until there may be a permit; None when there was one.
    """

    left: int
    full_in_seconds: float
    wait_seconds: float | None = None


class Bucket:
    """A bucket as one process sees it."""

    def __init__(self, db: Database, clock: Clock, name: str, per_minute: int) -> None:
        self._db, self._clock, self._name = db, clock, name
        self.per_minute = per_minute
        self._per_second = per_minute / _MINUTE_SECONDS
        # What was left in the row, and when; the earliest time at which it is full again, and until when it is known to be empty.
        self._left = float(per_minute)
        self._left_at = self._full_at = self._empty_until = 0.0
        # Permits of this process, from when on they are not spent any more, and how many it has wanted.
        self._own = self._own_until = 0.0
        self._wanted = 1
        self._waiting = 0
        self._fetching: asyncio.Task[None] | None = None

    async def take(self) -> Taken:
        """Take a permit, or say how long to wait for one. Requests that come at the same time share one look at the row."""
        while True:
            now = self._clock.now()
            if self._own >= _ONE and now < self._own_until:
                self._own -= 1
                if self._wanted >= _AHEAD_MIN and self._own < self._wanted / 4 and now >= self._empty_until:
                    self._begin_fetch()
                return self._taken(now)
            wait_seconds = self._empty_until - now
            if 0 < wait_seconds <= _MINUTE_SECONDS + 1:  # more would be a clock that was set back
                return Taken(0, _MINUTE_SECONDS, wait_seconds)
            self._waiting += 1
            try:
                await asyncio.shield(self._begin_fetch())
            finally:
                self._waiting -= 1

    def _begin_fetch(self) -> "asyncio.Task[None]":
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    def _taken(self, now: float) -> Taken:
        left = min(self._left + max(0.0, now - self._left_at) * self._per_second + self._own, self.per_minute)
        return Taken(int(left), (self.per_minute - left) / self._per_second)

    async def _fetch(self) -> None:
        """Take permits out of the row. Without the database nobody is held up: then there are other worries than limits."""
        await asyncio.sleep(0)  # whoever came at the same time is waiting after it
        now, given_back = self._clock.now(), 0.0
        if now >= self._own_until or self._own < _ONE:
            overflown = max(0.0, now - self._full_at) * self._per_second
            given_back, self._own = self._own - min(overflown, max(self._own, 0.0)), 0.0
        is_in_demand = now < self._left_at + _KEPT_SECONDS
        self._wanted = min(2 * self._wanted, max(1, int(self.per_minute * _SHARE_MAX))) if is_in_demand else 1
        wanted = float(min(max(self._wanted, self._waiting), self.per_minute))
        try:
            filled, left = _numbers(
                await self._db.write(
                    [_filled(self._name, self.per_minute, now, given_back), _take(bucket=self._name, wanted=wanted)], durable=False
                )
            )
        except StoreUnavailable as exc:
            log.error("%s The limit '%s' is not kept meanwhile.", exc.message, self._name)
            filled, left = wanted, 0.0
        finally:
            self._fetching = None
        self._own, self._left, self._left_at = self._own + filled - left, left, now
        self._full_at = now + (self.per_minute - left) / self._per_second
        # From the end of the look on, however long it took: whoever has waited for it gets something.
        self._own_until = self._clock.now() + min(max(self._full_at - now, _LOOK_SECONDS), _KEPT_SECONDS)
        self._empty_until = now + max((1 - left) / self._per_second, _LOOK_SECONDS) if filled - left < wanted else 0.0


def _numbers(results: Sequence[Sequence[tuple[float, ...]]]) -> list[float]:
    return [rows[0][0] for rows in results]
