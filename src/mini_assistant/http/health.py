"""`GET /health`: whether the server can answer requests."""

from typing import Literal

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Query
from mini_assistant.http.routing import Request, Route

_nothing = Query(sa.select(sa.literal(1)))


class Health(msgspec.Struct):
    """The answer of a server that is ready."""

    status: Literal["ok"] = "ok"


async def get_health(request: Request[None, None]) -> bytes:
    await request.services.db.read(_nothing())
    return msgspec.json.encode(Health())


ROUTES = [
    Route(
        method="GET",
        path="/health",
        name="getHealth",
        summary="200 when the server is ready",
        call=get_health,
        answer=Health,
        public=True,
    )
]
