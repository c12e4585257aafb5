"""What is deleted is gone: rows of every table, bytes of files, what is kept in memory, and the bytes of SQLite's own files.

Everything that a client says here has a word in it that stands nowhere else, and is looked for everywhere afterwards.
"""

import asyncio
import contextlib
import dataclasses
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import sqlalchemy as sa

from mini_assistant.administration import create_key, delete_project
from mini_assistant.app import BLOBS_FOLDER, DATABASE_FILE, open_services, running_server
from mini_assistant.assistants import routes as assistant_routes
from mini_assistant.assistants.schema import CreateAssistant
from mini_assistant.db.tables import metadata
from mini_assistant.errors import ConfigError
from mini_assistant.http.routing import Request
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.projects.retention import Retention
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.runs import commands as run_commands
from mini_assistant.runs.schema import CreateRun
from mini_assistant.runs.store import get_record_for_worker
from mini_assistant.runs.worker import Worker
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from mini_assistant.threads import routes as thread_routes
from mini_assistant.threads.schema import CreateMessage, CreateThread
from mini_assistant.tools.base import HostedTool
from tests.s3_server import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server
from tests.server_contents import fill, seen

WORD = "zyxomma"
USAGE = {"audit_log", "usage_days", "usage_entries", "api_keys"}


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        apply_schema(url)
    return dataclasses.replace(settings, database_url=url, sweep_interval_seconds=0.1, deleted_cursor_ttl_seconds=1)


def engine_of(settings: Settings) -> sa.Engine:
    if settings.database_url:
        return sa.create_engine(f"postgresql+psycopg://{settings.database_url.partition('://')[2]}", poolclass=sa.NullPool)
    return sa.create_engine(f"sqlite:///{settings.data_dir / DATABASE_FILE}", poolclass=sa.NullPool)


def places_of(settings: Settings, word: str) -> set[str]:
    """The columns, of whatever table there is, in which a word stands, and the files in the blob folder that have it."""
    engine, found = engine_of(settings), set[str]()
    with engine.connect() as connection:
        for table in sa.inspect(engine).get_table_names():  # also those that PostgreSQL alone has
            for row in connection.execute(sa.text(f'SELECT * FROM "{table}"')).mappings():
                found |= {f"{table}.{name}" for name, value in row.items() if word in _text(value)}
    engine.dispose()
    for path in (settings.data_dir / BLOBS_FOLDER).rglob("*"):
        if path.is_file() and word.encode() in path.read_bytes():
            found.add("blobs")
    return found


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes | memoryview) else str(value)


def rows_of(settings: Settings) -> dict[str, int]:
    """How many rows the tables have that have some."""
    engine = engine_of(settings)
    with engine.connect() as connection:
        counts = {name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for name, table in metadata.tables.items()}
    engine.dispose()
    return {name: count for name, count in counts.items() if count}


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(is_so):  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.1)


class Said:
    """Objects of every kind, each with the word in all that clients choose."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self.ids: dict[str, str] = {}

    async def _post(self, path: str, body: Any, key: str | None = None) -> dict[str, Any]:
        headers = {} if key is None else {"Idempotency-Key": key}
        async with self._http.post(f"/v1{path}", json=body, headers=headers) as response:
            answer = await response.text()
            assert response.status == 200, answer
            return json.loads(answer)

    async def say(self) -> None:
        metadata = {WORD: WORD}
        form = aiohttp.FormData({"purpose": "assistants"})
        form.add_field("file", f"The {WORD} runs at night. ".encode() * 40, filename=f"{WORD}.txt")
        async with self._http.post("/v1/files", data=form) as response:
            file = self.ids["file"] = (await response.json())["id"]
        files = [{"file_id": file, "attributes": {WORD: WORD}}]
        store = self.ids["store"] = (await self._post("/vector_stores", {"name": WORD, "metadata": metadata}, "s"))["id"]
        batch = (await self._post(f"/vector_stores/{store}/file_batches", {"files": files}))["id"]
        while (await self._got(f"/vector_stores/{store}/file_batches/{batch}"))["status"] == "in_progress":  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.05)
        assert (await self._post(f"/vector_stores/{store}/search", {"query": WORD}))["data"]
        tools = {"tools": [{"type": "file_search"}], "tool_resources": {"file_search": {"vector_store_ids": [store]}}}
        assistant = {"model": "m", "name": WORD, "instructions": WORD, "metadata": metadata, **tools}
        self.ids["assistant"] = (await self._post("/assistants", assistant, "a"))["id"]
        text = f'call file_search {{"queries": ["{WORD}"]}}'
        message = {"role": "user", "content": text, "metadata": metadata}
        thread = self.ids["thread"] = (await self._post("/threads", {"messages": [message], "metadata": metadata}, "t"))["id"]
        run = {"assistant_id": self.ids["assistant"], "metadata": metadata, "stream": True}
        async with self._http.post(f"/v1/threads/{thread}/runs", json=run, headers={"Idempotency-Key": "r"}) as response:
            assert "thread.run.completed" in await response.text()
        await self._post(f"/threads/{thread}/messages", message, "m")

    async def _got(self, path: str) -> dict[str, Any]:
        async with self._http.get(f"/v1{path}") as response:
            return await response.json()

    async def delete(self) -> None:
        for path in (
            f"/threads/{self.ids['thread']}",
            f"/assistants/{self.ids['assistant']}",
            f"/vector_stores/{self.ids['store']}",
            f"/files/{self.ids['file']}",
        ):
            async with self._http.delete(f"/v1{path}") as response:
                assert response.status == 200


async def test_nothing_is_left_in_the_database_or_in_the_blobs(settings: Settings, endpoint: ScriptedEndpoint) -> None:
    async with running_server(settings) as address, aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=20)) as http:
        said = Said(http)
        await said.say()
        before = await asyncio.to_thread(places_of, settings, WORD)
        assert before >= {
            "blobs",
            *("assistants.body", "threads.body", "messages.body", "runs.body", "run_steps.body", "run_steps.outputs", "run_events.data"),
            *("files.body", "files.filename", "passages.text", "vector_stores.body", "vector_store_file_attributes.key"),
        }
        await said.delete()
        # What an Idempotency-Key would be answered with stays until the next sweep, and on PostgreSQL the events that processes have
        # told each other until `event_retention_seconds`.
        left = await asyncio.to_thread(places_of, settings, WORD)
        assert left <= {"idempotency_keys.body", "shared_events.data"}
        await until(lambda: places_of(settings, WORD) <= {"shared_events.data"})
        await until(lambda: set(rows_of(settings)) <= {*USAGE, "rate_limits", "claim_limits"})
    if not settings.database_url:
        files = await asyncio.to_thread(bytes_of, settings.data_dir)
        assert [name for name, content in files.items() if WORD.encode() in content] == []


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_sqlite_overwrites_what_it_deletes(settings: Settings, endpoint: ScriptedEndpoint) -> None:
    """After a checkpoint, while the server goes on."""
    if settings.database_url:
        pytest.skip("PostgreSQL frees the room of deleted rows by VACUUM; see docs/howto/retention.md")
    async with running_server(settings) as address, aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=20)) as http:
        said = Said(http)
        await said.say()
        await asyncio.to_thread(checkpoint, settings.data_dir)
        assert WORD.encode() in (await asyncio.to_thread(bytes_of, settings.data_dir))[DATABASE_FILE]
        await said.delete()
        await until(lambda: places_of(settings, WORD) == set())
        await asyncio.to_thread(checkpoint, settings.data_dir)
        files = await asyncio.to_thread(bytes_of, settings.data_dir)
        assert [name for name, content in files.items() if WORD.encode() in content] == []


def checkpoint(data_dir: Path) -> None:
    with contextlib.closing(sqlite3.connect(data_dir / DATABASE_FILE, timeout=10)) as connection:
        for _ in range(100):
            if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0:
                return
            time.sleep(0.02)  # a reader of the server is in its way
    raise AssertionError("the log cannot be emptied")


# ---- what processes keep in memory


class KeepingTool:
    """A tool that keeps something of threads."""

    def __init__(self, *threads: tuple[str, str]) -> None:
        self.threads = set(threads)

    def kept_threads(self) -> list[tuple[str, str]]:
        return list(self.threads)

    def forget_thread(self, project_id: str, thread_id: str) -> None:
        self.threads.discard((project_id, thread_id))


@contextlib.asynccontextmanager
async def with_tool(settings: Settings, tool: KeepingTool) -> AsyncIterator[Services]:
    async with open_services(settings) as services:
        kept: HostedTool = tool  # type: ignore[assignment]
        yield dataclasses.replace(services, tools={**services.tools, "keeping": kept})


async def call(route: Callable[[Request[Any, Any]], Any], services: Services, body: Any = None, **path: str) -> dict[str, Any]:
    return msgspec.json.decode(await route(Request(services, "default", path, body, None)))


async def test_the_session_of_a_deleted_thread_ends(settings: Settings, endpoint: ScriptedEndpoint) -> None:
    here, elsewhere = KeepingTool(), KeepingTool()
    async with with_tool(settings, here) as services:
        first, second = [(await call(thread_routes.create_thread, services, CreateThread()))["id"] for _ in range(2)]
        for tool in (here, elsewhere):
            tool.threads = {("default", first), ("default", second)}
        other_process = Retention(dataclasses.replace(services, tools={"keeping": elsewhere}))
        await other_process.sweep()
        assert len(elsewhere.threads) == 2
        await call(thread_routes.delete_thread, services, thread_id=first)
        assert here.threads == {("default", second)}
        await other_process.sweep()
        assert elsewhere.threads == {("default", second)}


async def test_the_events_of_a_run_that_has_ended_go_with_its_thread(settings: Settings, endpoint: ScriptedEndpoint) -> None:
    async with open_services(settings) as services:
        working = asyncio.create_task(Worker(services).run())
        try:
            thread_id, run_id = await completed_run(services)
            rings: dict[str, Any] = services.events._rings  # type: ignore[attr-defined]
            assert run_id in rings
            await call(thread_routes.delete_thread, services, thread_id=thread_id)
            assert run_id not in rings
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def completed_run(services: Services) -> tuple[str, str]:
    """A thread and its run."""
    assistant = (await call(assistant_routes.create_assistant, services, CreateAssistant(model="m")))["id"]
    thread = (await call(thread_routes.create_thread, services, CreateThread(messages=[CreateMessage(role="user", content=WORD)])))["id"]
    started = await run_commands.create_run(Request(services, "default", {"thread_id": thread}, CreateRun(assistant_id=assistant), None))
    run = started.run.id
    async with asyncio.timeout(10):
        while (await get_record_for_worker(services, run)).run.status != "completed":  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.02)
    return thread, run


# ---- a whole project


@pytest.fixture
def on_s3(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """PostgreSQL comes with S3."""
    if not settings.database_url:
        return settings
    s3: S3Server = request.getfixturevalue("s3")
    return dataclasses.replace(
        settings,
        blobs_url=f"s3://{request.getfixturevalue('s3_bucket')}/files",
        s3_endpoint_url=s3.url,
        s3_access_key_id=ACCESS_KEY_ID,
        s3_secret_access_key=SECRET_ACCESS_KEY,
    )


async def test_a_project_is_deleted_beside_a_running_server(
    on_s3: Settings, request: pytest.FixtureRequest, endpoint: ScriptedEndpoint
) -> None:
    settings = dataclasses.replace(on_s3, idempotency_ttl_seconds=86_400)
    async with running_server(settings) as address, aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=20)) as http:
        await fill(address)
        await asyncio.to_thread(move_all_rows, settings, "default", "other")
        store_id, _ = await fill(address)
        await asyncio.to_thread(move_all_rows, settings, "default", "kept")
        await asyncio.to_thread(move_all_rows, settings, "other", "default")
        counted = await asyncio.to_thread(rows_of, settings)
        await Said(http).say()
        await begin_upload(http)
        told: list[str] = []
        await delete_project(settings, "default", told.append)
        assert {"threads: 4 rows", "upload_parts: 1 rows", "uploads: 1 rows"} <= set(told)
        with pytest.raises(ConfigError, match="nothing of a project"):
            await delete_project(settings, "default", told.append)
        assert await asyncio.to_thread(places_of, settings, WORD) <= {"shared_events.data"}
        after = await asyncio.to_thread(rows_of, settings)
        for name in ("assistants", "threads", "messages", "runs", "files", "passages", "segments", "vector_stores"):
            assert after[name] == counted[name] // 2, name
        await asyncio.to_thread(move_all_rows, settings, "kept", "default")
        assert (await seen(address, store_id))["search None"]["data"]
    assert blobs_in(settings, request) == 1
    assert await asyncio.to_thread(audit_lines, settings) >= {("default", "command", "project.deleted")}


async def begin_upload(http: aiohttp.ClientSession) -> None:
    body = {"filename": f"{WORD}.txt", "bytes": len(WORD), "mime_type": "text/plain", "purpose": "assistants"}
    async with http.post("/v1/uploads", json=body) as response:
        upload = (await response.json())["id"]
    form = aiohttp.FormData()
    form.add_field("data", WORD.encode(), filename="part")
    async with http.post(f"/v1/uploads/{upload}/parts", data=form) as response:
        assert response.status == 200


def move_all_rows(settings: Settings, project: str, target: str) -> None:
    engine = engine_of(settings)
    with engine.begin() as connection:
        for name, table in metadata.tables.items():
            if "project_id" in table.c and name not in USAGE:
                connection.execute(sa.update(table).where(table.c.project_id == project).values(project_id=target))
    engine.dispose()


def blobs_in(settings: Settings, request: pytest.FixtureRequest) -> int:
    if settings.blobs_url:
        return len(request.getfixturevalue("s3").keys(request.getfixturevalue("s3_bucket")))
    return len([path for path in (settings.data_dir / BLOBS_FOLDER).rglob("*") if path.is_file()])


def audit_lines(settings: Settings) -> set[tuple[str, str, str]]:
    engine = engine_of(settings)
    with engine.connect() as connection:
        lines = connection.execute(sa.text("SELECT project_id, actor, action FROM audit_log")).all()
    engine.dispose()
    return {tuple(line) for line in lines}  # type: ignore[misc]


async def test_the_keys_of_a_deleted_project_are_revoked(settings: Settings) -> None:
    made = await create_key(settings, "team-a", "read,write", None)
    told: list[str] = []
    await delete_project(settings, "team-a", told.append)
    assert told[0] == "1 keys revoked"
    headers = {"Authorization": f"Bearer {made.key}"}
    async with (
        running_server(settings) as address,
        aiohttp.ClientSession(address, headers=headers) as http,
        http.get("/v1/assistants") as response,
    ):
        assert response.status == 401, "and the server is not open to everybody"
