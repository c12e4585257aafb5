"""Vector stores and the files in them: what is echoed, counted, refused, found and deleted."""

import asyncio
import re
from typing import Any

import aiohttp
import openai
import pytest

from mini_assistant.vector_stores.parsers.file_types import kind_of_or_none
from mini_assistant.vector_stores.schema import SUPPORTED_EXTENSIONS
from tests.conformance.raw_http import call, refused
from tests.conformance.server_settings import server_with
from tests.conformance.stored_files import TOMATOES, WHALES, found, ingested, listed, store_with, text_file, text_files
from tests.conformance.strictness import wire

STORES = "/v1/vector_stores"
NO_COUNTS = {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0}
STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 100}}
AUTO_AS_STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}
UNSUPPORTED = (
    "Files with extensions [.csv] are not supported for retrieval. "
    "See https://platform.openai.com/docs/assistants/tools/file-search/supported-files"
)


async def test_an_empty_body_makes_an_empty_store(http: aiohttp.ClientSession) -> None:
    made = await call(http, "POST", STORES, b"")
    assert re.fullmatch("vs_[0-9a-f]{32}", made.body["id"])
    assert {field: made.body[field] for field in made.body if field not in ("id", "created_at", "last_active_at")} == {
        "object": "vector_store",
        "name": None,
        "description": None,
        "metadata": {},
        "usage_bytes": 0,
        "file_counts": NO_COUNTS,
        "status": "completed",
        "expires_after": None,
        "expires_at": None,
    }
    assert made.body["last_active_at"] == made.body["created_at"]
    got = await call(http, "GET", f"{STORES}/{made.body['id']}")
    assert got.body == made.body
    assert got.headers["openai-poll-after-ms"].isdigit()


async def test_what_is_given_is_kept_and_changed(sdk: openai.AsyncOpenAI) -> None:
    given: dict[str, Any] = {"name": "N", "description": "D", "metadata": {"a": "b"}}
    store = await sdk.vector_stores.create(**given, expires_after={"anchor": "last_active_at", "days": 3})
    assert {field: wire(store)[field] for field in given} == given
    assert store.expires_at == (store.last_active_at or 0) + 3 * 86_400

    renamed = await sdk.vector_stores.update(store.id, name="M")
    assert wire(renamed) == {**wire(store), "name": "M"}
    later = await sdk.vector_stores.update(store.id, expires_after={"anchor": "last_active_at", "days": 365}, metadata={"c": "d"})
    assert later.expires_at == (store.last_active_at or 0) + 365 * 86_400
    assert later.metadata == {"c": "d"}
    cleared = await sdk.vector_stores.update(store.id, name=None, expires_after=None, metadata=None)
    assert (cleared.name, cleared.expires_after, cleared.expires_at, cleared.metadata) == (None, None, None, {})
    assert wire(await sdk.vector_stores.retrieve(store.id)) == wire(cleared)


async def test_changes_at_the_same_time_are_all_kept(sdk: openai.AsyncOpenAI) -> None:
    store = await sdk.vector_stores.create(metadata={"a": "b"})
    await asyncio.gather(
        sdk.vector_stores.update(store.id, name="N"),
        sdk.vector_stores.update(store.id, metadata={"c": "d"}),
        sdk.vector_stores.update(store.id, expires_after={"anchor": "last_active_at", "days": 2}),
    )
    changed = await sdk.vector_stores.retrieve(store.id)
    assert (changed.name, changed.metadata, changed.expires_after and changed.expires_after.days) == ("N", {"c": "d"}, 2)


async def test_stores_are_listed_in_pages_through_deletions(sdk: openai.AsyncOpenAI) -> None:
    made = [(await sdk.vector_stores.create(name=str(number))).id for number in range(5)]
    assert [store.id async for store in sdk.vector_stores.list(limit=2)] == made[::-1]
    assert [store.id async for store in sdk.vector_stores.list(limit=2, order="asc")] == made
    async for store in sdk.vector_stores.list(limit=2):
        assert (await sdk.vector_stores.delete(store.id)).deleted
    assert (await sdk.vector_stores.list()).data == []
    with pytest.raises(openai.NotFoundError):
        await sdk.vector_stores.list(after="vs_unknown")


async def test_files_given_at_creation_are_counted_and_ingested(sdk: openai.AsyncOpenAI) -> None:
    file_ids = await text_files(sdk, 5)
    table = await text_file(sdk, "a,b", "table.CSV")
    store = await sdk.vector_stores.create(file_ids=[*file_ids, table, file_ids[0]], chunking_strategy=STATIC)  # type: ignore[arg-type]
    assert (store.status, store.file_counts.total, store.file_counts.in_progress, store.file_counts.failed) == ("in_progress", 6, 5, 1)
    for file_id in file_ids:
        file = await ingested(sdk, store.id, file_id)
        assert (file.status, file.last_error) == ("completed", None)
        assert file.usage_bytes > 0
        assert wire(file)["chunking_strategy"] == STATIC
    failed = await sdk.vector_stores.files.retrieve(table, vector_store_id=store.id)
    assert (failed.status, wire(failed)["last_error"]) == (
        "failed",
        {"code": "unsupported_file", "message": "The file type is not supported."},
    )
    ended = await sdk.vector_stores.retrieve(store.id)
    assert (ended.status, wire(ended)["file_counts"]) == (
        "completed",
        {**NO_COUNTS, "completed": 5, "failed": 1, "total": 6},
    )
    files = [file async for file in sdk.vector_stores.files.list(store.id, limit=2, order="asc")]
    assert [file.id for file in files] == [*file_ids, table]
    assert ended.usage_bytes == sum(file.usage_bytes for file in files)
    assert [file.id async for file in sdk.vector_stores.files.list(store.id, filter="failed")] == [table]
    assert [file.id async for file in sdk.vector_stores.files.list(store.id, filter="completed", limit=2)] == file_ids[::-1]
    assert [file.id for file in (await sdk.vector_stores.files.list(store.id, before=file_ids[2], order="asc")).data] == file_ids[:2]


@pytest.mark.parametrize(
    ("size", "overlap", "param", "code"),
    [
        (99, 10, "chunking_strategy.static.max_chunk_size_tokens", "integer_below_min_value"),
        (4097, 10, "chunking_strategy.static.max_chunk_size_tokens", "integer_above_max_value"),
        (100, 51, "chunking_strategy.static", "invalid_value"),
        (100, -1, "chunking_strategy.static.chunk_overlap_tokens", "integer_below_min_value"),
    ],
)
async def test_chunk_sizes_have_bounds(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, size: int, overlap: int, param: str, code: str
) -> None:
    store, file_id = await sdk.vector_stores.create(), await text_file(sdk)
    static = {"max_chunk_size_tokens": size, "chunk_overlap_tokens": overlap}
    body = {"file_id": file_id, "chunking_strategy": {"type": "static", "static": static}}
    assert (await refused(http, "POST", f"{STORES}/{store.id}/files", body))[2:] == (param, code)
    assert await listed(sdk, store.id) == []


async def test_a_file_is_attached_once_with_its_attributes(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    store, file_id = await sdk.vector_stores.create(), await text_file(sdk)
    files, attributes = f"{STORES}/{store.id}/files", {"year": 2024, "share": 0.5, "open": True, "who": "A"}
    made = (await call(http, "POST", files, {"file_id": file_id, "attributes": attributes, "chunking_strategy": {"type": "auto"}})).body
    assert made == {
        "id": file_id,
        "object": "vector_store.file",
        "usage_bytes": 0,
        "created_at": made["created_at"],
        "vector_store_id": store.id,
        "status": "in_progress",
        "last_error": None,
        "chunking_strategy": AUTO_AS_STATIC,
        "attributes": attributes,
    }
    assert type(made["attributes"]["year"]) is int
    done = wire(await ingested(sdk, store.id, file_id))
    # Once more: nothing changes, and what is not given stays.
    assert (await call(http, "POST", files, {"file_id": file_id})).body["attributes"] == attributes
    assert wire(await sdk.vector_stores.files.retrieve(file_id, vector_store_id=store.id)) == done
    # Other attributes do not make it be read again.
    changed = (await call(http, "POST", files, {"file_id": file_id, "attributes": {"who": "B"}})).body
    assert changed == {**done, "attributes": {"who": "B"}}
    # Cut in another way, it is.
    again = (await call(http, "POST", files, {"file_id": file_id, "chunking_strategy": STATIC})).body
    assert (again["status"], again["attributes"], again["chunking_strategy"]) == ("in_progress", {"who": "B"}, STATIC)
    await ingested(sdk, store.id, file_id)
    assert wire((await sdk.vector_stores.retrieve(store.id)).file_counts) == {**NO_COUNTS, "completed": 1, "total": 1}
    assert await found(sdk, store.id, "whales", filters={"type": "eq", "key": "who", "value": "B"}) == [file_id]


async def test_one_file_attached_by_many_at_once_is_there_once(sdk: openai.AsyncOpenAI) -> None:
    store, file_id = await sdk.vector_stores.create(), await text_file(sdk)
    await asyncio.gather(*[sdk.vector_stores.files.create(store.id, file_id=file_id) for _ in range(10)])
    await ingested(sdk, store.id, file_id)
    assert wire((await sdk.vector_stores.retrieve(store.id)).file_counts) == {**NO_COUNTS, "completed": 1, "total": 1}
    assert await found(sdk, store.id, "whales") == [file_id]


async def test_attributes_are_replaced_and_found(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    store_id = await store_with(sdk, file_id := await text_file(sdk))
    updated = await sdk.vector_stores.files.update(file_id, vector_store_id=store_id, attributes={"a": 1, "b": "x"})
    assert wire(updated)["attributes"] == {"a": 1, "b": "x"}
    updated = await sdk.vector_stores.files.update(file_id, vector_store_id=store_id, attributes={"b": "y"})
    assert wire(updated)["attributes"] == {"b": "y"}
    assert await found(sdk, store_id, "whales", filters={"type": "eq", "key": "a", "value": 1}) == []
    [result] = (await sdk.vector_stores.search(store_id, query="whales", filters={"type": "eq", "key": "b", "value": "y"})).data
    assert result.attributes == {"b": "y"}
    cleared = await sdk.vector_stores.files.update(file_id, vector_store_id=store_id, attributes=None)
    assert wire(cleared)["attributes"] == {}
    path = f"{STORES}/{store_id}/files/{file_id}"
    assert (await refused(http, "POST", path, {}))[2:] == ("attributes", "missing_required_parameter")
    assert (await refused(http, "POST", path, {"attributes": {"a": None}}))[2:] == ("attributes.a", "invalid_type")
    assert (await refused(http, "POST", path, {"attributes": {"a": "x" * 513}}))[3] == "string_above_max_length"
    too_many = {str(number): number for number in range(17)}
    assert (await refused(http, "POST", path, {"attributes": too_many}))[3] == "object_above_max_properties"


async def test_attributes_changed_while_a_file_is_ingested_are_kept(sdk: openai.AsyncOpenAI) -> None:
    store, file_id = await sdk.vector_stores.create(), await text_file(sdk, "word " * 20_000)
    await sdk.vector_stores.files.create(store.id, file_id=file_id, attributes={"n": 0})
    ingest = asyncio.create_task(ingested(sdk, store.id, file_id))
    for number in range(1, 30):
        await sdk.vector_stores.files.update(file_id, vector_store_id=store.id, attributes={"n": number})
    assert (await ingest).status == "completed"
    file = await sdk.vector_stores.files.retrieve(file_id, vector_store_id=store.id)
    assert (file.status, file.attributes) == ("completed", {"n": 29})


async def test_a_type_that_cannot_be_searched_is_refused_alone(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    store, table = await sdk.vector_stores.create(), await text_file(sdk, "a,b", "table.csv")
    problem = await refused(http, "POST", f"{STORES}/{store.id}/files", {"file_id": table})
    assert problem == (400, UNSUPPORTED, "file_ids", "unsupported_file")
    assert await listed(sdk, store.id) == []


def test_the_types_that_are_taken_are_the_ones_that_are_parsed() -> None:
    assert {extension for extension in SUPPORTED_EXTENSIONS if kind_of_or_none(f"file{extension}") is None} == set()
    others = {".csv", ".xlsx", ".png", ".zip", ".exe", ".jpg", ".xml", ".rtf", ".odt"}
    assert {extension for extension in others if kind_of_or_none(f"file{extension}") is not None} == set()


async def test_a_detached_file_is_gone_from_the_store_only(sdk: openai.AsyncOpenAI) -> None:
    file_ids = await text_files(sdk, 4)
    store_id, other_id = await store_with(sdk, *file_ids), await store_with(sdk, file_ids[0])
    assert wire(await sdk.vector_stores.files.delete(file_ids[0], vector_store_id=store_id)) == {
        "id": file_ids[0],
        "object": "vector_store.file.deleted",
        "deleted": True,
    }
    assert await listed(sdk, store_id) == file_ids[:0:-1]
    assert set(await found(sdk, store_id, "text number 0")) == set(file_ids[1:])
    assert await listed(sdk, other_id) == [file_ids[0]]
    assert (await sdk.files.retrieve(file_ids[0])).id == file_ids[0]
    with pytest.raises(openai.NotFoundError, match=f"No file found with id '{file_ids[0]}' in vector store '{store_id}'."):
        await sdk.vector_stores.files.delete(file_ids[0], vector_store_id=store_id)
    # A client may detach while it pages, and attach again.
    async for file in sdk.vector_stores.files.list(store_id, limit=1):
        await sdk.vector_stores.files.delete(file.id, vector_store_id=store_id)
    assert wire((await sdk.vector_stores.retrieve(store_id)).file_counts) == NO_COUNTS
    assert (await sdk.vector_stores.retrieve(store_id)).usage_bytes == 0
    await sdk.vector_stores.files.create(store_id, file_id=file_ids[0])
    await sdk.vector_stores.files.delete(file_ids[0], vector_store_id=store_id)


async def test_a_deleted_file_is_gone_from_every_store(sdk: openai.AsyncOpenAI) -> None:
    kept, gone = await text_file(sdk), await text_file(sdk, TOMATOES)
    stores = [await store_with(sdk, kept, gone), await store_with(sdk, gone)]
    await sdk.files.delete(gone)
    assert [await listed(sdk, store_id) for store_id in stores] == [[kept], []]
    assert [await found(sdk, store_id, "tomatoes") for store_id in stores] == [[kept], []]
    counts = [(await sdk.vector_stores.retrieve(store_id)).file_counts.total for store_id in stores]
    assert counts == [1, 0]
    with pytest.raises(openai.NotFoundError, match=f"No such File object: {gone}"):
        await sdk.vector_stores.files.create(stores[0], file_id=gone)


async def test_a_deleted_store_leaves_its_files(sdk: openai.AsyncOpenAI) -> None:
    store_id = await store_with(sdk, file_id := await text_file(sdk))
    assert wire(await sdk.vector_stores.delete(store_id)) == {"id": store_id, "object": "vector_store.deleted", "deleted": True}
    assert (await sdk.files.retrieve(file_id)).id == file_id
    gone = f"No vector store found with id '{store_id}'."
    for attempt in (
        sdk.vector_stores.retrieve(store_id),
        sdk.vector_stores.update(store_id, name="N"),
        sdk.vector_stores.delete(store_id),
        sdk.vector_stores.search(store_id, query="whales"),
        sdk.vector_stores.files.list(store_id),
        sdk.vector_stores.files.retrieve(file_id, vector_store_id=store_id),
        sdk.vector_stores.files.create(store_id, file_id=file_id),
        sdk.vector_stores.files.update(file_id, vector_store_id=store_id, attributes={}),
        sdk.vector_stores.files.delete(file_id, vector_store_id=store_id),
        sdk.vector_stores.files.content(file_id, vector_store_id=store_id),
        sdk.vector_stores.file_batches.create(store_id, file_ids=[file_id]),
        sdk.vector_stores.file_batches.retrieve("vsfb_unknown", vector_store_id=store_id),
        sdk.vector_stores.file_batches.cancel("vsfb_unknown", vector_store_id=store_id),
        sdk.vector_stores.file_batches.list_files("vsfb_unknown", vector_store_id=store_id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await attempt
        assert gone in str(caught.value)


async def test_the_parsed_text_of_a_file(sdk: openai.AsyncOpenAI) -> None:
    text = " ".join(f"Sentence {number} says nothing." for number in range(2000))
    store = await sdk.vector_stores.create()
    await sdk.vector_stores.files.create(store.id, file_id=(file_id := await text_file(sdk, text)), chunking_strategy=STATIC)  # type: ignore[arg-type]
    await ingested(sdk, store.id, file_id)
    [page] = (await sdk.vector_stores.files.content(file_id, vector_store_id=store.id)).data
    assert (page.type, page.text) == ("text", text)


async def test_a_search_finds_the_best_first(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    whales, tomatoes = await text_file(sdk, WHALES, "whales.txt"), await text_file(sdk, TOMATOES)
    store_id = await store_with(sdk, whales, tomatoes)
    page = (await call(http, "POST", f"{STORES}/{store_id}/search", {"query": "What do blue whales do?"})).body
    assert page["search_query"] == ["What do blue whales do?"]
    assert [result["file_id"] for result in page["data"]] == [whales, tomatoes]
    best = page["data"][0]
    assert (best["filename"], best["content"], best["attributes"]) == ("whales.txt", [{"type": "text", "text": WHALES}], {})
    assert 1 >= best["score"] > page["data"][1]["score"] >= 0
    both = (await call(http, "POST", f"{STORES}/{store_id}/search", {"query": ["red tomatoes", "warm soil"]})).body
    assert (both["search_query"], both["data"][0]["file_id"]) == (["red tomatoes", "warm soil"], tomatoes)
    assert await found(sdk, store_id, "blue whale", max_num_results=1) == [whales]
    assert await found(sdk, store_id, "blue whale", ranking_options={"score_threshold": 1.0}) == []
    weights = {"embedding_weight": 0.0, "text_weight": 1.0}
    assert (await found(sdk, store_id, "soil", ranking_options={"ranker": "none", "hybrid_search": weights}))[0] == tomatoes
    rewritten = (await call(http, "POST", f"{STORES}/{store_id}/search", {"query": "What is a whale?", "rewrite_query": True})).body
    assert rewritten["search_query"] == ["whale"]
    assert rewritten["data"][0]["file_id"] == whales


async def test_a_search_gives_ten_results_unless_told(sdk: openai.AsyncOpenAI) -> None:
    store_id = await store_with(sdk, *await text_files(sdk, 12))
    assert len(await found(sdk, store_id, "text")) == 10
    assert len(await found(sdk, store_id, "text", max_num_results=50)) == 12


async def test_filters_choose_files(sdk: openai.AsyncOpenAI) -> None:
    file_ids = await text_files(sdk, 4)
    store_id = await store_with(sdk, *file_ids)
    for number, file_id in enumerate(file_ids[:3]):
        attributes: dict[str, str | float | bool] = {"n": number, "kind": "even" if number % 2 == 0 else "odd"}
        await sdk.vector_stores.files.update(file_id, vector_store_id=store_id, attributes=attributes)

    async def chosen(filters: Any) -> set[int]:
        return {file_ids.index(file_id) for file_id in await found(sdk, store_id, "text", filters=filters)}

    one, even = {"type": "eq", "key": "n", "value": 1}, {"type": "eq", "key": "kind", "value": "even"}
    assert await chosen({"type": "or", "filters": [one, even]}) == {0, 1, 2}
    assert await chosen({"type": "and", "filters": [{"type": "gte", "key": "n", "value": 1}, even]}) == {2}
    assert await chosen({"type": "in", "key": "n", "value": [0, 2]}) == {0, 2}
    assert await chosen({"type": "nin", "key": "n", "value": [0, 2]}) == {1}
    assert await chosen({"type": "ne", "key": "kind", "value": "even"}) == {1}
    nested = {"type": "and", "filters": [{"type": "or", "filters": [one, {"type": "lt", "key": "n", "value": 1}]}, even]}
    assert await chosen(nested) == {0}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "query", "missing_required_parameter"),
        ({"query": ""}, "query", "string_below_min_length"),
        ({"query": []}, "query", "empty_array"),
        ({"query": "a", "max_num_results": 0}, "max_num_results", "integer_below_min_value"),
        ({"query": "a", "max_num_results": 51}, "max_num_results", "integer_above_max_value"),
        ({"query": "a", "filters": {"type": "like", "key": "a", "value": "b"}}, "filters.type", "invalid_value"),
        ({"query": "a", "filters": {"type": "and", "filters": []}}, "filters.filters", "empty_array"),
        ({"query": "a", "ranking_options": {"ranker": "best"}}, "ranking_options.ranker", "invalid_value"),
        ({"query": "a", "ranking_options": {"score_threshold": 1.5}}, "ranking_options.score_threshold", "decimal_above_max_value"),
        (
            {"query": "a", "ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}},
            "ranking_options.hybrid_search",
            "invalid_value",
        ),
    ],
    ids=str,
)
async def test_searches_that_are_refused(http: aiohttp.ClientSession, body: dict[str, Any], param: str, code: str) -> None:
    store = (await call(http, "POST", STORES, b"")).body
    assert (await refused(http, "POST", f"{STORES}/{store['id']}/search", body))[2:] == (param, code)


async def test_filters_have_bounds(http: aiohttp.ClientSession) -> None:
    store = (await call(http, "POST", STORES, b"")).body
    leaf: dict[str, Any] = {"type": "eq", "key": "a", "value": 1}
    deep = leaf
    for _ in range(16):
        deep = {"type": "and", "filters": [deep]}
    wide = {"type": "or", "filters": [{"type": "in", "key": "a", "value": list(range(500))}] * 3}
    for filters in (deep, wide):
        status, message, param, code = await refused(http, "POST", f"{STORES}/{store['id']}/search", {"query": "a", "filters": filters})
        assert (status, param, code) == (400, "filters", "invalid_value"), message
    fits = {"type": "or", "filters": [{"type": "in", "key": "a", "value": list(range(499))}, leaf, deep["filters"][0]["filters"][0]]}
    assert (await call(http, "POST", f"{STORES}/{store['id']}/search", {"query": "a", "filters": fits})).body["data"] == []


@server_with(vector_store_file_ids_max=2)
async def test_a_store_is_made_of_so_many_files(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    file_ids = await text_files(sdk, 3)
    assert (await refused(http, "POST", STORES, {"file_ids": file_ids}))[2:] == ("file_ids", "array_above_max_length")
    assert (await refused(http, "POST", STORES, {"file_ids": ["file-unknown"]}))[:3] == (404, "No such File object: file-unknown", "id")
    assert (await sdk.vector_stores.list()).data == []


async def test_ids_of_the_wrong_shape_are_refused(http: aiohttp.ClientSession) -> None:
    message = "Invalid 'vector_store_id': 'thread_a'. Expected an ID that begins with 'vs'."
    assert await refused(http, "GET", f"{STORES}/thread_a") == (400, message, "vector_store_id", "invalid_value")
    assert (await refused(http, "GET", f"{STORES}/vs_a/file_batches/vs_a"))[2] == "batch_id"


async def test_a_repeat_with_the_same_key_makes_nothing_new(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    file_id = await text_file(sdk)
    headers = {"Idempotency-Key": "one"}
    made = [(await call(http, "POST", STORES, {"file_ids": [file_id]}, headers=headers)).body for _ in range(2)]
    assert made[0] == made[1]
    assert len((await sdk.vector_stores.list()).data) == 1
    path, body, headers = f"{STORES}/{made[0]['id']}/file_batches", {"file_ids": [file_id]}, {"Idempotency-Key": "two"}
    assert (await call(http, "POST", path, body, headers=headers)).body == (await call(http, "POST", path, body, headers=headers)).body
