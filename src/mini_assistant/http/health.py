"""`GET /health`: whether the server can be sent requests; `GET /health/live`: whether its process answers at all.

A process that is draining, or whose database is away, is not ready; it is alive, and to end it would help nobody.
"""

from typing import Literal

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Query
from mini_assistant.errors import StoreUnavailable
from mini_assistant.http.routing import Request, Route

_nothing = Query(sa.select(sa.literal(1)))


class Health(msgspec.Struct):
    """The answer of a server that is well."""

    status: Literal["ok"] = "ok"


async def get_health(request: Request[None, None]) -> bytes:
    if request.services.draining.is_set():
        raise StoreUnavailable("The server is stopping.")
    await request.services.db.read(_nothing())
    return msgspec.json.encode(Health())


async def get_liveness(request: Request[None, None]) -> bytes:
    return msgspec.json.encode(Health())


ROUTES = [
    Route(
        method="GET",
        path="/health",
        name="getHealth",
        summary="200 when the server is ready for requests, 503 when it is not",
        call=get_health,
        answer=Health,
        public=True,
    ),
    Route(
        method="GET",
        path="/health/live",
        name="getLiveness",
        summary="200 as long as the process answers (extension)",
        call=get_liveness,
        answer=Health,
        public=True,
    ),
]
