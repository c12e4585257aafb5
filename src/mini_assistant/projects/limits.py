"""The limits of a project on what it may ask for, over all processes: requests and runs in a minute, runs that wait, tokens of a day.

What is full until something is deleted is in `quotas.py`, and how many runs may be in progress in `runs/claims.py`. A limit of 0 is none.
Source: behaviour §1.4, §1.10.
"""

import math
from typing import NamedTuple

import sqlalchemy as sa

from mini_assistant import metrics
from mini_assistant.db.base import Bound, Query
from mini_assistant.db.tables import runs, status_in
from mini_assistant.errors import LimitReached
from mini_assistant.projects import buckets
from mini_assistant.projects.buckets import Bucket, Taken
from mini_assistant.projects.usage import tokens_of_day
from mini_assistant.services import Services

_DAY_SECONDS = 86_400
# Nobody knows when a waiting run begins; clients look again after so long.
_WAITING_SECONDS = 2.0
_RUNS_PER_MINUTE_GUARD = "runs per minute"
_RUNS_WAITING_GUARD = "runs waiting"

# Touched before a count, so that lists under one limit count one after the other whichever process writes them.
_touch_limit = Query(
    sa.text("INSERT INTO claim_limits (name) VALUES (:name) ON CONFLICT (name) DO UPDATE SET name = excluded.name").bindparams(
        sa.bindparam("name", type_=sa.Text)
    )
)
_waiting = sa.select(sa.func.count()).select_from(runs).where(status_in("queued"), runs.c.project_id == sa.bindparam("project"))
_waiting_within_limit = Query(
    sa.select(sa.literal(1)).where(_waiting.scalar_subquery() <= sa.bindparam("runs_waiting_max", type_=sa.BigInteger))
)


def touch_limit(name: str) -> Bound:
    """Lets lists that count under a limit do so one after the other. name: the limit and whose it is, as in `storage team-a`."""
    return _touch_limit(name=name)


def limit_reached(limit: str, message: str, *, type: str, retry_after_seconds: float | None = None) -> LimitReached:
    """The refusal of a request, which is counted. limit: its name in `mini_assistant_limits_reached`."""
    metrics.LIMITS_REACHED.labels(limit).inc()
    return LimitReached(message, type=type, retry_after_seconds=retry_after_seconds)


def _rate_reached(
    limit: str, project_id: str, maximum: int, wait_seconds: float, *, of: str = "requests", per: str = "min"
) -> LimitReached:
    message = (
        f"Rate limit reached for {of} of project '{project_id}' on {of} per {per}. Limit: {maximum} / {per}. "
        f"Please try again in {duration(wait_seconds)}."
    )
    return limit_reached(limit, message, type="tokens" if of == "tokens" else "requests", retry_after_seconds=wait_seconds)


def duration(seconds: float) -> str:
    """A time as the hosted API wrote it, rounded up: `8ms`, `1.2s`, `6m0s`, `5h0m0s`."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    in_front = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{in_front}{milliseconds / 1000:g}s"


# --- requests -------------------------------------------------------------------------------------------------------------------


class Admission(NamedTuple):
    """Whether a request may go on. headers: what its answer tells of the limits (`x-ratelimit-…`). refusal: None when it may."""

    headers: list[tuple[bytes, bytes]]
    refusal: LimitReached | None = None


_UNLIMITED = Admission([])


class RequestLimits:
    """The requests of projects in a minute."""

    def __init__(self, services: Services) -> None:
        self._services = services
        # By project; None for those without a limit.
        self._buckets: dict[str, Bucket | None] = {}

    async def admit(self, project_id: str) -> Admission:
        """Count a request of the project."""
        try:
            bucket = self._buckets[project_id]
        except KeyError:
            bucket = self._buckets[project_id] = self._bucket_or_none(project_id)
        if bucket is None:
            return _UNLIMITED
        taken = await bucket.take()
        headers = _headers(bucket.per_minute, taken)
        if taken.wait_seconds is None:
            return Admission(headers)
        return Admission(headers, _rate_reached("requests_per_minute", project_id, bucket.per_minute, taken.wait_seconds))

    def _bucket_or_none(self, project_id: str) -> Bucket | None:
        services = self._services
        per_minute = services.settings.project_limit(project_id, "requests_per_minute_max")
        return Bucket(services.db, services.clock, f"requests {project_id}", per_minute) if per_minute else None


def _headers(per_minute: int, taken: Taken) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-ratelimit-limit-requests", b"%d" % per_minute),
        (b"x-ratelimit-remaining-requests", b"%d" % taken.left),
        (b"x-ratelimit-reset-requests", duration(taken.full_in_seconds).encode()),
    ]


# --- runs -----------------------------------------------------------------------------------------------------------------------


def limits_of_new_run(services: Services, project_id: str) -> list[Bound]:
    """Statements for the end of the list that creates a run. Their guards fail, and nothing is written, when a limit is reached."""
    limit_of, statements = services.settings.project_limit, list[Bound]()
    if runs_waiting_max := limit_of(project_id, "runs_waiting_max"):
        statements.append(touch_limit(f"waiting {project_id}"))
        statements.append(_waiting_within_limit.guard(_RUNS_WAITING_GUARD, project=project_id, runs_waiting_max=runs_waiting_max))
    if per_minute := limit_of(project_id, "runs_per_minute_max"):
        statements += buckets.take_permit(f"runs {project_id}", per_minute, services.clock.now(), _RUNS_PER_MINUTE_GUARD)
    return statements


async def refusal_of_run_or_none(services: Services, project_id: str, guard: str) -> LimitReached | None:
    """What is answered when a guard of `limits_of_new_run` has failed; None for another guard. Raises StoreUnavailable."""
    if guard == _RUNS_WAITING_GUARD:
        runs_waiting_max = services.settings.project_limit(project_id, "runs_waiting_max")
        message = (
            f"Rate limit reached for requests: {runs_waiting_max} runs of project '{project_id}' are waiting already, "
            f"which is as many as may wait. Please try again in {duration(_WAITING_SECONDS)}."
        )
        return limit_reached("runs_waiting", message, type="requests", retry_after_seconds=_WAITING_SECONDS)
    if guard == _RUNS_PER_MINUTE_GUARD:
        per_minute = services.settings.project_limit(project_id, "runs_per_minute_max")
        wait_seconds = await buckets.seconds_until_permit(services.db, f"runs {project_id}", per_minute, services.clock.now())
        return _rate_reached("runs_per_minute", project_id, per_minute, max(wait_seconds, 0.001), of="runs")
    return None


async def check_tokens_of_day(services: Services, project_id: str) -> None:
    """Raise LimitReached when the project has used up its tokens of this day (UTC). What is being written now is not counted yet."""
    per_day = services.settings.project_limit(project_id, "tokens_per_day_max")
    if per_day and await tokens_of_day(services, project_id) >= per_day:
        seconds_left = _DAY_SECONDS - services.clock.now() % _DAY_SECONDS
        raise _rate_reached("tokens_per_day", project_id, per_day, seconds_left, of="tokens", per="day")
