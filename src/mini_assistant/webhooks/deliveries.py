"""Rows of events on their way: which are due, who sends them, and what became of it. Only the deliverer calls this.

A delivery is claimed by moving its `next_at` behind the time that a call may take; whoever does so counts its `attempts`, which is the
guard of every write. When the process is lost meanwhile, the delivery is due again then.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, Query
from mini_assistant.db.tables import webhook_deliveries, webhook_events, webhooks
from mini_assistant.services import Services
from mini_assistant.webhooks.store import decode_webhook

_KEPT_SECONDS = 86_400
_FORGOTTEN_AT_A_TIME = 1000


class Delivery(NamedTuple):
    """An event for one webhook. body: the JSON that is sent. attempts: calls so far, the one for which it was claimed included."""

    seq: int
    id: str
    webhook_id: str
    url: str
    secret: str
    body: str
    attempts: int


_d = webhook_deliveries.c
_is_mine = (_d.seq == sa.bindparam("delivery_seq"), _d.attempts == sa.bindparam("seen_attempts"))


class DueDeliveries:
    """Finds what is due, without the webhooks that are to be left alone."""

    def __init__(self, left_alone_max: int) -> None:
        """left_alone_max: as many can be named."""
        self._left_alone_max = left_alone_max
        names = [sa.bindparam(f"not_{place}", type_=sa.Text) for place in range(left_alone_max)]
        self._select = Query(
            sa.select(_d.seq, _d.id, _d.webhook_id, webhooks.c.body, webhooks.c.secret, _d.body, _d.attempts)
            .join(webhooks, webhooks.c.id == _d.webhook_id)
            .where(_d.next_at.is_not(None), _d.next_at <= sa.bindparam("now", type_=sa.Float), _d.webhook_id.not_in(names))
            .order_by(_d.next_at, _d.seq)
            .limit(sa.bindparam("row_limit", type_=sa.Integer))
        )

    async def read(self, services: Services, limit: int, left_alone: Sequence[str]) -> list[Delivery]:
        """The oldest that are due, not claimed yet. Raises StoreUnavailable."""
        named = {f"not_{place}": name for place, name in enumerate([*left_alone, *[""] * (self._left_alone_max - len(left_alone))])}
        rows = await services.db.read(self._select(now=services.clock.now(), row_limit=limit, **named))
        return [
            Delivery(seq, delivery_id, webhook_id, decode_webhook(webhook).url, secret, body, attempts)
            for seq, delivery_id, webhook_id, webhook, secret, body, attempts in rows
        ]


_claim = Query(
    sa.update(webhook_deliveries)
    .where(*_is_mine, _d.next_at.is_not(None))
    .values(attempts=_d.attempts + 1, next_at=sa.bindparam("until", type_=sa.Float))
    .returning(_d.seq)
)
_end_call = Query(
    sa.update(webhook_deliveries)
    .where(*_is_mine, _d.next_at.is_not(None))
    .values(next_at=sa.bindparam("new_next_at", type_=sa.Float), last_error=sa.bindparam("new_error", type_=sa.Text))
)
_select_webhook = Query(sa.select(webhooks.c.body).where(webhooks.c.id == sa.bindparam("object_id")))
_replace_webhook = Query(sa.update(webhooks).where(webhooks.c.id == sa.bindparam("object_id")).values(body=sa.bindparam("new_body")))
_drop_events = Query(sa.delete(webhook_events).where(webhook_events.c.webhook_id == sa.bindparam("object_id")))
_give_up_all = Query(
    sa.update(webhook_deliveries)
    .where(_d.webhook_id == sa.bindparam("object_id"), _d.next_at.is_not(None))
    .values(next_at=sa.null(), last_error=sa.bindparam("new_error", type_=sa.Text))
)
_oldest = sa.select(_d.seq).order_by(_d.seq).limit(_FORGOTTEN_AT_A_TIME)
_forget = Query(
    sa.delete(webhook_deliveries)
    .where(_d.seq.in_(_oldest), _d.next_at.is_(None), _d.created_at < sa.bindparam("before", type_=sa.BigInteger))
    .returning(_d.seq)
)


async def claim(services: Services, due: Sequence[Delivery]) -> list[Delivery]:
    """Those of `due` that this process has now to send, and nobody else does. Raises StoreUnavailable."""
    if not due:
        return []
    settings = services.settings
    until = services.clock.now() + settings.webhook_timeout_seconds + settings.lease_seconds
    # A claim that a power cut takes back is made again: the receiver then sees the same id twice, as after any lost answer.
    rows = await services.db.write(
        [_claim(delivery_seq=found.seq, seen_attempts=found.attempts, until=until) for found in due], durable=False
    )
    return [found._replace(attempts=found.attempts + 1) for found, claimed in zip(due, rows, strict=True) if claimed]


def end_call(delivery: Delivery, next_at: float | None, error: str | None) -> Bound:
    """What became of a call. next_at: when to call again (unix seconds); None: never. error: None when the receiver has taken it."""
    return _end_call(delivery_seq=delivery.seq, seen_attempts=delivery.attempts, new_next_at=next_at, new_error=error)


async def stop_webhook(services: Services, webhook_id: str, error: str) -> None:
    """Call a webhook no more: its events are none, and what waits for it is given up. Raises StoreUnavailable."""
    rows = await services.db.read(_select_webhook(object_id=webhook_id))
    if rows:
        body = msgspec.json.encode(msgspec.structs.replace(decode_webhook(rows[0][0]), events=[])).decode()
        await services.db.write(
            [
                _replace_webhook(object_id=webhook_id, new_body=body),
                _drop_events(object_id=webhook_id),
                _give_up_all(object_id=webhook_id, new_error=error),
            ]
        )


async def forget_old_deliveries(services: Services) -> None:
    """Delete events of more than a day ago that need no call any more. Raises StoreUnavailable."""
    while True:
        [forgotten] = await services.db.write([_forget(before=services.now() - _KEPT_SECONDS)], durable=False)
        if len(forgotten) < _FORGOTTEN_AT_A_TIME:
            return
