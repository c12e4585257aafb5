"""Scenarios of files, uploads and vector stores without a run."""

import hashlib
from typing import Any

import openai

from tests.conformance.sdk_scenarios.client import Sdk, each, entered, plain, refusal, settled

WHALES = "Whales sing long songs under water. A blue whale is the largest animal that ever lived."
TOMATOES = "Tomatoes need sun, water and warm soil. Pick them when they are red."
POLL_MS = 10


async def uploaded(sdk: Sdk, text: str, name: str) -> Any:
    """A new file."""
    return await settled(sdk.client.files.create(file=(name, text.encode()), purpose="assistants"))


async def store_of(sdk: Sdk, *files: tuple[str, str]) -> tuple[Any, list[str]]:
    """A new vector store in which files, given by name and text, can be searched; and their ids."""
    stores = sdk.client.vector_stores
    store = await settled(stores.create())
    ids = []
    for name, text in files:
        attached = await settled(
            stores.files.upload_and_poll(vector_store_id=store.id, file=(name, text.encode()), poll_interval_ms=POLL_MS)
        )
        assert (attached.status, attached.last_error) == ("completed", None)
        ids.append(attached.id)
    return store, ids


async def file_lives_and_dies(sdk: Sdk) -> None:
    files = sdk.client.files
    created = await uploaded(sdk, WHALES, "Wale & große Fische.txt")
    assert (created.object, created.filename, created.purpose) == ("file", "Wale & große Fische.txt", "assistants")
    assert (created.bytes, created.expires_at) == (len(WHALES), None)
    assert plain(await settled(files.retrieve(created.id))) == plain(created)
    assert plain(await settled(files.wait_for_processing(created.id, poll_interval=0.01))) == plain(created)
    assert (await settled(files.content(created.id))).content == WHALES.encode()
    async with entered(files.with_streaming_response.content(created.id)) as response:
        assert response.headers["content-length"] == str(len(WHALES))
        assert await settled(response.read()) == WHALES.encode()

    deleted = await settled(files.delete(created.id))
    assert (deleted.id, deleted.object, deleted.deleted) == (created.id, "file", True)
    for call in (files.retrieve, files.content, files.delete):
        error = await refusal(lambda call=call: call(created.id), openai.NotFoundError)
        assert (error.body["message"], error.param) == (f"No such File object: {created.id}", "id")


async def files_are_listed_by_purpose_and_page(sdk: Sdk) -> None:
    files = sdk.client.files
    created = [(await settled(files.create(file=(f"{n}.jsonl", b"{}"), purpose="evals"))).id for n in range(5)]
    expiring = {"anchor": "created_at", "seconds": 3600}
    other = await settled(files.create(file=("other.jsonl", b"{}"), purpose="user_data", expires_after=expiring))
    assert other.expires_at == other.created_at + 3600
    assert [file.id async for file in each(files.list(purpose="evals", limit=2))] == created[::-1]
    assert [file.id async for file in each(files.list(purpose="evals", limit=2, order="asc"))] == created
    everything = [file.id async for file in each(files.list())]
    assert everything[:6] == [other.id, *created[::-1]]
    error = await refusal(lambda: files.create(file=b"x", purpose="cats"), openai.BadRequestError)
    assert (error.param, error.body["message"].split(" is ")[0]) == ("purpose", "'cats'")


async def upload_in_parts_becomes_a_file(sdk: Sdk) -> None:
    uploads = sdk.client.uploads
    content = bytes(range(256)) * 1000
    announced = {"filename": "big.bin", "purpose": "assistants", "bytes": len(content), "mime_type": "text/plain"}
    upload = await settled(uploads.create(**announced))
    assert (upload.object, upload.status, upload.bytes) == ("upload", "pending", len(content))
    halves = [content[:100_000], content[100_000:]]
    later, sooner = [await settled(uploads.parts.create(upload.id, data=half)) for half in reversed(halves)]
    assert (sooner.object, sooner.upload_id) == ("upload.part", upload.id)
    md5 = hashlib.md5(content).hexdigest()
    done = await settled(uploads.complete(upload.id, part_ids=[sooner.id, later.id], md5=md5))
    assert (done.status, done.file.filename, done.file.bytes) == ("completed", "big.bin", len(content))
    assert (await settled(sdk.client.files.content(done.file.id))).content == content

    chunked = await settled(
        uploads.upload_file_chunked(
            file=content, filename="big.bin", bytes=len(content), mime_type="text/plain", purpose="assistants", part_size=70_000
        )
    )
    assert (await settled(sdk.client.files.content(chunked.file.id))).content == content
    given_up = await settled(uploads.create(**announced))
    assert (await settled(uploads.cancel(given_up.id))).status == "cancelled"
    await refusal(lambda: uploads.parts.create(given_up.id, data=b"x"), openai.BadRequestError)


async def vector_store_lives_and_dies(sdk: Sdk) -> None:
    stores = sdk.client.vector_stores
    expiry = {"anchor": "last_active_at", "days": 7}
    created = await settled(stores.create(name="Animals", metadata={"team": "a"}, expires_after=expiry))
    assert (created.object, created.name, created.metadata, created.usage_bytes) == ("vector_store", "Animals", {"team": "a"}, 0)
    assert (created.status, created.file_counts.total) == ("completed", 0)
    assert created.expires_at == created.last_active_at + 7 * 86_400
    updated = await settled(stores.update(created.id, name="Fish", expires_after=None))
    assert (updated.name, updated.metadata, updated.expires_at) == ("Fish", {"team": "a"}, None)
    assert plain(await settled(stores.retrieve(created.id))) == plain(updated)
    others = [(await settled(stores.create())).id for _ in range(3)]
    newest_first = [store.id async for store in each(stores.list(limit=2))]
    assert newest_first[:4] == [*others[::-1], created.id]

    deleted = await settled(stores.delete(created.id))
    assert (deleted.id, deleted.object, deleted.deleted) == (created.id, "vector_store.deleted", True)
    error = await refusal(lambda: stores.retrieve(created.id), openai.NotFoundError)
    assert error.body["message"] == f"No vector store found with id '{created.id}'."


async def files_are_added_to_a_vector_store(sdk: Sdk) -> None:
    stores = sdk.client.vector_stores
    store, [whales] = await store_of(sdk, ("whales.md", WHALES))
    tomatoes = (await uploaded(sdk, TOMATOES, "tomatoes.txt")).id
    chunking = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 50}}
    added = await settled(
        stores.files.create_and_poll(
            tomatoes, vector_store_id=store.id, attributes={"kind": "plant"}, chunking_strategy=chunking, poll_interval_ms=POLL_MS
        )
    )
    assert (added.object, added.status, added.vector_store_id) == ("vector_store.file", "completed", store.id)
    assert (added.attributes, plain(added.chunking_strategy)) == ({"kind": "plant"}, chunking)
    assert added.usage_bytes > 0
    counts = (await settled(stores.retrieve(store.id))).file_counts
    assert plain(counts) == {"in_progress": 0, "completed": 2, "failed": 0, "cancelled": 0, "total": 2}

    assert [file.id async for file in each(stores.files.list(store.id, limit=1, filter="completed"))] == [tomatoes, whales]
    changed = await settled(stores.files.update(tomatoes, vector_store_id=store.id, attributes={"kind": "fruit", "tasty": True}))
    assert changed.attributes == {"kind": "fruit", "tasty": True}
    assert plain(await settled(stores.files.retrieve(tomatoes, vector_store_id=store.id))) == plain(changed)
    content = [part.text async for part in each(stores.files.content(tomatoes, vector_store_id=store.id))]
    assert content == [TOMATOES]

    deleted = await settled(stores.files.delete(tomatoes, vector_store_id=store.id))
    assert (deleted.id, deleted.object, deleted.deleted) == (tomatoes, "vector_store.file.deleted", True)
    await refusal(lambda: stores.files.retrieve(tomatoes, vector_store_id=store.id), openai.NotFoundError)
    assert (await settled(sdk.client.files.retrieve(tomatoes))).id == tomatoes
    strange = await uploaded(sdk, "a,b", "table.csv")
    error = await refusal(lambda: stores.files.create(store.id, file_id=strange.id), openai.BadRequestError)
    assert (error.code, error.param) == ("unsupported_file", "file_ids")


async def files_are_added_in_batches(sdk: Sdk) -> None:
    stores = sdk.client.vector_stores
    store = await settled(stores.create())
    contents = [(f"{n}.txt", f"This is text number {n}.".encode()) for n in range(4)]
    batch = await settled(stores.file_batches.upload_and_poll(store.id, files=contents, poll_interval_ms=POLL_MS))
    assert (batch.object, batch.status, batch.file_counts.completed) == ("vector_store.file_batch", "completed", 4)
    in_batch = [file.id async for file in each(stores.file_batches.list_files(batch.id, vector_store_id=store.id, limit=3))]
    in_store = [file.id async for file in each(stores.files.list(store.id))]
    assert in_batch == in_store
    assert len(in_batch) == 4

    broken = await uploaded(sdk, "a,b", "table.csv")
    more = await uploaded(sdk, WHALES, "whales.txt")
    batch = await settled(stores.file_batches.create_and_poll(store.id, file_ids=[broken.id, more.id], poll_interval_ms=POLL_MS))
    assert (batch.status, batch.file_counts.completed, batch.file_counts.failed) == ("completed", 1, 1)
    failed = await settled(stores.files.retrieve(broken.id, vector_store_id=store.id))
    assert (failed.status, failed.last_error.code) == ("failed", "unsupported_file")
    assert plain(await settled(stores.file_batches.retrieve(batch.id, vector_store_id=store.id))) == plain(batch)
    assert (await settled(stores.file_batches.cancel(batch.id, vector_store_id=store.id))).status == "completed"


async def vector_store_is_searched(sdk: Sdk) -> None:
    store, [whales, tomatoes] = await store_of(sdk, ("whales.md", WHALES), ("tomatoes.txt", TOMATOES))
    stores = sdk.client.vector_stores
    await settled(stores.files.update(tomatoes, vector_store_id=store.id, attributes={"kind": "plant", "year": 2024}))
    results = [result async for result in each(stores.search(store.id, query="the largest animal"))]
    assert (results[0].file_id, results[0].filename, results[0].content[0].text) == (whales, "whales.md", WHALES)
    assert [result.score for result in results] == sorted((result.score for result in results), reverse=True)
    assert all(0 <= result.score <= 1 for result in results)

    plants = {"type": "and", "filters": [{"type": "eq", "key": "kind", "value": "plant"}, {"type": "gte", "key": "year", "value": 2024}]}
    found = [result async for result in each(stores.search(store.id, query=["whales", "water"], filters=plants, max_num_results=5))]
    assert [(result.file_id, result.attributes) for result in found] == [(tomatoes, {"kind": "plant", "year": 2024})]
    await settled(sdk.client.files.delete(whales))
    left = [result.file_id async for result in each(stores.search(store.id, query="the largest animal"))]
    assert whales not in left


SCENARIOS = [
    file_lives_and_dies,
    files_are_listed_by_purpose_and_page,
    upload_in_parts_becomes_a_file,
    vector_store_lives_and_dies,
    files_are_added_to_a_vector_store,
    files_are_added_in_batches,
    vector_store_is_searched,
]
