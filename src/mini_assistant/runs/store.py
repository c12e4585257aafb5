"""Rows of runs, run steps and their events. `transition_run` is the only writer of a run's status.

Every write names the `version` and `attempt` that it has seen, so that of two writers one wins and the other learns of it. The
version counts the run's events: a write and the events that it causes are one list, and their numbers have no gaps.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, GuardFailed, Query, Row
from mini_assistant.db.tables import run_events, run_is_active, run_steps, runs
from mini_assistant.errors import RunStateConflict
from mini_assistant.events.base import StreamEvent
from mini_assistant.pagination import Listing
from mini_assistant.projects.usage import Used, usage_entries_of
from mini_assistant.runs import states
from mini_assistant.runs.events import RunEvent, created_run_events, run_event
from mini_assistant.runs.schema import Run, RunStatus, RunStep, Usage
from mini_assistant.services import Services
from mini_assistant.threads.schema import Thread
from mini_assistant.webhooks.schema import RunEventData
from mini_assistant.webhooks.store import queue_run_event

ONE_ACTIVE_RUN_INDEX = "runs.thread_id"
"""The unique index that locks a thread while one of its runs is active."""

run_listing = Listing(runs, ("project_id", "thread_id"), "run")
step_listing = Listing(run_steps, ("project_id", "run_id"), "run step")

_decode_run = msgspec.json.Decoder(Run).decode
_decode_step = msgspec.json.Decoder(RunStep).decode
_decode_usage = msgspec.json.Decoder(Usage).decode
_decode_outputs = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.encode


class RunLost(Exception):
    """The run was changed by somebody else, or is gone. Nothing was written; read it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run and the bookkeeping of its row.

    body: the run's wire JSON as its row has it. version: number of the run's last event. attempt: how many workers have claimed it so far.
    """

    project_id: str
    run: Run
    body: str
    version: int
    attempt: int
    lease_owner: str | None
    lease_until: float


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's hold on a run, until a unix time."""

    owner: str
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A step and the bookkeeping of its row.

    turn: the model turn it belongs to, from 1. usage: the cost of that turn once it is known, which the step may not show yet.
    outputs: what the model reads for the calls of hosted tools, by call id.
    """

    step: RunStep
    turn: int
    usage: Usage | None = None
    outputs: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class Changes:
    """Rows and the events that tell of them, to be written together. used: what the rows say was used, and no row before has said."""

    statements: list[Bound] = field(default_factory=list[Bound])
    events: list[RunEvent] = field(default_factory=list[RunEvent])
    used: Used = field(default_factory=Used)


_record_columns = (runs.c.project_id, runs.c.body, runs.c.version, runs.c.attempt, runs.c.lease_owner, runs.c.lease_until)
_of_thread = (
    runs.c.id == sa.bindparam("id"),
    runs.c.thread_id == sa.bindparam("thread_id"),
    runs.c.project_id == sa.bindparam("project_id"),
)
_select_body = Query(sa.select(runs.c.body).where(*_of_thread))
_select_record = Query(sa.select(*_record_columns).where(*_of_thread))
_select_record_by_id = Query(sa.select(*_record_columns).where(runs.c.id == sa.bindparam("id")))
_select_active = Query(
    sa.select(runs.c.id).where(
        runs.c.thread_id == sa.bindparam("thread_id"),
        runs.c.project_id == sa.bindparam("project_id"),
        run_is_active,
    )
)
_insert_run = Query.insert_into(runs)
_unchanged = (
    runs.c.id == sa.bindparam("run_id"),
    runs.c.version == sa.bindparam("seen_version"),
    runs.c.attempt == sa.bindparam("seen_attempt"),
)
_advance = Query(sa.update(runs).where(*_unchanged).values(version=sa.bindparam("new_version")).returning(runs.c.id))
_replace_body = Query(
    sa.update(runs).where(*_unchanged, runs.c.body == sa.bindparam("seen_body")).values(body=sa.bindparam("new_body")).returning(runs.c.id)
)
_set_status = Query(
    sa.update(runs)
    # The body too: metadata is changed without an event.
    .where(*_unchanged, runs.c.body == sa.bindparam("seen_body"))
    .values(
        version=sa.bindparam("new_version"),
        status=sa.bindparam("new_status"),
        body=sa.bindparam("new_body"),
        attempt=sa.bindparam("new_attempt"),
        lease_owner=sa.bindparam("new_owner"),
        lease_until=sa.bindparam("new_until"),
        ended_at=sa.bindparam("new_ended_at"),
    )
    .returning(runs.c.id)
)
_take_over = Query(
    sa.update(runs)
    .where(*_unchanged)
    .values(attempt=sa.bindparam("new_attempt"), lease_owner=sa.bindparam("new_owner"), lease_until=sa.bindparam("new_until"))
    .returning(runs.c.id)
)
_insert_event = Query.insert_into(run_events)
_select_events = Query(
    sa.select(run_events.c.seq, run_events.c.attempt, run_events.c.name, run_events.c.data)
    .where(
        run_events.c.run_id == sa.bindparam("run_id"), run_events.c.seq > sa.bindparam("after"), run_events.c.seq <= sa.bindparam("last")
    )
    .order_by(run_events.c.seq)
)
_insert_step = Query.insert_into(run_steps)
_update_step = Query(
    sa.update(run_steps)
    .where(run_steps.c.id == sa.bindparam("step_id"))
    .values(body=sa.bindparam("new_body"), usage=sa.bindparam("new_usage"), outputs=sa.bindparam("new_outputs"))
)
_select_steps = Query(
    sa.select(run_steps.c.body, run_steps.c.turn, run_steps.c.usage, run_steps.c.outputs)
    .where(run_steps.c.run_id == sa.bindparam("run_id"))
    .order_by(run_steps.c.seq)
)
_select_step_body = Query(
    sa.select(run_steps.c.body).where(
        run_steps.c.id == sa.bindparam("id"),
        run_steps.c.run_id == sa.bindparam("run_id"),
        run_steps.c.project_id == sa.bindparam("project_id"),
    )
)


async def get_run_json_or_none(services: Services, project_id: str, thread_id: str, run_id: str) -> str | None:
    """The run's wire JSON, None when the thread has no such run."""
    rows = await services.db.read(_select_body(id=run_id, thread_id=thread_id, project_id=project_id))
    return rows[0][0] if rows else None


async def get_record_or_none(services: Services, project_id: str, thread_id: str, run_id: str) -> RunRecord | None:
    """The run with its bookkeeping, None when the thread has no such run."""
    rows = await services.db.read(_select_record(id=run_id, thread_id=thread_id, project_id=project_id))
    return _record_of(rows[0]) if rows else None


async def get_record_for_worker(services: Services, run_id: str) -> RunRecord:
    """The run by the id that a queue carried, whatever its project. Raises RunLost when it is gone."""
    rows = await services.db.read(_select_record_by_id(id=run_id))
    if not rows:
        raise RunLost(run_id)
    return _record_of(rows[0])


async def active_run_id_or_none(services: Services, project_id: str, thread_id: str) -> str | None:
    """The run that locks the thread, None when it is free."""
    rows = await services.db.read(_select_active(thread_id=thread_id, project_id=project_id))
    return rows[0][0] if rows else None


def _record_of(row: Row) -> RunRecord:
    project_id, body, version, attempt, lease_owner, lease_until = row
    return RunRecord(
        project_id=project_id,
        run=_decode_run(body),
        body=body,
        version=version,
        attempt=attempt,
        lease_owner=lease_owner,
        lease_until=lease_until,
    )


async def get_steps(services: Services, run_id: str) -> list[StepRecord]:
    """All steps of a run, oldest first."""
    rows = await services.db.read(_select_steps(run_id=run_id))
    return [
        StepRecord(
            step=_decode_step(body),
            turn=turn,
            usage=_decode_usage(usage) if usage else None,
            outputs=_decode_outputs(outputs) if outputs else {},
        )
        for body, turn, usage, outputs in rows
    ]


async def get_step_json_or_none(services: Services, project_id: str, run_id: str, step_id: str) -> str | None:
    """A step's wire JSON, None when the run has no such step."""
    rows = await services.db.read(_select_step_body(id=step_id, run_id=run_id, project_id=project_id))
    return rows[0][0] if rows else None


async def get_events(services: Services, run_id: str, after_seq: int, last_seq: int) -> list[StreamEvent]:
    """The events after `after_seq` up to and including `last_seq`, in order; gone once the run has stopped for long."""
    rows = await services.db.read(_select_events(run_id=run_id, after=after_seq, last=last_seq))
    return [StreamEvent(seq, 0, attempt, name, data.encode()) for seq, attempt, name, data in rows]


def insert_run(
    project_id: str, run: Run, new_thread: Thread | None = None, *, provider: str | None = None, traceparent: str | None = None
) -> tuple[RunRecord, list[Bound], list[RunEvent]]:
    """A new run in `queued`: its record, the statements that write it with its first events, and those events.

    new_thread: the thread that was created with the run; its creation is then the run's first event. provider: who answers its model.
    traceparent: the trace that it belongs to, None without one.
    """
    events = created_run_events(run, new_thread)
    body = _encode(run).decode()
    record = RunRecord(project_id=project_id, run=run, body=body, version=len(events), attempt=0, lease_owner=None, lease_until=0.0)
    row = _insert_run(
        id=run.id,
        project_id=project_id,
        created_at=run.created_at,
        body=body,
        thread_id=run.thread_id,
        status=run.status,
        expires_at=run.expires_at,
        version=record.version,
        attempt=record.attempt,
        lease_owner=None,
        lease_until=record.lease_until,
        ended_at=None,
        provider=provider,
        traceparent=traceparent,
    )
    return record, [row, *_event_rows(record, 0, events)], events


def insert_step(project_id: str, record: StepRecord) -> Bound:
    """Writes a new step."""
    step = record.step
    return _insert_step(
        id=step.id,
        project_id=project_id,
        created_at=step.created_at,
        body=_encode(step).decode(),
        run_id=step.run_id,
        turn=record.turn,
        usage=_json_or_none(record.usage),
        outputs=_json_or_none(record.outputs),
    )


def update_step(record: StepRecord) -> Bound:
    """Writes a changed step."""
    return _update_step(
        step_id=record.step.id,
        new_body=_encode(record.step).decode(),
        new_usage=_json_or_none(record.usage),
        new_outputs=_json_or_none(record.outputs),
    )


def _json_or_none(value: Usage | dict[str, str] | None) -> str | None:
    return _encode(value).decode() if value else None


async def save_changes(services: Services, record: RunRecord, changes: Changes, *, durable: bool = True) -> RunRecord:
    """Write steps and messages of a run and publish their events; the run itself stays as it is.

    durable: False for work that has only begun: after a power cut it begins again. Raises RunLost, with nothing written, when the
    run is not as `record` says.
    """
    saved = _advanced(record, len(changes.events))
    fence = _advance.guard("run", **_seen(record), new_version=saved.version)
    rows = [*_event_rows(saved, record.version, changes.events), *usage_entries_of(record.project_id, services.now(), changes.used)]
    await _commit(services, record, [fence, *changes.statements, *rows], changes.events, durable=durable)
    return saved


def json_in_status(services: Services, record: RunRecord, to: RunStatus) -> str:
    """The run's wire JSON as `transition_run` would write it now, for answers that are kept in the same list."""
    return _encode(states.with_status(record.run, to, services.now(), {})).decode()


async def transition_run(
    services: Services,
    record: RunRecord,
    to: RunStatus,
    *,
    changes: Changes | None = None,
    lease: Lease | None = None,
    extra_statements: list[Bound] | None = None,
    **fields: Any,
) -> RunRecord:
    """Move a run to the status `to`, with the steps and messages that change with it, and publish the events after the commit.

    changes: written before the run's own event. lease: claims the run (its attempt grows), which need not survive a power cut.
    fields: further fields of the run, such as `usage` or `last_error`. Times are the server's now, in unix seconds. A run that goes on
    computing keeps its lease; others lose it. Webhooks are told of the status by the same list of statements.
    Raises RunStateConflict when the status may not follow the present one, and RunLost when the run is not as `record` says; nothing
    is written then. Source: openapi-assistants.json, RunObject.status; behaviour §3.1.
    """
    if to not in states.ALLOWED[record.run.status]:
        raise RunStateConflict(f"A run cannot go from status '{record.run.status}' to '{to}'.")
    changes = changes or Changes()
    now = services.now()
    run = states.with_status(record.run, to, now, fields)
    events = [*changes.events, run_event(run)]
    keeps_lease = to == "cancelling" and record.lease_owner is not None
    saved = RunRecord(
        project_id=record.project_id,
        run=run,
        body=_encode(run).decode(),
        version=record.version + len(events),
        attempt=record.attempt + (1 if lease else 0),
        lease_owner=lease.owner if lease else (record.lease_owner if keeps_lease else None),
        lease_until=lease.until if lease else (record.lease_until if keeps_lease else 0.0),
    )
    status = _set_status.guard(
        "run",
        **_seen(record),
        new_version=saved.version,
        new_status=to,
        seen_body=record.body,
        new_body=saved.body,
        new_attempt=saved.attempt,
        new_owner=saved.lease_owner,
        new_until=saved.lease_until,
        new_ended_at=now if to in states.TERMINAL else None,
    )
    used = replace(changes.used, runs=1) if to in states.TERMINAL else changes.used
    rows = [*_event_rows(saved, record.version, events), *usage_entries_of(record.project_id, now, used)]
    told = queue_run_event(record.project_id, now, RunEventData(run.id, run.thread_id, run.assistant_id, to))
    statements = [status, *changes.statements, *rows, *(extra_statements or []), *told]
    written = await _commit(services, record, statements, events, saved.attempt, durable=lease is None)
    if told and written[-1]:
        services.webhooks_due.set()
    return saved


async def take_over_run(services: Services, record: RunRecord, lease: Lease) -> RunRecord:
    """Claim a run whose worker is gone; its status stays. Raises RunLost when another worker was faster."""
    saved = RunRecord(
        project_id=record.project_id,
        run=record.run,
        body=record.body,
        version=record.version,
        attempt=record.attempt + 1,
        lease_owner=lease.owner,
        lease_until=lease.until,
    )
    row = _take_over.guard("run", **_seen(record), new_attempt=saved.attempt, new_owner=lease.owner, new_until=lease.until)
    await _commit(services, record, [row], [], durable=False)
    return saved


async def replace_metadata(services: Services, record: RunRecord, metadata: dict[str, str]) -> str:
    """Write a run's metadata and return its wire JSON. Raises RunLost when the run is not as `record` says."""
    body = _encode(msgspec.structs.replace(record.run, metadata=metadata)).decode()
    await _commit(services, record, [_replace_body.guard("run", **_seen(record), seen_body=record.body, new_body=body)], [])
    return body


async def _commit(
    services: Services,
    record: RunRecord,
    statements: list[Bound],
    events: list[RunEvent],
    attempt: int | None = None,
    *,
    durable: bool = True,
) -> list[list[Row]]:
    run_id, first = record.run.id, record.version + 1
    numbered = [(first + place, event.name, event.data) for place, event in enumerate(events)]
    published_as = record.attempt if attempt is None else attempt

    def publish() -> None:
        if numbered:
            services.events.publish(run_id, published_as, numbered)

    try:
        return await services.db.write(statements, publish, durable=durable)
    except GuardFailed as exc:
        raise RunLost(run_id) from exc


def _seen(record: RunRecord) -> dict[str, Any]:
    return {"run_id": record.run.id, "seen_version": record.version, "seen_attempt": record.attempt}


def _advanced(record: RunRecord, count: int) -> RunRecord:
    return RunRecord(
        project_id=record.project_id,
        run=record.run,
        body=record.body,
        version=record.version + count,
        attempt=record.attempt,
        lease_owner=record.lease_owner,
        lease_until=record.lease_until,
    )


def _event_rows(record: RunRecord, after_seq: int, events: list[RunEvent]) -> list[Bound]:
    return [
        _insert_event(run_id=record.run.id, seq=after_seq + place, attempt=record.attempt, name=event.name, data=event.data.decode())
        for place, event in enumerate(events, start=1)
    ]
