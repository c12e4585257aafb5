"""The endpoints of webhooks. An extension of this server."""

import base64
import ipaddress
import secrets
from urllib.parse import urlsplit

import msgspec

from mini_assistant.errors import InvalidRequest
from mini_assistant.http.routing import Request, Route
from mini_assistant.ids import new_id
from mini_assistant.outbound import is_public_address
from mini_assistant.pagination import Page, list_schema
from mini_assistant.webhooks import store
from mini_assistant.webhooks.schema import CreateWebhook, DeletedWebhook, Webhook

_SECRET_BYTES = 32


async def create_webhook(request: Request[CreateWebhook, None]) -> str:
    services, body = request.services, request.body
    _check_url(body.url, private_addresses=services.settings.private_addresses)
    webhook = Webhook(
        id=new_id("wh"),
        created_at=services.now(),
        url=body.url,
        events=list(dict.fromkeys(body.events)),
        metadata=body.metadata or {},
    )
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    answer = msgspec.json.encode(msgspec.structs.replace(webhook, secret=secret)).decode()
    await store.create_webhook(services, request.project_id, webhook, secret, request.remember(answer))
    return answer


def _check_url(url: str, *, private_addresses: bool) -> None:
    """Raise InvalidRequest for a URL that is never called. Where a name leads is looked at before each call."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or port == 0:
        raise InvalidRequest("Invalid 'url': no server has this host and port.", param="url", code="invalid_value")
    if not private_addresses and _is_written_address(host) and not is_public_address(host):
        raise InvalidRequest(f"Invalid 'url': the host '{host[:100]}' has no public address.", param="url", code="invalid_value")


def _is_written_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def list_webhooks(request: Request[None, Page]) -> str:
    return await store.listing.page(request.services.db, request.query, {"project_id": request.project_id})


async def get_webhook(request: Request[None, None]) -> bytes:
    return msgspec.json.encode(await store.get_webhook(request.services, request.project_id, request.path["webhook_id"]))


async def delete_webhook(request: Request[None, None]) -> bytes:
    webhook_id = request.path["webhook_id"]
    await store.delete_webhook(request.services, request.project_id, webhook_id, request.audit("webhook.deleted", webhook_id))
    return msgspec.json.encode(DeletedWebhook(webhook_id))


ROUTES = [
    Route(
        method="POST",
        path="/webhooks",
        name="createWebhook",
        summary="Have an address called for events",
        call=create_webhook,
        body=CreateWebhook,
        answer=Webhook,
    ),
    Route(
        method="GET",
        path="/webhooks",
        name="listWebhooks",
        summary="List webhooks",
        call=list_webhooks,
        query=Page,
        answer=list_schema(Webhook),
    ),
    Route(
        method="GET",
        path="/webhooks/{webhook_id}",
        name="getWebhook",
        summary="Get a webhook, and how its last calls went",
        call=get_webhook,
        answer=Webhook,
    ),
    Route(
        method="DELETE",
        path="/webhooks/{webhook_id}",
        name="deleteWebhook",
        summary="Delete a webhook, with what it has not been told yet",
        call=delete_webhook,
        answer=DeletedWebhook,
    ),
]
