"""Threads and files that are older than a project keeps them: which ones go, with what, and that the rest stays."""

import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from mini_assistant.app import open_services
from mini_assistant.assistants import routes as assistant_routes
from mini_assistant.assistants.schema import CreateAssistant, FunctionDefinition, FunctionTool
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import Query
from mini_assistant.db.tables import audit_log, files, messages, runs, threads, unneeded_blobs, vector_store_files
from mini_assistant.files.commands import blob_of, new_blob, new_file
from mini_assistant.files.schema import FileExpirationAfter
from mini_assistant.files.store import insert_file
from mini_assistant.files.sweep import sweep_files
from mini_assistant.http.routing import Request
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.projects import retention
from mini_assistant.projects.retention import Retention
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.runs import commands as run_commands
from mini_assistant.runs.schema import CreateRun
from mini_assistant.services import Services
from mini_assistant.settings import ProjectSettings, Settings
from mini_assistant.threads import routes as thread_routes
from mini_assistant.threads.schema import CreateMessage, CreateThread
from mini_assistant.vector_stores.commands import create_store
from mini_assistant.vector_stores.schema import CreateVectorStore

DAY = 86_400


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    database_url = ""
    if request.param == "postgresql":
        database_url = request.getfixturevalue("postgres_url")
        apply_schema(database_url)
    return Settings(
        data_dir=tmp_path,
        database_url=database_url,
        openai_base_url=endpoint.base_url,
        sandbox="none",
        thread_ttl_days=30,
        file_ttl_days=10,
        projects={"keeps": ProjectSettings(thread_ttl_days=0, file_ttl_days=0), "short": ProjectSettings(thread_ttl_days=2)},
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time())


@pytest.fixture
async def services(settings: Settings, clock: ManualClock) -> AsyncIterator[Services]:
    async with open_services(settings) as opened:
        yield dataclasses.replace(opened, clock=clock)


def request(services: Services, body: Any = None, *, project: str = "default", **path: str) -> Request[Any, Any]:
    return Request(services, project, path, body, None)


async def create_thread(services: Services, project: str = "default") -> str:
    body = CreateThread(messages=[CreateMessage(role="user", content="Hello")])
    return msgspec.json.decode(await thread_routes.create_thread(request(services, body, project=project)))["id"]


async def create_message(services: Services, thread_id: str) -> None:
    await thread_routes.create_message(request(services, CreateMessage(role="user", content="and on"), thread_id=thread_id))


async def create_run(services: Services, thread_id: str) -> None:
    tool = FunctionTool(FunctionDefinition("f"))
    body = CreateAssistant(model="scripted", tools=[tool])
    assistant_id = msgspec.json.decode(await assistant_routes.create_assistant(request(services, body)))["id"]
    await run_commands.create_run(request(services, CreateRun(assistant_id=assistant_id), thread_id=thread_id))


async def create_file(services: Services, project: str = "default", expires_after: FileExpirationAfter | None = None) -> str:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"The zebra runs at night."

    async with new_blob(services, blob_of(services, pieces(), 1000)) as blob:
        record = new_file(blob, "zebra.txt", "assistants", services.now(), expires_after)
        await services.db.write(insert_file(project, record))
    return record.file.id


async def ids(services: Services, table: sa.Table) -> set[str]:
    return {found for (found,) in await services.db.read(Query(sa.select(table.c.id))())}


async def audit(services: Services) -> set[tuple[str, str, str, str]]:
    columns = (audit_log.c.project_id, audit_log.c.actor, audit_log.c.action, audit_log.c.object_id)
    return {tuple(row) for row in await services.db.read(Query(sa.select(*columns))())}  # type: ignore[misc]


async def test_threads_in_which_nothing_happens_go(services: Services, clock: ManualClock) -> None:
    idle, written, running = [await create_thread(services) for _ in range(3)]
    kept, short = await create_thread(services, "keeps"), await create_thread(services, "short")
    clock.advance(29 * DAY)
    young = await create_thread(services)
    await create_message(services, written)
    await create_run(services, running)
    sweep = Retention(services).sweep
    await sweep()
    assert await ids(services, threads) == {idle, written, running, kept, young}, "its project keeps a thread for two days"

    clock.advance(1.5 * DAY)
    await Retention(services).sweep()
    assert await ids(services, threads) == {written, running, kept, young}
    assert await audit(services) == {
        ("short", "retention", "thread.deleted", short),
        ("default", "retention", "thread.deleted", idle),
    }
    assert len(await ids(services, messages)) == 5

    clock.advance(40 * DAY)
    await Retention(services).sweep()
    assert await ids(services, threads) == {running, kept}, "a run that goes on keeps its thread"
    assert len(await ids(services, runs)) == 1


async def test_a_thread_that_is_used_again_stays(services: Services, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = await create_thread(services)
    clock.advance(31 * DAY)
    found = retention.delete_thread

    async def delete_late(*arguments: Any) -> None:
        await create_message(services, thread)  # between the look and the deletion
        await found(*arguments)

    monkeypatch.setattr(retention, "delete_thread", delete_late)
    await Retention(services).sweep()
    assert await ids(services, threads) == {thread}
    assert await audit(services) == set()


async def test_files_that_do_not_say_when_they_expire_go(services: Services, clock: ManualClock) -> None:
    old, kept = await create_file(services), await create_file(services, "keeps")
    later = await create_file(services, expires_after=FileExpirationAfter(anchor="created_at", seconds=30 * DAY))
    await create_store(services, "default", CreateVectorStore(file_ids=[old]), lambda _: [])
    clock.advance(9 * DAY)
    young = await create_file(services)
    clock.advance(2 * DAY)
    await Retention(services).sweep()
    assert await ids(services, files) == {kept, later, young}
    assert await ids(services, vector_store_files) == set()
    assert await audit(services) == {("default", "retention", "file.deleted", old)}

    await sweep_files(services)
    assert await services.db.read(Query(sa.select(unneeded_blobs.c.blob_key))()) == []
    blobs = [path for path in (services.settings.data_dir / "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == 3


async def test_a_walk_goes_on_where_the_last_sweep_has_come_to(
    services: Services, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_LOOKED_AT_MAX", 3)
    projects = ["default", "keeps", "short"]
    for number in range(9):
        await create_thread(services, projects[number % 3])
    used = [await create_thread(services) for _ in range(4)]
    clock.advance(31 * DAY)
    for thread in used:
        await create_message(services, thread)
    swept = Retention(services)
    for _ in range(8):
        await swept.sweep()
    assert len(await ids(services, threads)) == 3 + len(used)

    late = await create_thread(services, "short")
    clock.advance(3 * DAY)
    for _ in range(8):
        await swept.sweep()
    assert late not in await ids(services, threads), "after its pause it begins again"


async def test_without_a_limit_nothing_is_read(settings: Settings, clock: ManualClock) -> None:
    without = dataclasses.replace(settings, thread_ttl_days=0, file_ttl_days=0, projects={})
    async with open_services(without) as opened:
        services = dataclasses.replace(opened, clock=clock)
        thread = await create_thread(services)
        clock.advance(10_000 * DAY)

        class Unread:
            """A database that must not be asked."""

        await Retention(dataclasses.replace(services, db=Unread())).sweep()  # type: ignore[arg-type]
        assert await ids(services, threads) == {thread}
