"""Which waiting run is next, across all projects, and the limits under which it may be claimed. Only the worker calls this.

Projects take turns: of each, the run that has waited longest comes first, and a project with fewer runs in progress before one with more.
A thousand runs of one project so hold up no other's first.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from mini_assistant.db.base import Bound, Query
from mini_assistant.db.tables import runs, status_in
from mini_assistant.projects.limits import touch_limit
from mini_assistant.runs.store import RunRecord
from mini_assistant.services import Services

_NO_LIMIT = 2**31 - 1

_select_lost = Query(
    sa.select(runs.c.id)
    .where(status_in("in_progress"), runs.c.lease_until < sa.bindparam("now"))
    .order_by(runs.c.lease_until, runs.c.seq)
    .limit(sa.bindparam("row_limit", type_=sa.Integer))
)


def _within_limit(column: sa.ColumnElement[Any]) -> Query:
    """Yields a row as long as no more runs than allowed are in progress, the one just claimed included."""
    in_progress = sa.select(sa.func.count()).select_from(runs).where(status_in("in_progress"), column == sa.bindparam("value"))
    return Query(sa.select(sa.literal(1)).where(in_progress.scalar_subquery() <= sa.bindparam("runs_max", type_=sa.BigInteger)))


_project_within_limit = _within_limit(runs.c.project_id)
_provider_within_limit = _within_limit(runs.c.provider)


def _in_progress_by(column: sa.ColumnElement[Any], name: str) -> sa.Subquery:
    return sa.select(column, sa.func.count().label("running")).where(status_in("in_progress")).group_by(column).subquery(name)


def _number(value: int) -> sa.ColumnElement[int]:
    return sa.literal_column(str(value), sa.BigInteger)


class FairOrder:
    """The order of waiting runs under the limits of the settings."""

    def __init__(self, project_runs_max: int, provider_runs_max: Mapping[str, int], own_runs_max: Mapping[str, int] | None = None) -> None:
        """project_runs_max: of each project that has none in `own_runs_max`, 0 for no limit. own_runs_max: by the id of a project.

        provider_runs_max: by the name of a provider; others have none.
        """
        self._project_runs_max = project_runs_max
        self._own_runs_max = own_runs_max or {}
        self._provider_runs_max = provider_runs_max
        self._limits_projects = bool(project_runs_max or any(self._own_runs_max.values()))
        self.has_limits = bool(self._limits_projects or provider_runs_max)
        self._select_queued = self._query()

    def _query(self) -> Query:
        of_project, of_provider = _in_progress_by(runs.c.project_id, "of_project"), _in_progress_by(runs.c.provider, "of_provider")
        turn = sa.func.row_number().over(partition_by=runs.c.project_id, order_by=runs.c.seq)
        waiting = (
            sa.select(runs.c.id, runs.c.seq, runs.c.project_id, (turn + sa.func.coalesce(of_project.c.running, 0)).label("place"))
            .join(of_project, of_project.c.project_id == runs.c.project_id, isouter=True)
            .where(status_in("queued"))
        )
        if self._provider_runs_max:
            limits = {name: _number(limit) for name, limit in self._provider_runs_max.items()}
            limit = sa.case(limits, value=sa.func.coalesce(runs.c.provider, ""), else_=_number(_NO_LIMIT))
            waiting = waiting.join(of_provider, of_provider.c.provider == runs.c.provider, isouter=True)
            waiting = waiting.where(sa.func.coalesce(of_provider.c.running, 0) < limit)
        placed = waiting.subquery("waiting")
        query = sa.select(placed.c.id).order_by(placed.c.place, placed.c.seq).limit(sa.bindparam("row_limit", type_=sa.Integer))
        if self._limits_projects:
            query = query.where(placed.c.place <= self._limit_of(placed.c.project_id))
        return Query(query)

    def _limit_of(self, project_id: sa.ColumnElement[str]) -> sa.ColumnElement[int]:
        default = _number(self._project_runs_max or _NO_LIMIT)
        own = {name: _number(limit or _NO_LIMIT) for name, limit in self._own_runs_max.items()}
        return sa.case(own, value=project_id, else_=default) if own else default

    async def next_runs(self, services: Services, limit: int) -> list[str]:
        """Ids of runs that can be claimed, the next one first: those whose worker is lost, then those that wait."""
        lost = await services.db.read(_select_lost(now=services.clock.now(), row_limit=limit))
        queued = await services.db.read(self._select_queued(row_limit=limit - len(lost))) if len(lost) < limit else []
        return [row[0] for row in (*lost, *queued)]

    def limits_of_claim(self, record: RunRecord, provider: str | None) -> list[Bound]:
        """Statements for the list that claims a waiting run. Their guards fail, and nothing is claimed, when a limit is reached."""
        statements: list[Bound] = []
        if project_runs_max := self._own_runs_max.get(record.project_id, self._project_runs_max):
            statements.append(touch_limit(f"project {record.project_id}"))
            statements.append(_project_within_limit.guard("limit", value=record.project_id, runs_max=project_runs_max))
        if provider is not None and provider in self._provider_runs_max:
            statements.append(touch_limit(f"provider {provider}"))
            statements.append(_provider_within_limit.guard("limit", value=provider, runs_max=self._provider_runs_max[provider]))
        return statements
