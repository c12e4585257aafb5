"""`mini-assistant migrate --from sqlite:… --to postgresql:…`: the same objects, files and answers, behind the same ids."""

import dataclasses
import sqlite3
from pathlib import Path
from typing import Any

import openai
import pytest

from mini_assistant.administration import transfer_database
from mini_assistant.app import DATABASE_FILE, running_server
from mini_assistant.errors import ConfigError, StoreUnavailable
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings
from tests.postgres_server import PostgresServer
from tests.server_contents import fill, seen


@pytest.fixture
def empty_url(postgres: PostgresServer) -> Any:
    """A database in which nothing is, no table either."""
    yield postgres.create_database("transfer_target")
    postgres.drop_database("transfer_target")


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
