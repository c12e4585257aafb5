"""Files: upload, list, download, delete, as both SDKs and other clients do it (behaviour checks 76 to 78)."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.conformance.raw_http import call, refused
from tests.conformance.server_settings import server_with

ALLOWED = "['fine-tune', 'assistants', 'batch', 'user_data', 'vision', 'evals']"
DAY = 86_400


def form(*fields: tuple[str, str], content: bytes = b"hello", filename: str = "a.txt") -> aiohttp.FormData:
    data = aiohttp.FormData(quote_fields=False)
    for name, value in fields:
        data.add_field(name, value)
    data.add_field("file", content, filename=filename)
    return data


async def content_of(sdk: openai.AsyncOpenAI, file_id: str, **headers: str) -> bytes:
    return (await sdk.files.content(file_id, extra_headers=headers)).content


async def test_a_file_comes_back_as_it_was(sdk: openai.AsyncOpenAI) -> None:
    content = bytes(range(256)) * 5000
    file = await sdk.files.create(file=("report.pdf", content), purpose="assistants")

    assert len(file.id) == len("file-") + 22
    assert file.id.startswith("file-")
    assert (file.filename, file.bytes, file.purpose, file.status) == ("report.pdf", len(content), "assistants", "processed")
    assert (file.expires_at, file.status_details) == (None, None)
    assert await sdk.files.retrieve(file.id) == file
    assert await content_of(sdk, file.id) == content


async def test_fields_are_in_the_order_of_the_wire(http: aiohttp.ClientSession) -> None:
    reply = await call(http, "POST", "/v1/files", data=form(("purpose", "assistants")))
    names = ["object", "id", "purpose", "filename", "bytes", "created_at", "expires_at", "status", "status_details"]
    assert list(reply.body) == names
    assert list((await call(http, "GET", f"/files/{reply.body['id']}")).body) == names


async def test_the_purpose_may_follow_the_file(http: aiohttp.ClientSession) -> None:
    data = aiohttp.FormData()
    data.add_field("file", b"hello", filename="a.txt")
    data.add_field("purpose", "vision")
    assert (await call(http, "POST", "/v1/files", data=data)).body["purpose"] == "vision"


@pytest.mark.parametrize("name", ["你好.txt", 'a "quoted" name.md', "100%.txt", "semi;colon=.json", "ünï.py"])
async def test_names_round_trip(name: str, sdk: openai.AsyncOpenAI, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"hello")
    assert (await sdk.files.create(file=path, purpose="user_data")).filename == name


async def test_the_synchronous_client_does_the_same(server: str) -> None:
    def use() -> None:
        with openai.OpenAI(base_url=f"{server}/v1", api_key="test-key", max_retries=0, timeout=20) as client:
            file = client.files.create(file=("a.txt", b"hello"), purpose="assistants")
            assert client.files.wait_for_processing(file.id) == file
            assert client.files.content(file.id).read() == b"hello"
            assert [item.id for item in client.files.list()] == [file.id]
            assert client.files.delete(file.id).deleted

    await asyncio.to_thread(use)


async def test_lists_are_by_purpose_and_in_pages(sdk: openai.AsyncOpenAI) -> None:
    purposes: list[Any] = ["assistants", "vision", "assistants", "assistants"]
    files = [await sdk.files.create(file=b"x", purpose=purpose) for purpose in purposes]
    ids = [file.id for file in files]

    assert [file.id async for file in sdk.files.list()] == ids[::-1]
    assert [file.id async for file in sdk.files.list(order="asc", limit=1)] == ids
    assert [file.id async for file in sdk.files.list(purpose="assistants", order="asc", limit=2)] == [ids[0], ids[2], ids[3]]
    assert [file.id async for file in sdk.files.list(after=ids[2])] == [ids[1], ids[0]]
    assert [file.id async for file in sdk.files.list(purpose="evals")] == []
    await sdk.files.delete(ids[2])
    assert [file.id async for file in sdk.files.list(after=ids[2])] == [ids[1], ids[0]]


async def test_limits_of_lists(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assert (await sdk.files.list(limit=10_000)).data == []
    for limit in (0, 10_001):
        assert (await refused(http, "GET", f"/v1/files?limit={limit}"))[2] == "limit"
    assert (await refused(http, "GET", "/v1/files?after=file-x"))[0] == 404


async def test_a_deleted_file_is_gone(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    file = await sdk.files.create(file=b"x", purpose="assistants")

    deleted = (await call(http, "DELETE", f"/v1/files/{file.id}")).body

    assert deleted == {"id": file.id, "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        answer = await refused(http, method, f"/v1/files/{file.id}{path}")
        assert answer == (404, f"No such File object: {file.id}", "id", None)
    assert (await refused(http, "GET", "/v1/files/anything"))[1] == "No such File object: anything"


async def test_a_deleted_file_leaves_every_store_and_list(sdk: openai.AsyncOpenAI) -> None:
    gone, kept = [await sdk.files.create(file=("a.txt", b"The tower is 324 m high."), purpose="assistants") for _ in range(2)]
    both = [gone.id, kept.id]
    stores = [await sdk.vector_stores.create(file_ids=both) for _ in range(2)]
    resources: Any = {"code_interpreter": {"file_ids": both}}
    assistant = await sdk.beta.assistants.create(model="m", tools=[{"type": "code_interpreter"}], tool_resources=resources)
    thread = await sdk.beta.threads.create(tool_resources=resources)

    await sdk.files.delete(gone.id)

    for store in stores:
        assert [file.id async for file in sdk.vector_stores.files.list(store.id)] == [kept.id]
        assert (await sdk.vector_stores.retrieve(store.id)).file_counts.total == 1
    for changed in (await sdk.beta.assistants.retrieve(assistant.id), await sdk.beta.threads.retrieve(thread.id)):
        assert changed.tool_resources is not None
        assert changed.tool_resources.code_interpreter is not None
        assert changed.tool_resources.code_interpreter.file_ids == [kept.id]


async def test_errors_say_it_twice(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/files/file-x") as response:
        body = json.loads(await response.text())
    assert list(body) == ["error", "detail"]
    assert body["detail"] == {"message": "No such File object: file-x", "code": None}
    async with http.get("/v1/threads/thread_x") as response:
        assert list(json.loads(await response.text())) == ["error"]


async def test_what_is_refused(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    purpose = ("purpose", "assistants")
    assert await refused(http, "POST", "/v1/files", data=form(("purpose", "nonsense"))) == (
        400,
        f"'nonsense' is not one of {ALLOWED} - 'purpose'",
        "purpose",
        None,
    )
    assert (await refused(http, "POST", "/v1/files", data=form()))[1:] == (
        "Missing required parameter: 'purpose'.",
        "purpose",
        "missing_required_parameter",
    )
    only_purpose = aiohttp.FormData({"purpose": "assistants"}, default_to_multipart=True)
    assert (await refused(http, "POST", "/v1/files", data=only_purpose))[1:] == (
        "Missing required parameter: 'file'.",
        "file",
        "missing_required_parameter",
    )
    assert (await refused(http, "POST", "/v1/files", data=form(purpose, content=b"")))[2:] == ("file", "empty_file")
    assert (await refused(http, "POST", "/v1/files", data=form(purpose, ("colour", "blue"))))[2:] == ("colour", "unknown_parameter")
    assert (await refused(http, "POST", "/v1/files", {"purpose": "assistants"}))[3] == "invalid_content_type"
    assert (await refused(http, "POST", "/v1/files"))[3] == "invalid_content_type"
    assert [file async for file in sdk.files.list()] == []


async def test_files_expire_when_they_are_told_to(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    file = await sdk.files.create(file=b"x", purpose="assistants", expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    batch = await sdk.files.create(file=b"x", purpose="batch")
    assert batch.expires_at == batch.created_at + 30 * DAY
    short = await sdk.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200})
    assert short.expires_at == short.created_at + 7200
    for seconds in ("3599", "2592001"):
        fields = [("purpose", "assistants"), ("expires_after[anchor]", "created_at"), ("expires_after[seconds]", seconds)]
        assert (await refused(http, "POST", "/v1/files", data=form(*fields)))[2] == "expires_after.seconds"
    fields = [("purpose", "assistants"), ("expires_after[anchor]", "now"), ("expires_after[seconds]", "3600")]
    assert (await refused(http, "POST", "/v1/files", data=form(*fields)))[2:] == ("expires_after.anchor", "invalid_value")


async def test_downloads_say_what_they_are(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    file = await sdk.files.create(file=("你.txt", b"0123456789"), purpose="assistants")
    path = f"/v1/files/{file.id}/content"
    async with http.get(path) as response:
        headers = response.headers
        assert (response.status, await response.read()) == (200, b"0123456789")
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"] == "attachment; filename=\"_.txt\"; filename*=UTF-8''%E4%BD%A0.txt"
    assert (headers["content-length"], headers["x-content-type-options"]) == ("10", "nosniff")
    assert headers["x-request-id"].startswith("req_")

    async with http.get(path, headers={"If-None-Match": f'"other", W/{headers["etag"]}'}) as response:
        assert (response.status, await response.read()) == (304, b"")
        assert response.headers["etag"] == headers["etag"]
    async with http.get(path, headers={"If-None-Match": '"other"'}) as response:
        assert response.status == 200
    for condition, status in ((headers["etag"], 206), ('"other"', 200)):
        async with http.get(path, headers={"Range": "bytes=0-0", "If-Range": condition}) as response:
            assert response.status == status


@pytest.mark.parametrize(
    ("asked", "status", "content", "told"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=0-", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("bytes=nonsense", 200, b"0123456789", None),
    ],
)
async def test_parts_of_a_file(
    asked: str, status: int, content: bytes, told: str | None, sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession
) -> None:
    file = await sdk.files.create(file=b"0123456789", purpose="assistants")
    async with http.get(f"/v1/files/{file.id}/content", headers={"Range": asked}) as response:
        assert (response.status, await response.read(), response.headers.get("content-range")) == (status, content, told)
        assert response.headers["content-length"] == str(len(content))


async def test_a_part_that_is_not_there(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    file = await sdk.files.create(file=b"0123456789", purpose="assistants")
    reply = await call(http, "GET", f"/v1/files/{file.id}/content", headers={"Range": "bytes=10-"})
    assert (reply.status, reply.headers["content-range"], reply.body["code"]) == (416, "bytes */10", "range_not_satisfiable")
    assert await content_of(sdk, file.id) == b"0123456789"


async def test_a_large_part_of_a_large_file(sdk: openai.AsyncOpenAI) -> None:
    content = bytes(range(251)) * 10_000
    file = await sdk.files.create(file=content, purpose="assistants")
    assert await content_of(sdk, file.id, Range="bytes=100001-2000000") == content[100_001:2_000_001]


@server_with(strict_file_downloads=True)
async def test_strict_servers_keep_what_users_gave_them(sdk: openai.AsyncOpenAI) -> None:
    for purpose, is_refused in (("assistants", True), ("user_data", True), ("vision", False), ("batch", False)):
        file = await sdk.files.create(file=b"x", purpose=purpose)  # type: ignore[arg-type]
        if not is_refused:
            assert await content_of(sdk, file.id) == b"x"
            continue
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.files.content(file.id)
        assert caught.value.body == {
            "message": f"Not allowed to download files of purpose: {purpose}",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }


async def test_many_at_a_time(sdk: openai.AsyncOpenAI) -> None:
    contents = [f"{number}-".encode() * 40_000 for number in range(30)]
    files = await asyncio.gather(*(sdk.files.create(file=content, purpose="assistants") for content in contents))
    assert await asyncio.gather(*(content_of(sdk, file.id) for file in files)) == contents
    assert len({file.id for file in files}) == 30
