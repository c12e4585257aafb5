"""Vector stores whose time is over, with a clock that is moved by hand: what they refuse, what stays readable, and what is freed."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from mini_assistant.app import open_services
from mini_assistant.assistants import routes as assistant_routes
from mini_assistant.assistants.schema import CreateAssistant, FileSearchTool, Tool
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import Query
from mini_assistant.db.tables import passages, segments, summary_vectors, vector_stores
from mini_assistant.errors import InvalidRequest
from mini_assistant.http.routing import Request
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.pagination import Page
from mini_assistant.runs import commands as run_commands
from mini_assistant.runs import store as run_store
from mini_assistant.runs.schema import CreateRun
from mini_assistant.runs.worker import Worker
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from mini_assistant.threads import routes as thread_routes
from mini_assistant.threads.schema import Attachment, CreateMessage, CreateThread, FileSearchToolOnly
from mini_assistant.vector_stores import routes
from mini_assistant.vector_stores.ingest_worker import IngestWorker
from mini_assistant.vector_stores.schema import (
    CreateFileBatch,
    CreateVectorStore,
    CreateVectorStoreFile,
    ExpiresAfter,
    ModifyVectorStore,
    SearchVectorStore,
)
from mini_assistant.vector_stores.sweep import sweep_vector_stores
from tests.vector_store_rows import PROJECT, insert_file

DAY = 86_400
ONE_DAY = ExpiresAfter("last_active_at", 1)
POLLS_MAX = 1000

_counts = [Query(sa.select(sa.func.count()).select_from(table)) for table in (passages, segments, summary_vectors)]
_embedder = Query(sa.select(vector_stores.c.embedder).where(vector_stores.c.id == sa.bindparam("store")))


@pytest.fixture
def settings(tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    return Settings(data_dir=tmp_path, openai_base_url=endpoint.base_url, model_retries_max=0, sweep_interval_seconds=0.05)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time())


@pytest.fixture
async def services(settings: Settings, clock: ManualClock) -> AsyncIterator[Services]:
    """The parts of a server without its HTTP side; its time stands still until a test moves it."""
    async with open_services(settings) as opened:
        yield dataclasses.replace(opened, clock=clock)


@contextlib.asynccontextmanager
async def at_work(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def request(services: Services, body: Any = None, query: Any = None, **path: str) -> Request[Any, Any]:
    return Request(services, PROJECT, path, body, query)


async def create_store(services: Services, file_ids: Sequence[str] = (), expires_after: ExpiresAfter | None = ONE_DAY) -> str:
    body = CreateVectorStore(file_ids=list(file_ids), expires_after=expires_after)
    return msgspec.json.decode(await routes.create_vector_store(request(services, body)))["id"]


async def get_store(services: Services, store_id: str) -> dict[str, Any]:
    return msgspec.json.decode(await routes.get_vector_store(request(services, vector_store_id=store_id)))


async def ingest(services: Services, *store_ids: str) -> None:
    """Ingest everything that waits in these stores."""
    async with at_work(IngestWorker(services).run()):
        for store_id in store_ids:
            await wait_until_ingested(services, store_id)


async def wait_until_ingested(services: Services, store_id: str) -> None:
    for _ in range(POLLS_MAX):
        if not (await get_store(services, store_id))["file_counts"]["in_progress"]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"files of {store_id} are still in progress")


async def create_thread(services: Services, *attachments: Attachment) -> dict[str, Any]:
    body = CreateThread(messages=[CreateMessage(role="user", content="Hello", attachments=list(attachments))])
    return msgspec.json.decode(await thread_routes.create_thread(request(services, body)))


async def start_run(services: Services, thread_id: str, tools: Sequence[Tool]) -> str:
    assistant = CreateAssistant(model="scripted", tools=list(tools))
    assistant_id = msgspec.json.decode(await assistant_routes.create_assistant(request(services, assistant)))["id"]
    return (await run_commands.create_run(request(services, CreateRun(assistant_id=assistant_id), thread_id=thread_id))).run.id


async def ended_run(services: Services, run_id: str) -> run_store.RunRecord:
    for _ in range(POLLS_MAX):
        record = await run_store.get_record_for_worker(services, run_id)
        if record.run.status in ("completed", "failed"):
            return record
        await asyncio.sleep(0.01)
    raise AssertionError(f"{run_id} has not ended")


async def test_a_store_expires_by_time_alone(services: Services, clock: ManualClock) -> None:
    store_id = await create_store(services, [await insert_file(services, "Whales sing.")])
    await ingest(services, store_id)
    before = await get_store(services, store_id)
    assert before["expires_at"] == before["last_active_at"] + DAY
    clock.advance(DAY - 2)
    assert (await get_store(services, store_id))["status"] == "completed"
    clock.advance(2)
    assert await get_store(services, store_id) == {**before, "status": "expired"}
    listed = msgspec.json.decode(await routes.list_vector_stores(request(services, query=Page())))
    assert [store["status"] for store in listed["data"]] == ["expired"]


async def test_what_an_expired_store_refuses_and_what_stays(services: Services, clock: ManualClock) -> None:
    file_id, other_id = await insert_file(services, "Whales sing."), await insert_file(services, "Tomatoes grow.")
    store_id = await create_store(services, [file_id])
    await ingest(services, store_id)
    clock.advance(DAY)
    here = {"vector_store_id": store_id}
    for refused in (
        routes.search_vector_store(request(services, SearchVectorStore("whales"), **here)),
        routes.create_vector_store_file(request(services, CreateVectorStoreFile(other_id), **here)),
        routes.create_file_batch(request(services, CreateFileBatch(file_ids=[other_id]), **here)),
        routes.modify_vector_store(request(services, ModifyVectorStore(expires_after=None), **here)),
        routes.get_vector_store_file_content(request(services, file_id=file_id, **here)),
    ):
        with pytest.raises(InvalidRequest, match=f"Vector store {store_id} is expired"):
            await refused
    files = msgspec.json.decode(await routes.list_vector_store_files(request(services, query=routes.FilePage(), **here)))
    assert [file["id"] for file in files["data"]] == [file_id]
    renamed = await routes.modify_vector_store(request(services, ModifyVectorStore(name="Old"), **here))
    assert (msgspec.json.decode(renamed)["name"], msgspec.json.decode(renamed)["status"]) == ("Old", "expired")
    # Its files can be copied, and it can be deleted.
    copy_id = await create_store(services, [file["id"] for file in files["data"]])
    await ingest(services, copy_id)
    found = msgspec.json.decode(await routes.search_vector_store(request(services, SearchVectorStore("whales"), vector_store_id=copy_id)))
    assert [result["file_id"] for result in found["data"]] == [file_id]
    await routes.delete_vector_store(request(services, **here))


async def test_a_run_moves_the_expiry_of_its_stores_along(services: Services, clock: ManualClock) -> None:
    file_id = await insert_file(services, "Whales sing.")
    thread = await create_thread(services, Attachment(file_id, [FileSearchToolOnly()]))
    [store_id] = thread["tool_resources"]["file_search"]["vector_store_ids"]
    unused_id = await create_store(services)
    made = await get_store(services, store_id)
    await ingest(services, store_id)
    clock.advance(DAY / 2)
    async with at_work(Worker(services).run()):
        assert (await ended_run(services, await start_run(services, thread["id"], []))).run.status == "completed"
        assert (await get_store(services, store_id))["last_active_at"] == made["last_active_at"]  # that run searched nothing
        assert (await ended_run(services, await start_run(services, thread["id"], [FileSearchTool()]))).run.status == "completed"
    used = await get_store(services, store_id)
    assert (used["last_active_at"], used["expires_at"]) == (services.now(), services.now() + 7 * DAY)
    clock.advance(DAY / 2)
    assert [(await get_store(services, store))["status"] for store in (store_id, unused_id)] == ["completed", "expired"]


async def test_a_run_that_needs_an_expired_store_fails_and_does_not_revive_it(services: Services, clock: ManualClock) -> None:
    file_id = await insert_file(services, "Whales sing.")
    thread = await create_thread(services, Attachment(file_id, [FileSearchToolOnly()]))
    [store_id] = thread["tool_resources"]["file_search"]["vector_store_ids"]
    await ingest(services, store_id)
    clock.advance(7 * DAY)
    async with at_work(Worker(services).run()):
        run = (await ended_run(services, await start_run(services, thread["id"], [FileSearchTool()]))).run
    assert (run.status, run.last_error and run.last_error.code) == ("failed", "server_error")
    assert run.last_error is not None
    assert store_id in run.last_error.message
    assert (await get_store(services, store_id))["status"] == "expired"
    message = CreateMessage(role="user", content="More", attachments=[Attachment(file_id, [FileSearchToolOnly()])])
    with pytest.raises(InvalidRequest, match=f"Vector store {store_id} is expired"):
        await thread_routes.create_message(request(services, message, thread_id=thread["id"]))


async def test_the_sweep_frees_expired_stores_only(services: Services, clock: ManualClock) -> None:
    file_id = await insert_file(services, "Whales sing.")
    stores = [await create_store(services, [file_id]), await create_store(services, [file_id], expires_after=None)]
    await ingest(services, *stores)
    await sweep_vector_stores(services)
    assert [(await services.db.read(count()))[0][0] for count in _counts] == [2, 2, 2]
    clock.advance(DAY)
    for _ in range(2):
        await sweep_vector_stores(services)
        assert [(await services.db.read(count()))[0][0] for count in _counts] == [1, 1, 1]
    assert (await services.db.read(_embedder(store=stores[0])))[0][0] is None
    kept = msgspec.json.decode(await routes.search_vector_store(request(services, SearchVectorStore("whales"), vector_store_id=stores[1])))
    assert len(kept["data"]) == 1
    files = await routes.list_vector_store_files(request(services, query=routes.FilePage(), vector_store_id=stores[0]))
    assert [file["id"] for file in msgspec.json.decode(files)["data"]] == [file_id]
