"""The wire shape of webhooks and of the events that they are called with. An extension of this server.

The events have the shape of OpenAI's webhooks: `{"id", "object": "event", "created_at", "type", "data"}`.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mini_assistant.assistants.schema import McpUrl, Metadata

EventType = Literal[
    "run.requires_action",
    "run.completed",
    "run.incomplete",
    "run.failed",
    "run.cancelled",
    "run.expired",
    "vector_store.file_batch.completed",
    "vector_store.file_batch.cancelled",
]
"""What a webhook can be called for. `run.` is followed by the status that the run has gone to."""


class CreateWebhook(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /webhooks`."""

    url: McpUrl
    events: Annotated[list[EventType], Meta(min_length=1, max_length=16)]
    metadata: Metadata | None = None


class Webhook(msgspec.Struct):
    """An address that is called, and for what.

    events: empty when the receiver has answered 410, and is called no more. secret: only in the answer that creates it. last_error,
    last_delivered_at: only in the answer about the one webhook: what went wrong with the newest event that was sent, None when it was
    taken; and the unix time of the newest event that was taken, None before the first and when it is forgotten.
    """

    id: str
    created_at: int
    url: str
    events: list[str]
    metadata: dict[str, str]
    object: Literal["webhook"] = "webhook"
    secret: str | UnsetType = UNSET
    last_error: str | None | UnsetType = UNSET
    last_delivered_at: int | None | UnsetType = UNSET


class DeletedWebhook(msgspec.Struct):
    """What the deletion of a webhook answers."""

    id: str
    object: Literal["webhook.deleted"] = "webhook.deleted"
    deleted: bool = True


class RunEventData(msgspec.Struct):
    """What is told of a run: where it is found, and its status. Never what was said in it."""

    id: str
    thread_id: str
    assistant_id: str
    status: str


class RunWebhookEvent(msgspec.Struct):
    """The body of a call about a run. created_at: unix seconds."""

    id: str
    created_at: int
    type: EventType
    data: RunEventData
    object: Literal["event"] = "event"
