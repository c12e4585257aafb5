"""A server with objects of every kind, to which requests are sent that it must refuse; and the bodies of such requests."""

import asyncio
import contextlib
import json
import re
import sqlite3
from typing import Any

import aiohttp
from yarl import URL

from mini_assistant.app import BLOBS_FOLDER, DATABASE_FILE
from mini_assistant.http.routing import Route
from mini_assistant.settings import Settings
from tests.component.request_cases import CASES
from tests.envelope import checked_error

WHOLE_TABLES = (
    "idempotency_keys",
    "files",
    "uploads",
    "upload_parts",
    "unneeded_blobs",
    "vector_stores",
    "vector_store_files",
    "vector_store_file_attributes",
    "vector_store_file_batches",
    "code_file_owners",
    "passages",
    "segments",
    "deleted_cursors",
    "webhooks",
    "webhook_events",
)


class World:
    """A server with objects of every kind.

    There are an assistant and three threads: one whose run has answered, one whose run waits, one whose run is being written. There are a
    vector store with a file that came in a batch, and an upload with a part. `ended` has an upload and a vector store whose time is over.
    """

    def __init__(self, http: aiohttp.ClientSession, server: str, settings: Settings) -> None:
        self.ids: dict[str, dict[str, str]] = {}
        self.http = http
        self.server = server
        self._database = settings.data_dir / DATABASE_FILE
        self._blobs = settings.data_dir / BLOBS_FOLDER

    async def create(self) -> None:
        files = await self._create_files()
        assistant = await self._created("/v1/assistants", {"model": "m", "tools": [{"type": "function", "function": {"name": "f"}}]})
        for name, text, last_event in (
            ("answered", "Hello", "done"),
            ("waiting", "call the function", "done"),
            ("writing", "stall", "thread.message.delta"),
        ):
            thread = await self._created("/v1/threads", {"messages": [{"role": "user", "content": text}]})
            ids = {**files, "assistant_id": assistant["id"], "thread_id": thread["id"]}
            ids |= await self._run(ids, last_event)
            self.ids[name] = ids
        self.ids["ended"] = {**self.ids["answered"], **await self._create_ended()}

    async def _create_files(self) -> dict[str, str]:
        """A vector store with a file that came in a batch, two files that are in none, and an upload with a part."""
        ids: dict[str, str] = {"model": "scripted"}
        for name, filename in (("file_id", "whales.txt"), ("other_file_id", "more.txt"), ("strange_file_id", "a.xyz")):
            form = aiohttp.FormData({"purpose": "assistants"})
            form.add_field("file", b"Whales sing.", filename=filename)
            ids[name] = (await self._created("/v1/files", data=form))["id"]
        store = f"/v1/vector_stores/{(await self._created('/v1/vector_stores', {}))['id']}"
        ids["vector_store_id"] = store.rpartition("/")[2]
        ids["batch_id"] = (await self._created(f"{store}/file_batches", {"file_ids": [ids["file_id"]]}))["id"]
        async with asyncio.timeout(20):
            while (await self._got(f"{store}/file_batches/{ids['batch_id']}"))["status"] == "in_progress":  # noqa: ASYNC110 - polled
                await asyncio.sleep(0.02)
        assert (await self._got(store))["file_counts"]["completed"] == 1
        ids["webhook_id"] = (await self._created("/v1/webhooks", CASES["createWebhook"].good))["id"]
        upload = await self._created("/v1/uploads", CASES["createUpload"].good)
        form = aiohttp.FormData()
        form.add_field("data", b"12345", filename="part")
        part = await self._created(f"/v1/uploads/{upload['id']}/parts", data=form)
        return {**ids, "upload_id": upload["id"], "part_id": part["id"]}

    async def _create_ended(self) -> dict[str, str]:
        """An upload that was cancelled and a vector store that has expired."""
        upload = await self._created("/v1/uploads", CASES["createUpload"].good)
        await self._created(f"/v1/uploads/{upload['id']}/cancel")
        store = await self._created("/v1/vector_stores", {"expires_after": {"anchor": "last_active_at", "days": 1}})
        with contextlib.closing(sqlite3.connect(self._database, timeout=20)) as connection, connection:
            connection.execute("UPDATE vector_stores SET expires_at = 1 WHERE id = ?", [store["id"]])
        return {"upload_id": upload["id"], "vector_store_id": store["id"]}

    async def _run(self, ids: dict[str, str], last_event: str) -> dict[str, str]:
        body = {"assistant_id": ids["assistant_id"], "stream": True}
        text = ""
        async with self.http.post(f"/v1/threads/{ids['thread_id']}/runs", json=body) as response:
            async for line in response.content:
                text += line.decode()
                if line == f"event: {last_event}\n".encode():
                    break
        found = {"run_id": re.search(r'"id":"(run_\w+)"', text), "step_id": re.search(r'"id":"(step_\w+)"', text)}
        found["message_id"] = re.search(r'"id":"(msg_\w+)"', text)
        return {name: match[1] for name, match in found.items() if match is not None}

    async def _created(self, path: str, body: Any = None, data: Any = None) -> dict[str, Any]:
        async with self.http.post(path, json=body, data=data) as response:
            assert response.status == 200
            return await response.json()

    async def _got(self, path: str) -> dict[str, Any]:
        async with self.http.get(path) as response:
            assert response.status == 200
            return await response.json()

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Everything that clients have put into the database, and the bytes of their files."""
        connection = sqlite3.connect(self._database)
        try:
            tables = ("assistants", "threads", "messages", "runs", "run_steps")
            rows = {table: connection.execute(f"SELECT id, body FROM {table} ORDER BY seq").fetchall() for table in tables}
            whole = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in WHOLE_TABLES}
            blobs = sorted((path.name, path.stat().st_size) for path in self._blobs.rglob("*") if path.is_file())
            return {**rows, **whole, "blobs": blobs}
        finally:
            connection.close()

    def url(self, path: str, objects: str = "answered", **other_ids: str) -> str:
        """The path of a route with ids of the world; `other_ids` are used as they are, percent signs included."""
        return path.format(**{**self.ids[objects], **other_ids})

    def body(self, name: str, change: dict[str, Any] | None = None) -> dict[str, Any]:
        """The good body of a route, changed."""
        text = json.dumps({**(CASES[name].good or {}), **(change or {})})
        for placeholder, value in self.ids["answered"].items():
            text = text.replace(f"{{{placeholder}}}", value)
        return json.loads(text)

    async def refused(self, method: str, path: str, data: bytes | None = None, **options: Any) -> tuple[int, dict[str, Any]]:
        """Send a request that must be refused; returns the status and the error. options: headers, and what else the client takes."""
        url = URL(self.server + "/v1" + path, encoded=True)
        async with self.http.request(method, url, data=data, allow_redirects=False, **options) as response:
            raw = await response.read()
            assert 400 <= response.status < 500, (response.status, method, path[:100], (data or b"")[:100], raw[:200])
            assert response.headers["Content-Type"] == "application/json"
            assert response.headers["x-should-retry"] == "false"
            assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
            assert ("detail" in json.loads(raw)) == path.startswith("/files"), "it is for files"
            return response.status, checked_error(raw)

    async def is_served(self) -> bool:
        async with self.http.get("/health") as response:
            return response.status == 200


def good(world: World, route: Route) -> dict[str, Any]:
    """The body of a good request as arguments of `World.refused`."""
    if route.form is not None:
        return form_request(form_body(route, CASES[route.name].form or {}))
    return {} if route.body is None else {"data": json.dumps(world.body(route.name)).encode()}


def form_request(body: bytes, content_type: str = "multipart/form-data; boundary=b") -> dict[str, Any]:
    return {"data": body, "headers": {"Content-Type": content_type}}


def form_part(name: str, value: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)


def file_part(route: Route, data: bytes = b"12345") -> bytes:
    disposition = b'form-data; name="%b"; filename="a.txt"' % route.file_field.encode()
    return b"--b\r\nContent-Disposition: %b\r\nContent-Type: text/plain\r\n\r\n%b\r\n" % (disposition, data)


def form_body(route: Route, fields: dict[str, Any]) -> bytes:
    """A whole form; members of an object are written as `name[member]`."""
    parts = b""
    for name, value in fields.items():
        if isinstance(value, dict):
            parts += b"".join(form_part(f"{name}[{member}]", str(text).encode()) for member, text in value.items())
        else:
            parts += form_part(name, str(value).encode())
    return parts + file_part(route) + b"--b--\r\n"
