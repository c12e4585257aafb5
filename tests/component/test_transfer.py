"""`mini-assistant migrate --from sqlite:… --to postgresql:…`: the same objects, files and answers, behind the same ids."""

import dataclasses
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from mini_assistant.app import DATABASE_FILE, running_server, transfer_database
from mini_assistant.errors import ConfigError, StoreUnavailable
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings
from tests.postgres_server import PostgresServer

LISTS = ["/assistants", "/threads", "/files", "/vector_stores"]


@pytest.fixture
def empty_url(postgres: PostgresServer) -> Any:
    """A database in which nothing is, no table either."""
    yield postgres.create_database("transfer_target")
    postgres.drop_database("transfer_target")


async def fill(address: str) -> tuple[str, str]:
    """Objects of every kind; gives a vector store and a thread."""
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=30) as sdk:
        file = await sdk.files.create(file=("zebra.txt", b"The zebra runs at night. " * 40), purpose="assistants")
        store = await sdk.vector_stores.create(name="animals", file_ids=[file.id])
        await sdk.vector_stores.files.poll(file.id, vector_store_id=store.id, poll_interval_ms=50)
        await sdk.vector_stores.files.update(file.id, vector_store_id=store.id, attributes={"kind": "animal", "legs": 4, "wild": True})
        assistant = await sdk.beta.assistants.create(
            model="gpt-4o", tools=[{"type": "file_search"}], tool_resources={"file_search": {"vector_store_ids": [store.id]}}
        )
        for number in range(3):
            thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": f"Hello {number} \u0000 ü"}])
            run = await sdk.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id, poll_interval_ms=20)
            assert run.status == "completed", run.last_error
        gone = await sdk.beta.threads.create()
        await sdk.beta.threads.delete(gone.id)
    return store.id, thread.id


async def seen(address: str, store_id: str) -> dict[str, Any]:
    """What a client can see: every list, with what is below it, a search, and the bytes of the files."""
    answer: dict[str, Any] = {}
    async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=30)) as session:

        async def get(path: str) -> Any:
            async with session.get(f"/v1{path}") as response:
                assert response.status == 200, path
                answer[path] = await response.json()
            return answer[path]

        for path in LISTS:
            await get(path)
        for thread in answer["/threads"]["data"]:
            await get(f"/threads/{thread['id']}/messages")
            for run in (await get(f"/threads/{thread['id']}/runs"))["data"]:
                await get(f"/threads/{thread['id']}/runs/{run['id']}/steps")
        await get(f"/vector_stores/{store_id}/files")
        for filters in (None, {"type": "eq", "key": "legs", "value": 4}, {"type": "eq", "key": "wild", "value": False}):
            body = {"query": "when does the zebra run", "filters": filters} if filters else {"query": "when does the zebra run"}
            async with session.post(f"/v1/vector_stores/{store_id}/search", json=body) as response:
                answer[f"search {filters}"] = await response.json()
        for file in answer["/files"]["data"]:
            async with session.get(f"/v1/files/{file['id']}/content") as response:
                answer[file["id"]] = await response.read()
    return answer


async def test_everything_is_there_behind_the_same_ids(settings: Settings, empty_url: str, endpoint: ScriptedEndpoint) -> None:
    async with running_server(settings) as address:
        store_id, thread_id = await fill(address)
        before = await seen(address, store_id)
    assert before["search None"]["data"]
    assert not before["search {'type': 'eq', 'key': 'wild', 'value': False}"]["data"]

    told: list[str] = []
    cluster = dataclasses.replace(settings, database_url=empty_url)
    await transfer_database(cluster, f"sqlite:{settings.data_dir}", told.append)
    assert "runs: 3 rows" in told

    async with running_server(cluster) as address:
        assert await seen(address, store_id) == before
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=30) as sdk:
            assistants = (await sdk.beta.assistants.list()).data
            await sdk.beta.threads.messages.create(thread_id, role="user", content="and on")
            run = await sdk.beta.threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistants[0].id, poll_interval_ms=20)
            assert run.status == "completed"
            newest = (await sdk.beta.threads.messages.list(thread_id)).data
            assert [message.role for message in newest[:3]] == ["assistant", "user", "assistant"], "new rows come behind the old ones"

    with pytest.raises(ConfigError, match="has rows already"):
        await transfer_database(cluster, f"sqlite:{settings.data_dir}", told.append)


async def test_a_source_that_is_in_use_or_not_there_is_refused(settings: Settings, empty_url: str) -> None:
    cluster = dataclasses.replace(settings, database_url=empty_url)
    with pytest.raises(ConfigError, match="--from must name an embedded database"):
        await transfer_database(cluster, "sqlite:nowhere", print)
    async with running_server(settings):
        with pytest.raises(StoreUnavailable, match="in use by another server"):
            await transfer_database(cluster, f"sqlite:{settings.data_dir}", print)


async def test_a_move_that_breaks_off_leaves_nothing_behind(settings: Settings, empty_url: str, postgres: PostgresServer) -> None:
    async with running_server(settings) as address:
        await fill(address)
    connection = sqlite3.connect(Path(settings.data_dir) / DATABASE_FILE)
    connection.execute("UPDATE files SET size_bytes = 'many'")  # no number: refused when most of the rows have been written
    connection.commit()
    connection.close()
    cluster = dataclasses.replace(settings, database_url=empty_url)
    with pytest.raises(StoreUnavailable, match="could not be moved"):
        await transfer_database(cluster, f"sqlite:{settings.data_dir}", print)
    assert postgres.execute("SELECT count(*) FROM threads", "transfer_target") == [(0,)]
