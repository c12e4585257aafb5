"""Rows of webhooks, and the statements that put events on their way to them.

An event is written by the list of statements that it tells of, as a row for each webhook of the project that wants it: so it is never
lost and never there twice. The deliverer (`webhooks/worker.py`) sends the rows.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, GuardFailed, Query
from mini_assistant.db.tables import vector_store_file_batches as batches
from mini_assistant.db.tables import webhook_deliveries, webhook_events, webhooks
from mini_assistant.errors import LimitReached, NotFound
from mini_assistant.ids import new_id
from mini_assistant.pagination import Listing
from mini_assistant.services import Services
from mini_assistant.webhooks.schema import EventType, RunEventData, RunWebhookEvent, Webhook

ROOM_GUARD = "webhooks"

listing = Listing(webhooks, ("project_id",), "webhook")
decode_webhook = msgspec.json.Decoder(Webhook).decode

_d, _e = webhook_deliveries.c, webhook_events.c
_of_project = (webhooks.c.id == sa.bindparam("object_id"), webhooks.c.project_id == sa.bindparam("project_id"))
_select = Query(sa.select(webhooks.c.body).where(*_of_project))
_insert = Query.insert_into(webhooks)
_insert_event = Query.insert_into(webhook_events)
_delete = Query(sa.delete(webhooks).where(*_of_project).returning(webhooks.c.id))

# Touched before the count, so that two processes do not both find the last place free.
_touch_limit = Query(
    sa.text("INSERT INTO claim_limits (name) VALUES (:name) ON CONFLICT (name) DO UPDATE SET name = excluded.name").bindparams(
        sa.bindparam("name", type_=sa.Text)
    )
)
_count = sa.select(sa.func.count()).select_from(webhooks).where(webhooks.c.project_id == sa.bindparam("project_id"))
_has_room = Query(sa.select(sa.literal(1)).where(_count.scalar_subquery() <= sa.bindparam("webhooks_max", type_=sa.BigInteger)))

_of_webhook = _d.webhook_id == sa.bindparam("object_id")
_select_last = Query(
    sa.select(
        sa.select(_d.last_error).where(_of_webhook, _d.attempts > 0).order_by(_d.seq.desc()).limit(1).scalar_subquery(),
        sa.select(_d.created_at)
        .where(_of_webhook, _d.next_at.is_(None), _d.last_error.is_(None))
        .order_by(_d.seq.desc())
        .limit(1)
        .scalar_subquery(),
    )
)


def _event_query(event_id: sa.ColumnElement[str], body: sa.ColumnElement[str], *chosen: sa.ColumnElement[bool]) -> Query:
    """Writes an event for each webhook of its project that wants its `type`, due at `now_seconds`; yields a row for each.

    The id of a delivery is made of the event's and the webhook's.
    """
    wanted = (
        sa.select(
            event_id + ":" + webhooks.c.id,
            webhooks.c.project_id,
            webhooks.c.id,
            sa.bindparam("now_seconds", type_=sa.BigInteger),
            body,
            sa.literal(0, sa.BigInteger),
            sa.bindparam("now_seconds", type_=sa.BigInteger),
        )
        .join_from(webhook_events, webhooks, webhooks.c.id == _e.webhook_id)
        .where(*chosen)
        # Somebody may be deleting the webhook: what is written for it must not fail, or the run or file would.
        .with_for_update(read=True, key_share=True, of=webhooks)
    )
    columns = [_d.id, _d.project_id, _d.webhook_id, _d.created_at, _d.body, _d.attempts, _d.next_at]
    return Query(sa.insert(webhook_deliveries).from_select(columns, wanted).returning(_d.id))


_queue_run_event = _event_query(
    sa.bindparam("event_id", type_=sa.Text),
    sa.bindparam("event_body", type_=sa.Text),
    _e.project_id == sa.bindparam("project_id"),
    _e.type == sa.bindparam("event_type"),
)
_RUN_EVENT_TYPES: dict[str, EventType] = {
    "requires_action": "run.requires_action",
    "completed": "run.completed",
    "incomplete": "run.incomplete",
    "failed": "run.failed",
    "cancelled": "run.cancelled",
    "expired": "run.expired",
}
_encode = msgspec.json.encode


def queue_run_event(project_id: str, now: int, data: RunEventData) -> list[Bound]:
    """The statement that tells webhooks of the status that a run goes to; none for a status that no webhook is told of.

    It belongs to the list that writes the status. It yields a row for each webhook, so that `webhooks_due` can be set.
    """
    event_type = _RUN_EVENT_TYPES.get(data.status)
    if event_type is None:
        return []
    event_id = new_id("evt")
    body = _encode(RunWebhookEvent(event_id, now, event_type, data)).decode()
    return [_queue_run_event(event_id=event_id, event_body=body, project_id=project_id, event_type=event_type, now_seconds=now)]


def batch_event_query(status: str, *chosen: sa.ColumnElement[bool]) -> Query:
    """The statement that tells webhooks of the file batches that `chosen` picks and that come to their end as `status`.

    It takes `now_seconds` and what `chosen` takes. A batch ends once, so its id makes the event's: `chosen` must not pick it again.
    """
    event_id = "evt_" + sa.func.substr(batches.c.id, len("vsfb_") + 1, type_=sa.Text)
    event_type = f"vector_store.file_batch.{status}"
    now = sa.cast(sa.bindparam("now_seconds", type_=sa.BigInteger), sa.Text)
    body = (
        sa.literal('{"id":"', sa.Text)
        + event_id
        + '","created_at":'
        + now
        + f',"type":"{event_type}","data":{{"id":"'
        + batches.c.id
        + '","vector_store_id":"'
        + batches.c.vector_store_id
        + f'","status":"{status}"}},"object":"event"}}'
    )
    return _event_query(event_id, body, _e.project_id == batches.c.project_id, _e.type == event_type, *chosen)


# By the one object that all copies of a process' services share.
async def get_webhook(services: Services, project_id: str, webhook_id: str) -> Webhook:
    """A webhook and how its last calls went. Raises NotFound."""
    rows = await services.db.read(_select(object_id=webhook_id, project_id=project_id))
    if not rows:
        raise not_found(webhook_id)
    webhook = decode_webhook(rows[0][0])
    [(webhook.last_error, webhook.last_delivered_at)] = await services.db.read(_select_last(object_id=webhook_id))
    return webhook


def not_found(webhook_id: str) -> NotFound:
    """The error for an unknown webhook."""
    return NotFound(f"No such Webhook object: {webhook_id[:100]}", param="id")


async def create_webhook(services: Services, project_id: str, webhook: Webhook, secret: str, remembered: Sequence[Bound]) -> None:
    """Write a new webhook. remembered: further statements of the list. Raises LimitReached when the project has as many as it may."""
    webhooks_max = services.settings.webhooks_per_project_max
    body = _encode(webhook).decode()
    statements = [
        _touch_limit(name=f"webhooks {project_id}"),
        _insert(id=webhook.id, project_id=project_id, created_at=webhook.created_at, body=body, secret=secret),
        _has_room.guard(ROOM_GUARD, project_id=project_id, webhooks_max=webhooks_max),
        *[_insert_event(project_id=project_id, type=event, webhook_id=webhook.id) for event in webhook.events],
        *remembered,
    ]
    try:
        await services.db.write(statements)
    except GuardFailed as exc:
        raise LimitReached(
            f"This project has as many webhooks as it may ({webhooks_max}). Delete one first.", type="insufficient_quota"
        ) from exc


async def delete_webhook(services: Services, project_id: str, webhook_id: str, audited: Bound) -> None:
    """Delete a webhook with what has not been sent yet. Raises NotFound."""
    parameters: dict[str, Any] = {"object_id": webhook_id, "project_id": project_id}
    kept = listing.keep_place(project_id, webhook_id, services.now())
    try:
        await services.db.write([kept, _delete.guard("exists", **parameters), audited])
    except GuardFailed as exc:
        raise not_found(webhook_id) from exc
