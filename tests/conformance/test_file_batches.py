"""File batches: what they count, how they are cancelled, and what the SDK's helpers make of them."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator

import aiohttp
import openai
import pytest

from mini_assistant.settings import Settings
from tests.conformance.raw_http import call, refused
from tests.conformance.server_settings import server_with
from tests.conformance.stored_files import POLL_MS, found, ingested, listed, silent_endpoint, store_with, text_file, text_files
from tests.conformance.strictness import wire

NO_COUNTS = {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0}
STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 100}}


async def test_a_batch_ends_completed_with_its_failures_counted(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    file_ids, table = await text_files(sdk, 3), await text_file(sdk, "a,b", "table.csv")
    store = await sdk.vector_stores.create()
    made = (await call(http, "POST", f"/v1/vector_stores/{store.id}/file_batches", {"file_ids": [*file_ids, table, table]})).body
    assert re.fullmatch("vsfb_[0-9a-f]{32}", made["id"])
    assert made == {
        "id": made["id"],
        "object": "vector_store.file_batch",
        "created_at": made["created_at"],
        "vector_store_id": store.id,
        "status": "in_progress",
        "file_counts": {**NO_COUNTS, "in_progress": 3, "failed": 1, "total": 4},
    }
    ended = await sdk.vector_stores.file_batches.poll(made["id"], vector_store_id=store.id, poll_interval_ms=POLL_MS)
    assert (ended.status, wire(ended)["file_counts"]) == ("completed", {**NO_COUNTS, "completed": 3, "failed": 1, "total": 4})
    batches = sdk.vector_stores.file_batches
    files = [file.id async for file in batches.list_files(made["id"], vector_store_id=store.id, limit=1, order="asc")]
    assert files == [*file_ids, table]
    assert [file.id async for file in batches.list_files(made["id"], vector_store_id=store.id, filter="failed")] == [table]
    got = await call(http, "GET", f"/v1/vector_stores/{store.id}/file_batches/{made['id']}")
    assert got.headers["openai-poll-after-ms"].isdigit()
    # Cancelling what is over changes nothing.
    assert wire(await batches.cancel(made["id"], vector_store_id=store.id)) == wire(ended)


async def test_create_and_poll_comes_back_with_everything_searchable(sdk: openai.AsyncOpenAI) -> None:
    file_ids, store = await text_files(sdk, 3), await sdk.vector_stores.create()
    batch = await sdk.vector_stores.file_batches.create_and_poll(store.id, file_ids=file_ids, poll_interval_ms=POLL_MS)
    assert (batch.status, batch.file_counts.completed) == ("completed", 3)
    assert set(await found(sdk, store.id, "text")) == set(file_ids)
    uploaded = await sdk.vector_stores.file_batches.upload_and_poll(
        store.id, files=[("a.txt", b"More text."), ("b.txt", b"Still more text.")], poll_interval_ms=POLL_MS
    )
    assert uploaded.file_counts.completed == 2
    assert (await sdk.vector_stores.retrieve(store.id)).file_counts.completed == 5


async def test_attributes_and_chunking_for_all_or_for_each(sdk: openai.AsyncOpenAI) -> None:
    file_ids, store = await text_files(sdk, 4), await sdk.vector_stores.create()
    batches = sdk.vector_stores.file_batches
    await batches.create(store.id, file_ids=file_ids[:2], attributes={"n": 1}, chunking_strategy=STATIC)  # type: ignore[arg-type]
    await batches.create(
        store.id,
        files=[{"file_id": file_ids[2], "attributes": {"n": 2}}, {"file_id": file_ids[3], "chunking_strategy": STATIC}],  # type: ignore[typeddict-item]
        attributes={"n": 9},
    )
    files = [wire(await sdk.vector_stores.files.retrieve(file_id, vector_store_id=store.id)) for file_id in file_ids]
    assert [file["attributes"] for file in files] == [{"n": 1}, {"n": 1}, {"n": 2}, {}]
    assert [file["chunking_strategy"]["static"]["max_chunk_size_tokens"] for file in files] == [200, 200, 800, 200]


async def test_a_file_that_is_there_already_is_counted_as_it_is(sdk: openai.AsyncOpenAI) -> None:
    file_ids = await text_files(sdk, 2)
    store_id = await store_with(sdk, file_ids[0])
    batch = await sdk.vector_stores.file_batches.create(store_id, file_ids=file_ids)
    assert (batch.file_counts.completed, batch.file_counts.in_progress) == (1, 1)
    await ingested(sdk, store_id, file_ids[1])
    assert (await sdk.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store_id)).file_counts.completed == 2
    assert (await sdk.vector_stores.retrieve(store_id)).file_counts.total == 2
    in_batch = sdk.vector_stores.file_batches.list_files(batch.id, vector_store_id=store_id)
    assert {file.id async for file in in_batch} == set(file_ids)


async def test_batches_at_the_same_time_lose_no_file_and_no_count(sdk: openai.AsyncOpenAI) -> None:
    file_ids, store = await text_files(sdk, 6), await sdk.vector_stores.create()
    several = [file_ids[:4], file_ids[2:], file_ids, file_ids[::-1]]
    batches = sdk.vector_stores.file_batches
    made = await asyncio.gather(*[batches.create(store.id, file_ids=some) for some in several])
    ended = [await batches.poll(batch.id, vector_store_id=store.id, poll_interval_ms=POLL_MS) for batch in made]
    assert [batch.file_counts.total for batch in ended] == [4, 4, 6, 6]
    for file_id in file_ids:
        await ingested(sdk, store.id, file_id)
    assert wire((await sdk.vector_stores.retrieve(store.id)).file_counts) == {**NO_COUNTS, "completed": 6, "total": 6}


async def test_requests_that_are_refused(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    store, file_id = await sdk.vector_stores.create(), await text_file(sdk)
    path = f"/v1/vector_stores/{store.id}/file_batches"
    both = {"file_ids": [file_id], "files": [{"file_id": file_id}]}
    for body, param, code in (
        ({}, "file_ids", "missing_required_parameter"),
        ({"file_ids": []}, "file_ids", "empty_array"),
        (both, "files", "invalid_value"),
        ({"files": [{"file_id": file_id, "name": "a"}]}, "files[0].name", "unknown_parameter"),
    ):
        assert (await refused(http, "POST", path, body))[2:] == (param, code)
    unknown = await refused(http, "POST", path, {"file_ids": [file_id, "file-unknown"]})
    assert unknown[:3] == (404, "No such File object: file-unknown", "id")
    assert await listed(sdk, store.id) == []
    assert (await refused(http, "GET", f"{path}/vsfb_a"))[:2] == (404, "No file batch found with id 'vsfb_a'.")
    assert (await refused(http, "POST", f"{path}/vsfb_a/cancel"))[0] == 404
    assert (await refused(http, "GET", f"{path}/vsfb_a/files"))[0] == 404


@server_with(file_batch_files_max=2)
async def test_a_batch_has_so_many_files(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    store, file_ids = await sdk.vector_stores.create(), await text_files(sdk, 3)
    path = f"/v1/vector_stores/{store.id}/file_batches"
    assert (await refused(http, "POST", path, {"file_ids": file_ids}))[2:] == ("file_ids", "array_above_max_length")
    assert (await refused(http, "POST", path, {"files": [{"file_id": name} for name in file_ids]}))[2] == "files"


class TestWhileFilesAreIngested:
    """Batches whose files never come to their end by themselves."""

    @pytest.fixture
    async def settings(self, settings: Settings) -> AsyncIterator[Settings]:
        async with silent_endpoint() as address:
            yield dataclasses.replace(settings, embedder="openai", embeddings_base_url=address, embeddings_model="silent")

    async def test_cancelling_brings_every_file_to_its_end(self, sdk: openai.AsyncOpenAI) -> None:
        store, file_ids = await sdk.vector_stores.create(), await text_files(sdk, 5)
        batches = sdk.vector_stores.file_batches
        attributes: dict[str, str | float | bool] = {"status": "in_progress", "said": '"status":"in_progress"'}
        batch = await batches.create(store.id, file_ids=file_ids, attributes=attributes)
        polling = asyncio.create_task(batches.poll(batch.id, vector_store_id=store.id, poll_interval_ms=POLL_MS))
        cancelled = await batches.cancel(batch.id, vector_store_id=store.id)
        assert (cancelled.status, wire(cancelled)["file_counts"]) == ("cancelled", {**NO_COUNTS, "cancelled": 5, "total": 5})
        assert wire(await polling) == wire(cancelled)
        kept = await sdk.vector_stores.retrieve(store.id)
        assert (kept.status, wire(kept)["file_counts"]) == ("completed", {**NO_COUNTS, "cancelled": 5, "total": 5})
        files = [file async for file in sdk.vector_stores.files.list(store.id, filter="cancelled")]
        assert len(files) == 5
        for file in files:
            assert (file.status, file.last_error, file.attributes) == ("cancelled", None, attributes)
        # Attached again, a cancelled file is ingested.
        again = await sdk.vector_stores.files.create(store.id, file_id=file_ids[0])
        assert (again.status, again.attributes) == ("in_progress", attributes)
        assert wire((await sdk.vector_stores.retrieve(store.id)).file_counts) == {**NO_COUNTS, "in_progress": 1, "cancelled": 4, "total": 5}

    async def test_who_waits_for_a_batch_is_told_when_its_files_leave(self, sdk: openai.AsyncOpenAI) -> None:
        store, file_ids = await sdk.vector_stores.create(), await text_files(sdk, 3)
        batches = sdk.vector_stores.file_batches
        first = await batches.create(store.id, file_ids=file_ids)
        second = await batches.create(store.id, file_ids=file_ids[:1])  # takes a file that is in progress over
        await sdk.vector_stores.files.delete(file_ids[1], vector_store_id=store.id)
        await sdk.files.delete(file_ids[2])
        ended = await batches.retrieve(first.id, vector_store_id=store.id)
        assert wire(ended)["file_counts"] == {**NO_COUNTS, "cancelled": 3, "total": 3}
        assert wire(await batches.retrieve(second.id, vector_store_id=store.id))["file_counts"] == {
            **NO_COUNTS,
            "in_progress": 1,
            "total": 1,
        }
        assert wire((await sdk.vector_stores.retrieve(store.id)).file_counts) == {**NO_COUNTS, "in_progress": 1, "total": 1}
        assert (await sdk.vector_stores.retrieve(store.id)).status == "in_progress"
