"""`GET /metrics`: the figures of this process, and those of all processes that are in rows, in the text format of Prometheus.

Rows are looked at seldom and not for long: a scrape says what this process knows also while the database is away.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from prometheus_client import generate_latest

from mini_assistant.db.base import Query, Row
from mini_assistant.db.tables import run_is_active, runs, vector_store_files, webhook_deliveries
from mini_assistant.errors import StoreUnavailable
from mini_assistant.http.routing import Request, Route
from mini_assistant.metrics import QUEUE_AGE_SECONDS, QUEUE_DEPTH, RUNS
from mini_assistant.services import Services

log = logging.getLogger("mini_assistant.http")

_STATUSES = ("queued", "in_progress", "requires_action", "cancelling")
# What scrapers that come close after another are told is as old as this at most, and for rows they wait no longer than that.
_BELIEVED_SECONDS = 5.0
_READ_SECONDS_MAX = 2.0

_now = sa.bindparam("now", type_=sa.Float)
# The age of a run is known while nobody has claimed it: one that was continued waits since then, which no row says.
_select_runs = Query(
    sa.select(
        runs.c.status,
        sa.func.count(),
        sa.func.count(sa.case((runs.c.lease_until < _now, 1))),
        sa.func.min(sa.case((runs.c.attempt == sa.literal_column("0"), runs.c.created_at))),
    )
    .where(run_is_active)
    .group_by(runs.c.status)
)
_select_files = Query(
    sa.select(sa.func.count(), sa.func.min(vector_store_files.c.created_at)).where(
        vector_store_files.c.status == sa.literal_column("'in_progress'"), vector_store_files.c.lease_until <= _now
    )
)
_select_deliveries = Query(
    sa.select(sa.func.count(), sa.func.min(webhook_deliveries.c.next_at)).where(
        webhook_deliveries.c.next_at.is_not(None), webhook_deliveries.c.next_at <= _now
    )
)


class MetricsPage:
    """The page of one server. It remembers when it has looked at the rows."""

    def __init__(self) -> None:
        self._read_at: float | None = None

    async def get(self, request: Request[Any, Any]) -> bytes:
        """The page."""
        time = asyncio.get_running_loop().time()
        if self._read_at is None or time - self._read_at >= _BELIEVED_SECONDS:
            self._read_at = time
            await _read_rows(request.services)
        return generate_latest()


async def _read_rows(services: Services) -> None:
    """Set the figures of all processes, or leave them out when they cannot be had."""
    now, db = services.clock.now(), services.db
    try:
        async with asyncio.timeout(_READ_SECONDS_MAX):
            found = await asyncio.gather(
                db.read(_select_runs(now=now)), db.read(_select_files(now=now)), db.read(_select_deliveries(now=now))
            )
    except (TimeoutError, StoreUnavailable) as exc:
        log.warning("The figures of all processes are left out of /metrics: %s", str(exc) or "the database does not answer")
        for gauge in (RUNS, QUEUE_DEPTH, QUEUE_AGE_SECONDS):
            gauge.clear()
        return
    of_runs, of_files, of_deliveries = found
    _tell_runs(of_runs, now)
    for kind, [(count, oldest)] in (("ingest", of_files), ("webhook", of_deliveries)):
        _tell_queue(kind, count, oldest, now)


def _tell_runs(rows: Sequence[Row], now: float) -> None:
    counts = {status: count for status, count, _, _ in rows}
    for status in _STATUSES:
        RUNS.labels(status).set(counts.get(status, 0))
    # Runs whose worker is gone wait for another one; those that wait for their client have no lease either.
    waiting = sum(free for status, _, free, _ in rows if status != "requires_action")
    _tell_queue("run", waiting, next((oldest for status, _, _, oldest in rows if status == "queued"), None), now)


def _tell_queue(kind: str, count: int, oldest: float | None, now: float) -> None:
    QUEUE_DEPTH.labels(kind).set(count)
    QUEUE_AGE_SECONDS.labels(kind).set(0.0 if oldest is None else max(0.0, now - oldest))


def metrics_routes(*, public: bool = False) -> list[Route]:
    """The routes of a server or worker. public: served without a key."""
    return [
        Route(
            method="GET",
            path="/metrics",
            name="getMetrics",
            summary="Figures for Prometheus (extension)",
            call=MetricsPage().get,
            answer=str,
            scope="admin",
            public=public,
        )
    ]
