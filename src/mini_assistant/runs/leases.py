"""Leases and sweeping: which runs want attention, across all projects. Only the worker calls this.

A run that waits, or whose worker has given no sign of life, is found here whatever became of its queue message.
"""

from collections.abc import Mapping

import sqlalchemy as sa

from mini_assistant.db.base import Query
from mini_assistant.db.tables import run_events, run_is_active, runs, status_in
from mini_assistant.services import Services

_is_leased = status_in("in_progress", "cancelling")

_renew = Query(
    sa.update(runs)
    .where(
        runs.c.id == sa.bindparam("run_id"),
        runs.c.attempt == sa.bindparam("seen_attempt"),
        runs.c.lease_owner == sa.bindparam("owner"),
        _is_leased,
    )
    .values(lease_until=sa.bindparam("until"))
    .returning(runs.c.id, runs.c.status)
)
_hand_back = Query(
    sa.update(runs)
    .where(runs.c.lease_owner == sa.bindparam("owner"), _is_leased)
    .values(lease_until=sa.literal(0.0), lease_owner=sa.null())
)
_free_all = Query(sa.update(runs).where(_is_leased).values(lease_until=sa.literal(0.0), lease_owner=sa.null()))
_select_due = Query(
    sa.select(runs.c.id)
    .where(
        run_is_active,
        runs.c.lease_until < sa.bindparam("now"),
        sa.or_(status_in("cancelling"), runs.c.expires_at <= sa.bindparam("now_seconds", type_=sa.BigInteger)),
    )
    .order_by(runs.c.lease_until, runs.c.seq)
    .limit(sa.bindparam("row_limit", type_=sa.Integer))
)
_delete_events = Query(
    sa.delete(run_events).where(
        run_events.c.run_id.in_(sa.select(runs.c.id).where(runs.c.ended_at.is_not(None), runs.c.ended_at < sa.bindparam("before")))
    )
)
_forget_ended = Query(
    sa.update(runs).where(runs.c.ended_at.is_not(None), runs.c.ended_at < sa.bindparam("before")).values(ended_at=sa.null())
)


async def renew_leases(services: Services, owner: str, attempts: Mapping[str, int], until: float) -> list[str]:
    """Say that a worker lives: its runs (id to attempt) stay its own until a unix time.

    Returns those that it has to look at: they are not its own any more, or are being cancelled.
    """
    if not attempts:
        return []
    held = list(attempts)
    rows = await services.db.write([_renew(run_id=run_id, seen_attempt=attempts[run_id], owner=owner, until=until) for run_id in held])
    return [run_id for run_id, found in zip(held, rows, strict=True) if not found or found[0][1] == "cancelling"]


async def hand_back_leases(services: Services, owner: str) -> None:
    """Give up all runs of a worker that stops, so that another can go on at once."""
    await services.db.write([_hand_back(owner=owner)])


async def free_all_leases(services: Services) -> None:
    """Take the runs of workers that cannot be alive: called once at start by a server that owns its database alone."""
    await services.db.write([_free_all()])


async def get_due_runs(services: Services, limit: int) -> list[str]:
    """Ids of runs without a live lease that are to be ended: cancelled ones, and those that have expired."""
    rows = await services.db.read(_select_due(now=services.clock.now(), now_seconds=services.now(), row_limit=limit))
    return [row[0] for row in rows]


async def delete_old_events(services: Services) -> None:
    """Drop the events of runs that ended longer ago than `event_retention_seconds`; the runs themselves stay."""
    before = services.now() - int(services.settings.event_retention_seconds)
    await services.db.write([_delete_events(before=before), _forget_ended(before=before)])
