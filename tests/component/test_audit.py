"""The audit log: every deletion leaves its line and nothing else does, whoever asks; and how it is read and forgotten."""

import asyncio
import dataclasses
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mini_assistant import administration
from mini_assistant.app import DATABASE_FILE, all_routes, open_services, running_server
from mini_assistant.clock import ManualClock
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.pagination import Page
from mini_assistant.projects.audit import audit_entry, audit_page, delete_old_audit
from mini_assistant.projects.keys import NewKey
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from tests.envelope import checked_error

NOW = 1_700_000_000
DAY_SECONDS = 86_400


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    database_url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    if database_url:
        apply_schema(database_url)
    return Settings(
        port=0,
        data_dir=tmp_path / "data",
        database_url=database_url,
        openai_base_url=endpoint.base_url,
        sandbox="none",
        key_cache_seconds=0,
    )


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    async with open_services(settings) as services:
        yield dataclasses.replace(services, clock=ManualClock(NOW))


class Client:
    """A client with a key, or without."""

    def __init__(self, http: aiohttp.ClientSession, made: NewKey | None = None) -> None:
        self._http = http
        self._headers = {} if made is None else {"Authorization": f"Bearer {made.key}"}
        self.request_id = ""

    async def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The answer as JSON; `request_id` is then what it said."""
        async with self._http.request(method, f"/v1{path}", headers=self._headers, **options) as response:
            self.request_id = response.headers["x-request-id"]
            answer = await response.json()
            assert response.status == 200, answer
            return answer

    async def refused(self, method: str, path: str) -> int:
        async with self._http.request(method, f"/v1{path}", headers=self._headers) as response:
            raw = await response.read()
            assert response.status >= 500 or checked_error(raw)
            return response.status

    async def create_file(self) -> str:
        form = aiohttp.FormData({"purpose": "assistants"})
        form.add_field("file", b"Whales are large.", filename="whales.txt")
        return (await self.call("POST", "/files", data=form))["id"]

    async def lines(self, **query: str) -> list[dict[str, Any]]:
        """The audit log, newest first."""
        return (await self.call("GET", "/organization/audit_logs", params=query))["data"]


async def objects_to_delete(client: Client) -> dict[str, tuple[str, str]]:
    """One object for each DELETE route: by the route's name its path, and the id that the log should name."""
    assistant = (await client.call("POST", "/assistants", json={"model": "m"}))["id"]
    thread = (await client.call("POST", "/threads", json={}))["id"]
    message = (await client.call("POST", f"/threads/{thread}/messages", json={"role": "user", "content": "x"}))["id"]
    file = await client.create_file()
    store = (await client.call("POST", "/vector_stores", json={"file_ids": [file]}))["id"]
    return {
        "deleteMessage": (f"/threads/{thread}/messages/{message}", message),
        "deleteThread": (f"/threads/{thread}", thread),
        "deleteAssistant": (f"/assistants/{assistant}", assistant),
        "deleteVectorStoreFile": (f"/vector_stores/{store}/files/{file}", f"{store}/{file}"),
        "deleteVectorStore": (f"/vector_stores/{store}", store),
        "deleteFile": (f"/files/{file}", file),
    }


ACTIONS = {
    "deleteMessage": "thread.message.deleted",
    "deleteThread": "thread.deleted",
    "deleteAssistant": "assistant.deleted",
    "deleteVectorStoreFile": "vector_store.file.deleted",
    "deleteVectorStore": "vector_store.deleted",
    "deleteFile": "file.deleted",
}
# Other routes that delete, with tests of their own beside what they delete.
ELSEWHERE = {"deleteWebhook"}


def test_every_route_that_deletes_is_here() -> None:
    assert {route.name for route in all_routes() if route.method == "DELETE"} - ELSEWHERE == set(ACTIONS)


async def test_every_deletion_leaves_its_line(settings: Settings, http: aiohttp.ClientSession) -> None:
    made = await administration.create_key(settings, "team-a", "read,write", None)
    admin = Client(http, await administration.create_key(settings, "operators", "admin", None))
    client = Client(http, made)
    before = len(await admin.lines())
    for name, (path, object_id) in (await objects_to_delete(client)).items():
        await client.call("DELETE", path)

        [line, *_] = lines = await admin.lines()
        before += 1
        assert len(lines) == before
        assert line.pop("id").startswith("audit_")
        assert line.pop("created_at") > NOW
        assert line == {
            "object": "organization.audit_log",
            "project_id": "team-a",
            "actor": made.record.id,
            "action": ACTIONS[name],
            "object_id": object_id,
            "request_id": client.request_id,
        }
        assert await client.refused("DELETE", path) == 404
        assert len(await admin.lines()) == before, "what was not there was not deleted"


async def test_without_a_deletion_there_is_no_line(http: aiohttp.ClientSession) -> None:
    client = Client(http)
    strange = "file-%0d%0a2026%20ERROR%20forged%1b%5b31m%22%7d%2c%7b%22actor%22%3a%22x"
    for path in ("/threads/thread_x", "/threads/thread_x/messages/msg_x", "/assistants/asst_x", "/vector_stores/vs_x", f"/files/{strange}"):
        assert await client.refused("DELETE", path) == 404
        assert await client.refused("DELETE", f"{path}%0a%00") in (400, 404, 503)
    assert await client.refused("DELETE", f"/vector_stores/vs_x/files/{strange}") == 404
    assert await client.lines() == []


async def test_many_who_delete_the_same_leave_one_line(http: aiohttp.ClientSession) -> None:
    client = Client(http)
    thread = (await client.call("POST", "/threads", json={}))["id"]

    async def delete() -> int:
        async with http.delete(f"/v1/threads/{thread}") as response:
            return response.status

    statuses = await asyncio.gather(*(delete() for _ in range(8)))
    assert sorted(statuses) == [200] + [404] * 7
    assert [line["object_id"] for line in await client.lines()] == [thread]


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
async def test_a_deletion_whose_line_cannot_be_written_does_not_happen(settings: Settings, http: aiohttp.ClientSession) -> None:
    client = Client(http)
    objects = await objects_to_delete(client)
    with sqlite3.connect(settings.data_dir / DATABASE_FILE) as connection:
        connection.execute("CREATE TRIGGER no_line BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'the log is full'); END")
    connection.close()
    for path, _ in objects.values():
        assert await client.refused("DELETE", path) == 503
        if "messages" not in path:
            await client.call("GET", path)
    assert await client.lines() == []


async def test_who_made_and_revoked_keys(settings: Settings) -> None:
    made = await administration.create_key(settings, "team-a", "admin", None)
    other = await administration.create_key(settings, "team-b", "read", None)
    for _ in range(2):
        await administration.revoke_key(settings, other.record.id)
    async with running_server(settings) as server, aiohttp.ClientSession(server) as http:
        lines = await Client(http, made).lines()
    assert [(line["project_id"], line["action"], line["object_id"]) for line in lines] == [
        ("team-b", "api_key.revoked", other.record.id),
        ("team-b", "api_key.created", other.record.id),
        ("team-a", "api_key.created", made.record.id),
    ]
    assert {(line["actor"], line["request_id"]) for line in lines} == {("command", None)}


@pytest.mark.parametrize("api_keys", [(), ("k" * 20,)])
async def test_who_deletes_without_a_key_of_their_own(api_keys: tuple[str, ...], settings: Settings) -> None:
    async with running_server(dataclasses.replace(settings, api_keys=api_keys)) as server:
        headers = {"Authorization": f"Bearer {''.join(api_keys)}"} if api_keys else {}
        async with aiohttp.ClientSession(server, headers=headers) as http:
            client = Client(http)
            await client.call("DELETE", f"/files/{await client.create_file()}")
            [line] = await client.lines()
    assert (line["project_id"], line["actor"]) == ("default", "settings" if api_keys else "nobody")


# ---- reading it --------------------------------------------------------------------------------------------------------------------


async def test_pages_and_filters(services: Services) -> None:
    entries = [
        audit_entry("ab"[number % 2], NOW + number // 3, f"thing.{'made' if number < 4 else 'deleted'}", f"thing_{number}", actor="key_x")
        for number in range(12)
    ]
    for entry in entries:
        await services.db.write([entry])

    async def page(filters: dict[str, str] | None = None, **query: Any) -> tuple[list[int], dict[str, Any]]:
        answer = json.loads(await audit_page(services, Page(**query), filters or {}))
        return [int(line["object_id"].removeprefix("thing_")) for line in answer["data"]], answer

    numbers, whole = await page()
    assert numbers == list(range(11, -1, -1))
    assert (whole["object"], whole["has_more"], whole["first_id"]) == ("list", False, whole["data"][0]["id"])
    ids = {int(line["object_id"].removeprefix("thing_")): line["id"] for line in whole["data"]}
    assert (await page(limit=3))[0] == [11, 10, 9]
    assert (await page(limit=3, after=ids[9]))[0] == [8, 7, 6]
    assert (await page(limit=3, before=ids[6]))[0] == [9, 8, 7]
    assert (await page(limit=3, order="asc"))[0] == [0, 1, 2]
    assert (await page({"project_id": "a"}, limit=3, after=ids[9]))[0] == [8, 6, 4]
    assert (await page({"action": "thing.made"}))[0] == [3, 2, 1, 0]
    assert (await page({"action": "thing.made", "project_id": "b"}))[0] == [3, 1]
    assert (await page({"project_id": "c"}))[0] == []


async def test_what_is_no_query(http: aiohttp.ClientSession) -> None:
    client = Client(http)
    for query in ("limit=0", "limit=101", "order=up"):
        assert await client.refused("GET", f"/organization/audit_logs?{query}") == 400
    assert await client.refused("GET", "/organization/audit_logs?after=audit_x") == 404
    for text in ("' OR 1=1 --", "\r\n", "\0", "a\0b", "\U0001f600", "x" * 5000):
        assert await client.lines(project_id=text, action=text) == []


async def test_a_line_is_shown_as_it_was_written(services: Services) -> None:
    strange = 'thing\r\n2026 ERROR forged\x1b[31m","actor":"\u2028\U0001f600'
    await services.db.write([audit_entry("a", NOW, "thing.deleted", strange, actor="key_x", request_id=None)])
    text = await audit_page(services, Page(), {})
    assert strange not in text
    assert not {letter for letter in text if letter < " "}
    [line] = json.loads(text)["data"]
    assert (line["object_id"], line["actor"]) == (strange, "key_x")


async def test_old_lines_are_forgotten(services: Services, settings: Settings) -> None:
    ttl_seconds = settings.audit_ttl_days * DAY_SECONDS
    for age in (0, ttl_seconds, ttl_seconds + 1, 2 * ttl_seconds):
        await services.db.write([audit_entry("a", NOW - age, "thing.deleted", f"thing_{age}", actor="key_x")])
    await delete_old_audit(services)
    text = await audit_page(services, Page(), {})
    assert [f"thing_{age}" in text for age in (0, ttl_seconds, ttl_seconds + 1, 2 * ttl_seconds)] == [True, True, False, False]
