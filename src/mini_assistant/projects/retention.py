"""Deletes what is older than a project keeps it: threads in which nothing happens any more, and files that do not say when they expire.

The worker's sweep calls this. Each sweep looks at a few hundred rows, in the order of an index and from where the last one has come to;
when it is through it pauses, so that old threads which are still in use are not looked at all the time. It also ends the sessions of
threads that another process has deleted.
"""

import contextlib
from typing import NamedTuple

import sqlalchemy as sa

from mini_assistant.db.base import Bound, GuardFailed, Query
from mini_assistant.db.tables import files, threads
from mini_assistant.errors import NotFound
from mini_assistant.files.commands import remove_file
from mini_assistant.projects.audit import audit_entry
from mini_assistant.services import Services
from mini_assistant.threads.commands import delete_thread
from mini_assistant.threads.store import require_idle_thread

_DAY_SECONDS = 86_400
# Rows that one sweep looks at, of each kind; and projects.
_LOOKED_AT_MAX = 200
# From the end of one walk to the beginning of the next.
_PAUSE_SECONDS = 600.0


class _Place(NamedTuple):
    """How far a walk has come: the next row is behind this one."""

    project_id: str = ""
    created_at: int = 0
    seq: int = 0


class _Old(NamedTuple):
    """A row that is old enough. since: nothing may have happened in it since this unix time."""

    project_id: str
    id: str
    since: int


_select_thread = Query(
    sa.select(threads.c.id).where(threads.c.id == sa.bindparam("thread"), threads.c.project_id == sa.bindparam("project"))
)


class _Walk:
    """Goes through the rows of a table by project and age, some at a time."""

    def __init__(self, table: sa.Table, setting: str, condition: sa.ColumnElement[bool] | None = None) -> None:
        """setting: the days after which a row is old. condition: which rows are looked at, all when None."""
        self._setting = setting
        self._place = _Place()
        self._paused_until = 0.0
        c = table.c
        conditions = [] if condition is None else [condition]
        self._next_project = Query(sa.select(sa.func.min(c.project_id)).where(c.project_id > sa.bindparam("after", type_=sa.Text)))
        behind = sa.tuple_(c.created_at, c.seq) > sa.tuple_(
            sa.bindparam("after_created_at", type_=sa.BigInteger), sa.bindparam("after_seq", type_=sa.BigInteger)
        )
        self._next_rows = Query(
            sa.select(c.created_at, c.seq, c.id)
            .where(
                c.project_id == sa.bindparam("project", type_=sa.Text),
                behind,
                c.created_at < sa.bindparam("before", type_=sa.BigInteger),
                *conditions,
            )
            .order_by(c.created_at, c.seq)
            .limit(sa.bindparam("row_limit", type_=sa.Integer))
        )

    async def next_rows(self, services: Services) -> list[_Old]:
        """Rows that are old enough; none while the walk pauses, and when no project has a limit."""
        found: list[_Old] = []
        if not _is_set(services, self._setting) or services.clock.now() < self._paused_until:
            return found
        for _ in range(_LOOKED_AT_MAX):
            project_id = self._place.project_id
            days = services.settings.project_limit(project_id, self._setting) if project_id else 0
            if days:
                since = services.now() - days * _DAY_SECONDS
                rows = await services.db.read(self._behind(since, _LOOKED_AT_MAX - len(found)))
                found += [_Old(project_id, object_id, since) for _, _, object_id in rows]
                if len(found) == _LOOKED_AT_MAX:
                    self._place = _Place(project_id, rows[-1][0], rows[-1][1])
                    break
            next_id: str | None = (await services.db.read(self._next_project(after=project_id)))[0][0]
            if next_id is None:
                self._place, self._paused_until = _Place(), services.clock.now() + _PAUSE_SECONDS
                break
            self._place = _Place(next_id)
        return found

    def _behind(self, since: int, row_limit: int) -> Bound:
        project_id, created_at, seq = self._place
        return self._next_rows(project=project_id, after_created_at=created_at, after_seq=seq, before=since, row_limit=row_limit)


def _is_set(services: Services, setting: str) -> bool:
    """Whether any project has the limit."""
    settings = services.settings
    return any(settings.project_limit(project_id, setting) for project_id in ("", *settings.projects))


class Retention:
    """The sweeps of one process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._threads = _Walk(threads, "thread_ttl_days")
        self._files = _Walk(files, "file_ttl_days", files.c.expires_at.is_(None))

    async def sweep(self) -> None:
        """Sweep once. Safe in several processes at a time, and when it is cut off anywhere. Raises StoreUnavailable."""
        services = self._services
        for project_id, thread_id, since in await self._threads.next_rows(services):
            audit = audit_entry(project_id, services.now(), "thread.deleted", thread_id, actor="retention")
            with contextlib.suppress(NotFound, GuardFailed):  # it is gone already, or something has happened in it
                await delete_thread(services, project_id, thread_id, audit, [require_idle_thread(thread_id, since)])
        for project_id, file_id, _ in await self._files.next_rows(services):
            audit = audit_entry(project_id, services.now(), "file.deleted", file_id, actor="retention")
            await remove_file(services, project_id, file_id, [audit])
        await self._end_sessions()

    async def _end_sessions(self) -> None:
        """End what tools keep of threads that are gone, whoever has deleted them."""
        for tool in self._services.tools.values():
            for project_id, thread_id in tool.kept_threads():
                if not await self._services.db.read(_select_thread(project=project_id, thread=thread_id)):
                    tool.forget_thread(project_id, thread_id)
