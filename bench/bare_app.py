"""The least that an API over the same store can do, as the bound for requests: a bare ASGI function and msgspec.

It decodes the same struct, runs the same statements on the same database and sends the same bodies. It knows three paths, no keys,
no errors, no request ids, no queries.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
import uvicorn
import uvloop

from mini_assistant.db.base import Query
from mini_assistant.db.sqlite import SqliteDatabase
from mini_assistant.db.tables import messages
from mini_assistant.ids import new_id
from mini_assistant.threads import store
from mini_assistant.threads.schema import CreateMessage, Message, Text, TextContent, Thread

PROJECT_ID = "default"
_PAGE_ROWS = 20

_of_thread = (messages.c.thread_id == sa.bindparam("thread_id"), messages.c.project_id == sa.bindparam("project_id"))
_insert = Query.insert_into(messages)
_select = Query(sa.select(messages.c.body).where(messages.c.id == sa.bindparam("object_id"), *_of_thread))
_list = Query(
    sa.select(messages.c.id, messages.c.body)
    .where(*_of_thread)
    .order_by(messages.c.created_at.desc(), messages.c.seq.desc())
    .limit(sa.bindparam("row_limit", type_=sa.Integer))
)
_decode = msgspec.json.Decoder(CreateMessage).decode

Send = Callable[[dict[str, Any]], Awaitable[None]]


class BareApp:
    """POST and GET of `/v1/threads/ID/messages`, GET of `/v1/threads/ID/messages/ID`, POST of `/v1/threads`."""

    def __init__(self, db: SqliteDatabase) -> None:
        self._db = db

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
        path = scope["path"].split("/")
        if scope["method"] == "GET":
            body = await (self._list(path[3]) if len(path) == 5 else self._get(path[3], path[5]))
        else:
            request = await receive()
            body = await (self._create_thread() if len(path) == 3 else self._create(path[3], request["body"]))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _create_thread(self) -> bytes:
        thread = msgspec.convert({"id": new_id("thread"), "created_at": int(time.time()), "metadata": {}, "tool_resources": {}}, Thread)
        body = msgspec.json.encode(thread)
        await self._db.write([store.insert_thread(PROJECT_ID, thread, body.decode())])
        return body

    async def _create(self, thread_id: str, request: bytes) -> bytes:
        given, now = _decode(request), int(time.time())
        assert isinstance(given.content, str)
        message = Message(
            id=new_id("msg"),
            created_at=now,
            assistant_id=None,
            thread_id=thread_id,
            run_id=None,
            status="completed",
            completed_at=now,
            role=given.role,
            content=[TextContent(Text(given.content))],
            attachments=[],
            metadata=given.metadata or {},
        )
        body = msgspec.json.encode(message)
        row = _insert(
            id=message.id, project_id=PROJECT_ID, created_at=now, body=body.decode(), thread_id=thread_id, run_id=None, role=given.role
        )
        await self._db.write([store.require_thread(PROJECT_ID, thread_id), store.require_unlocked_thread(thread_id), row])
        return body

    async def _get(self, thread_id: str, message_id: str) -> bytes:
        rows = await self._db.read(_select(object_id=message_id, thread_id=thread_id, project_id=PROJECT_ID))
        return rows[0][0].encode()

    async def _list(self, thread_id: str) -> bytes:
        rows = await self._db.read(_list(thread_id=thread_id, project_id=PROJECT_ID, row_limit=_PAGE_ROWS + 1))
        has_more, rows = len(rows) > _PAGE_ROWS, rows[:_PAGE_ROWS]
        data, more = ",".join([body for _, body in rows]), "true" if has_more else "false"
        return f'{{"object":"list","data":[{data}],"first_id":"{rows[0][0]}","last_id":"{rows[-1][0]}","has_more":{more}}}'.encode()


async def _serve(folder: Path) -> None:
    db = SqliteDatabase(folder / "bare.sqlite3")
    await db.open()
    # As the real server sets it up.
    config = uvicorn.Config(
        BareApp(db),  # type: ignore[arg-type]
        port=0,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn sets no event
        await asyncio.sleep(0.005)
    print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await serving
    await db.close()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1])))
