"""What projects have used, by day: tokens, runs, tool calls, seconds of code, and what they have stored.

Whatever uses something writes an entry in the list of statements that tells of it: nothing is lost with a killed process, and nothing is
counted twice. Entries are only ever inserted, so that nobody waits for the row of a day; sweeps add them to their days.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Database, GuardFailed, Query, Row
from mini_assistant.db.tables import files, usage_days, usage_entries, vector_stores
from mini_assistant.services import Services

DAY_SECONDS = 86_400

_ENTRIES_MAX = 1000
# In one sweep of one process; what is left waits for the next one.
_ROLL_UPS_MAX = 50
_DAYS_PER_LIST_MAX = 500
_MINUTE_SECONDS = 60.0
_MINUTE = "minute of usage"


@dataclass(slots=True)
class Used:
    """An amount of usage. runs: that have come to an end. sandbox_seconds: for which code of a model has run."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    runs: int = 0
    tool_calls: int = 0
    sandbox_seconds: float = 0.0

    def add(self, other: "Used") -> None:
        """Grow by another amount."""
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.runs += other.runs
        self.tool_calls += other.tool_calls
        self.sandbox_seconds += other.sandbox_seconds


class UsageDay(msgspec.Struct):
    """A project's usage of a day, on the wire. date: UTC, as 2026-11-25. storage_bytes, vector_bytes: the most that was there at a time."""

    project_id: str
    date: str
    prompt_tokens: int
    completion_tokens: int
    runs: int
    tool_calls: int
    sandbox_seconds: float
    storage_bytes: int
    vector_bytes: int
    object: Literal["organization.usage.day"] = "organization.usage.day"


class Place(NamedTuple):
    """Where a list of days goes on: behind the row of this day and project."""

    date: str
    project_id: str


_SUMS = tuple(field.name for field in fields(Used))
_MAXIMA = ("storage_bytes", "vector_bytes")
BEGINNING = Place("", "")

_insert_entry = Query.insert_into(usage_entries)
_select_entries = Query(
    sa.select(usage_entries.c.seq, usage_entries.c.project_id, usage_entries.c.created_at, *(usage_entries.c[name] for name in _SUMS))
    .order_by(usage_entries.c.seq)
    .limit(_ENTRIES_MAX)
)
# A number of parameters that is always the same, so that it is one statement on all databases; no row has the seq 0.
_seq_names = [f"seq_{place}" for place in range(_ENTRIES_MAX)]
_is_read_entry = usage_entries.c.seq.in_([sa.bindparam(name, type_=sa.BigInteger) for name in _seq_names])
_all_are_there = Query(
    sa.select(sa.literal(1)).where(
        sa.select(sa.func.count()).select_from(usage_entries).where(_is_read_entry).scalar_subquery()
        == sa.bindparam("entries_count", type_=sa.BigInteger)
    )
)
_delete_entries = Query(sa.delete(usage_entries).where(_is_read_entry))
# Touched first by everybody who writes days of several projects, so that they come one after the other.
_touch_lock = Query(sa.text("INSERT INTO claim_limits (name) VALUES ('usage') ON CONFLICT (name) DO UPDATE SET name = excluded.name"))


# Adds to the sums of a day, and raises its maxima.
_add_to_day = Query(
    sa.text(
        "INSERT INTO usage_days (project_id, day, prompt_tokens, completion_tokens, runs, tool_calls, sandbox_seconds, storage_bytes, "
        "vector_bytes) VALUES (:project_id, :day, :prompt_tokens, :completion_tokens, :runs, :tool_calls, :sandbox_seconds, "
        ":storage_bytes, :vector_bytes) ON CONFLICT (project_id, day) DO UPDATE SET "
        "prompt_tokens = usage_days.prompt_tokens + excluded.prompt_tokens, "
        "completion_tokens = usage_days.completion_tokens + excluded.completion_tokens, "
        "runs = usage_days.runs + excluded.runs, tool_calls = usage_days.tool_calls + excluded.tool_calls, "
        "sandbox_seconds = usage_days.sandbox_seconds + excluded.sandbox_seconds, "
        "storage_bytes = CASE WHEN excluded.storage_bytes > usage_days.storage_bytes THEN excluded.storage_bytes "
        "ELSE usage_days.storage_bytes END, "
        "vector_bytes = CASE WHEN excluded.vector_bytes > usage_days.vector_bytes THEN excluded.vector_bytes "
        "ELSE usage_days.vector_bytes END"
    ).bindparams(*(sa.bindparam(column.name, type_=column.type) for column in usage_days.columns))
)
# A row of the limits that gives one permit in a while: to whichever process asks first.
_take_minute = Query(
    sa.text(
        'INSERT INTO rate_limits (name, "left", updated_at) VALUES (:name, 0, :now) ON CONFLICT (name) DO UPDATE '
        "SET updated_at = excluded.updated_at WHERE rate_limits.updated_at <= :before RETURNING name"
    ).bindparams(sa.bindparam("name", type_=sa.Text), sa.bindparam("now", type_=sa.Float), sa.bindparam("before", type_=sa.Float))
)
_select_storage = Query(sa.select(files.c.project_id, sa.cast(sa.func.sum(files.c.size_bytes), sa.BigInteger)).group_by(files.c.project_id))
_select_vectors = Query(
    sa.select(vector_stores.c.project_id, sa.cast(sa.func.sum(vector_stores.c.usage_bytes), sa.BigInteger)).group_by(
        vector_stores.c.project_id
    )
)
_delete_days = Query(sa.delete(usage_days).where(usage_days.c.day < sa.bindparam("before")))


def _sum_of_tokens() -> Query:
    of_day = sa.select(usage_days.c.prompt_tokens + usage_days.c.completion_tokens).where(
        usage_days.c.project_id == sa.bindparam("project_id"), usage_days.c.day == sa.bindparam("day")
    )
    waiting = sa.select(sa.func.sum(usage_entries.c.prompt_tokens + usage_entries.c.completion_tokens)).where(
        usage_entries.c.project_id == sa.bindparam("project_id"), usage_entries.c.created_at >= sa.bindparam("midnight")
    )
    added = sa.func.coalesce(of_day.scalar_subquery(), 0) + sa.func.coalesce(waiting.scalar_subquery(), 0)
    return Query(sa.select(sa.cast(added, sa.BigInteger)))


_select_tokens = _sum_of_tokens()


def _days_query(*conditions: sa.ColumnElement[bool]) -> Query:
    columns = usage_days.c
    place = sa.tuple_(columns.day, columns.project_id)
    return Query(
        sa.select(columns.project_id, columns.day, *(columns[name] for name in (*_SUMS, *_MAXIMA)))
        .where(
            columns.day >= sa.bindparam("first_day"),
            columns.day <= sa.bindparam("last_day"),
            place > sa.tuple_(sa.bindparam("after_day", type_=sa.Text), sa.bindparam("after_project", type_=sa.Text)),
            *conditions,
        )
        .order_by(columns.day, columns.project_id)
        .limit(sa.bindparam("row_limit", type_=sa.Integer))
    )


_select_days = _days_query()
_select_days_of_project = _days_query(usage_days.c.project_id == sa.bindparam("project_id"))


def day_of(now: float) -> str:
    """The day of a unix time, in UTC."""
    return datetime.datetime.fromtimestamp(now, datetime.UTC).date().isoformat()


def first_of_days(last: datetime.date, count: int) -> datetime.date:
    """The first of so many days, of which `last` is the last one; the first day of all when there are not so many."""
    return datetime.date.fromordinal(max(last.toordinal() - count + 1, 1))


# ---- what is used


def usage_entries_of(project_id: str, now: int, used: Used) -> list[Bound]:
    """What was used, for the list of statements that tells of it; nothing when nothing was."""
    if used == Used():
        return []
    amounts = {name: getattr(used, name) for name in _SUMS}
    return [_insert_entry(project_id=project_id, created_at=now, **amounts)]


async def tokens_of_day(services: Services, project_id: str) -> int:
    """Tokens that a project has used since midnight UTC, prompts and answers together. Raises StoreUnavailable."""
    now = services.now()
    [[tokens]] = await services.db.read(_select_tokens(project_id=project_id, day=day_of(now), midnight=now - now % DAY_SECONDS))
    return tokens


async def get_days(
    db: Database, first_day: str, last_day: str, *, limit: int, project_id: str | None = None, after: Place = BEGINNING
) -> list[UsageDay]:
    """At most so many days of projects, by day and then by project. Entries that wait are not in them: call `roll_up_usage` before."""
    values: dict[str, Any] = {
        "first_day": first_day,
        "last_day": last_day,
        "after_day": after.date,
        "after_project": after.project_id,
        "row_limit": limit,
    }
    if project_id is None:
        rows = await db.read(_select_days(**values))
    else:
        rows = await db.read(_select_days_of_project(**values, project_id=project_id))
    return [UsageDay(*row) for row in rows]


# ---- sweeps


async def sweep_usage(services: Services) -> None:
    """Sweep once: add entries to their days; and once in a minute over all processes, look at what is stored and forget old days.

    Safe in several processes at a time, and when it is cut off anywhere. Raises StoreUnavailable.
    """
    await roll_up_usage(services.db)
    now = services.clock.now()
    taken = await services.db.write([_take_minute(name=_MINUTE, now=now, before=now - _MINUTE_SECONDS)], durable=False)
    if taken[0]:
        await sample_storage(services)
        await delete_old_usage(services)


async def roll_up_usage(db: Database) -> None:
    """Add entries to their days, each once whoever does the same meanwhile. Raises StoreUnavailable.

    At most `_ROLL_UPS_MAX` times `_ENTRIES_MAX` of them.
    """
    for _ in range(_ROLL_UPS_MAX):
        entries = await db.read(_select_entries())
        if entries:
            try:
                await db.write(_rolled_up(entries))
            except GuardFailed:
                return  # another process has added some of them, and goes on
        if len(entries) < _ENTRIES_MAX:
            return


def _rolled_up(entries: Sequence[Row]) -> list[Bound]:
    """Puts days in the place of entries, if all of those are there."""
    seqs = dict.fromkeys(_seq_names, 0)
    days: dict[tuple[str, str], Used] = {}
    for name, (seq, project_id, created_at, *amounts) in zip(_seq_names, entries, strict=False):
        seqs[name] = seq
        days.setdefault((project_id, day_of(created_at)), Used()).add(Used(*amounts))
    return [
        _touch_lock(),
        _all_are_there.guard("entries", entries_count=len(entries), **seqs),
        _delete_entries(**seqs),
        *(_day(project_id, day, used) for (project_id, day), used in sorted(days.items(), key=lambda item: item[0])),
    ]


def _day(project_id: str, day: str, used: Used, storage_bytes: int = 0, vector_bytes: int = 0) -> Bound:
    amounts = {name: getattr(used, name) for name in _SUMS}
    return _add_to_day(project_id=project_id, day=day, storage_bytes=storage_bytes, vector_bytes=vector_bytes, **amounts)


async def sample_storage(services: Services) -> None:
    """Note what each project has stored now. Raises StoreUnavailable."""
    storage = {row[0]: row[1] for row in await services.db.read(_select_storage())}
    vectors = {row[0]: row[1] for row in await services.db.read(_select_vectors())}
    projects, day = sorted(storage.keys() | vectors.keys()), day_of(services.now())
    rows = [_day(project, day, Used(), storage.get(project, 0), vectors.get(project, 0)) for project in projects]
    for first in range(0, len(rows), _DAYS_PER_LIST_MAX):
        await services.db.write([_touch_lock(), *rows[first : first + _DAYS_PER_LIST_MAX]], durable=False)


async def delete_old_usage(services: Services) -> None:
    """Forget days that are older than `usage_ttl_days`. Raises StoreUnavailable."""
    before = day_of(services.now() - services.settings.usage_ttl_days * DAY_SECONDS)
    await services.db.write([_delete_days(before=before)], durable=False)
