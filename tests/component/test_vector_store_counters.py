"""Counters of vector stores and batches against their rows, whoever does what at the same time; and stores of other projects."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from mini_assistant.app import open_services
from mini_assistant.db.base import GuardFailed, Query
from mini_assistant.db.tables import vector_store_file_attributes, vector_store_file_batches, vector_store_files, vector_stores
from mini_assistant.errors import NotFound
from mini_assistant.files.commands import delete_file
from mini_assistant.http.routing import Request
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.pagination import Page
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from mini_assistant.vector_stores import routes
from mini_assistant.vector_stores.schema import (
    CreateFileBatch,
    CreateVectorStore,
    CreateVectorStoreFile,
    ModifyVectorStore,
    ModifyVectorStoreFile,
    SearchVectorStore,
    VectorStoreFile,
)
from mini_assistant.vector_stores.store import end_file, get_file_record_or_none
from tests.vector_store_rows import PROJECT, insert_file

STATUSES = ("in_progress", "completed", "failed", "cancelled")

_f = vector_store_files.c
_a = vector_store_file_attributes.c
_files = Query(sa.select(_f.seq, _f.vector_store_id, _f.batch_id, _f.status, _f.usage_bytes, _f.body))
_stores = Query(sa.select(vector_stores.c.id, vector_stores.c.usage_bytes, *[vector_stores.c[f"files_{status}"] for status in STATUSES]))
_batches = Query(sa.select(vector_store_file_batches.c.id, vector_store_file_batches.c.files_in_progress))
_attributes = Query(sa.select(_a.file_seq, _a.key, _a.number_value))


@pytest.fixture
async def services(tmp_path: Path, endpoint: ScriptedEndpoint) -> AsyncIterator[Services]:
    """The parts of a server in which nobody ingests anything."""
    async with open_services(Settings(data_dir=tmp_path, openai_base_url=endpoint.base_url)) as opened:
        yield opened


def request(services: Services, body: Any = None, query: Any = None, project_id: str = PROJECT, **path: str) -> Request[Any, Any]:
    return Request(services, project_id, path, body, query)


class Clients:
    """Clients and ingest workers that get in each other's way on a few files in two stores."""

    def __init__(self, services: Services, seed: int) -> None:
        self._services = services
        self._random = random.Random(seed)
        self._store_ids: list[str] = []
        self._file_ids: list[str] = []
        self._batch_ids: list[tuple[str, str]] = []

    async def begin(self) -> None:
        for number in range(12):
            name = "table.csv" if number % 4 == 3 else "notes.txt"
            self._file_ids.append(await insert_file(self._services, f"text {number}", name))
        for _ in range(2):
            made = await routes.create_vector_store(request(self._services, CreateVectorStore(file_ids=self._file_ids[:3])))
            self._store_ids.append(msgspec.json.decode(made)["id"])

    async def act(self) -> None:
        """Do something; that the file or batch is gone, or was ended by somebody else, is part of it."""
        actions: list[Callable[[], Awaitable[object]]] = [self._attach, self._attach_many, self._attach_many, self._detach, self._change]
        actions += [self._cancel, self._delete_file, *[self._end] * 4]
        with contextlib.suppress(NotFound, GuardFailed):
            await self._random.choice(actions)()

    def _some(self) -> tuple[str, str]:
        return self._random.choice(self._store_ids), self._random.choice(self._file_ids)

    async def _attach(self) -> None:
        store_id, _ = self._some()
        body = CreateVectorStoreFile(self._random.choice(self._file_ids[:3]), {"n": self._random.randrange(3)})
        await routes.create_vector_store_file(request(self._services, body, vector_store_id=store_id))

    async def _attach_many(self) -> None:
        store_id, _ = self._some()
        body = CreateFileBatch(file_ids=self._random.sample(self._file_ids, 4), attributes={"n": self._random.randrange(3)})
        made = await routes.create_file_batch(request(self._services, body, vector_store_id=store_id))
        self._batch_ids.append((store_id, msgspec.json.decode(made)["id"]))

    async def _detach(self) -> None:
        store_id, file_id = self._some()
        await routes.delete_vector_store_file(request(self._services, vector_store_id=store_id, file_id=file_id))

    async def _change(self) -> None:
        store_id, file_id = self._some()
        body = ModifyVectorStoreFile({"n": self._random.randrange(3)})
        await routes.modify_vector_store_file(request(self._services, body, vector_store_id=store_id, file_id=file_id))

    async def _cancel(self) -> None:
        if self._batch_ids:
            store_id, batch_id = self._random.choice(self._batch_ids)
            await routes.cancel_file_batch(request(self._services, vector_store_id=store_id, batch_id=batch_id))

    async def _delete_file(self) -> None:
        if len(self._file_ids) > 8:
            await delete_file(self._services, PROJECT, self._file_ids.pop())

    async def _end(self) -> None:
        """What an ingest worker does, without a claim."""
        waiting = [row[0] for row in await self._services.db.read(_files()) if row[3] == "in_progress"]
        record = await get_file_record_or_none(self._services, self._random.choice(waiting)) if waiting else None
        if record is not None and record.file.status == "in_progress":
            await asyncio.sleep(0)
            is_good = self._random.random() < 0.7
            ending = end_file(record, "completed" if is_good else "failed", now=0, usage_bytes=100 if is_good else 0)
            await self._services.db.write(ending)


@pytest.mark.parametrize("seed", range(8))
async def test_counters_are_what_the_rows_say(services: Services, seed: int) -> None:
    clients = Clients(services, seed)
    await clients.begin()
    for _ in range(25):
        await asyncio.gather(*[clients.act() for _ in range(10)])
        await check_counters(services)


async def check_counters(services: Services) -> None:
    rows = await services.db.read(_files())
    by_store = Counter((row[1], row[3]) for row in rows)
    for store_id, usage_bytes, *counts in await services.db.read(_stores()):
        assert counts == [by_store[store_id, status] for status in STATUSES]
        assert usage_bytes == sum(row[4] for row in rows if row[1] == store_id)
    waiting = Counter(row[2] for row in rows if row[3] == "in_progress")
    for batch_id, in_progress in await services.db.read(_batches()):
        assert in_progress == waiting[batch_id]
    stored = {(seq, key): number for seq, key, number in await services.db.read(_attributes())}
    shown: dict[tuple[int, str], Any] = {}
    for seq, _, _, status, usage_bytes, body in rows:
        file = msgspec.json.decode(body, type=VectorStoreFile)
        assert (file.status, file.usage_bytes) == (status, usage_bytes)
        shown |= {(seq, key): value for key, value in file.attributes.items()}
    assert stored == shown


async def test_the_stores_of_other_projects_are_not_there(services: Services) -> None:
    file_id = await insert_file(services, "Whales sing.")
    made = await routes.create_vector_store(request(services, CreateVectorStore()))
    store_id = msgspec.json.decode(made)["id"]
    batch = await routes.create_file_batch(request(services, CreateFileBatch(file_ids=[file_id]), vector_store_id=store_id))
    before = await rows_of_all(services)
    other: dict[str, Any] = {
        "project_id": "other",
        "vector_store_id": store_id,
        "file_id": file_id,
        "batch_id": msgspec.json.decode(batch)["id"],
    }
    refused = [
        routes.get_vector_store(request(services, **other)),
        routes.modify_vector_store(request(services, ModifyVectorStore(name="N"), **other)),
        routes.search_vector_store(request(services, SearchVectorStore("whales"), **other)),
        routes.create_vector_store_file(request(services, CreateVectorStoreFile(file_id), **other)),
        routes.list_vector_store_files(request(services, query=routes.FilePage(), **other)),
        routes.get_vector_store_file(request(services, **other)),
        routes.modify_vector_store_file(request(services, ModifyVectorStoreFile({}), **other)),
        routes.get_vector_store_file_content(request(services, **other)),
        routes.delete_vector_store_file(request(services, **other)),
        routes.create_file_batch(request(services, CreateFileBatch(file_ids=[file_id]), **other)),
        routes.get_file_batch(request(services, **other)),
        routes.cancel_file_batch(request(services, **other)),
        routes.list_files_in_batch(request(services, query=routes.FilePage(), **other)),
        routes.delete_vector_store(request(services, **other)),
    ]
    for attempt in refused:
        with pytest.raises(NotFound, match=f"No vector store found with id '{store_id}'"):
            await attempt
    listed = msgspec.json.decode(await routes.list_vector_stores(request(services, query=Page(), project_id="other")))
    assert listed["data"] == []
    with pytest.raises(NotFound, match=f"No such File object: {file_id}"):
        await routes.create_vector_store(request(services, CreateVectorStore(file_ids=[file_id]), project_id="other"))
    assert await rows_of_all(services) == before


async def rows_of_all(services: Services) -> list[list[Any]]:
    return [await services.db.read(query()) for query in (_files, _stores, _batches)]
