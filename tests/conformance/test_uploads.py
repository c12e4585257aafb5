"""Uploads in parts (behaviour check 79)."""

import asyncio
import hashlib
import io
from typing import Any

import aiohttp
import openai
import pytest
from openai.types import Upload

from tests.conformance.raw_http import call, refused
from tests.conformance.server_settings import server_with

UPLOAD: dict[str, Any] = {"filename": "big.txt", "purpose": "assistants", "bytes": 9, "mime_type": "text/plain"}


async def created(sdk: openai.AsyncOpenAI, size_bytes: int = 9) -> Upload:
    return await sdk.uploads.create(**{**UPLOAD, "bytes": size_bytes})


async def added(sdk: openai.AsyncOpenAI, upload: Upload, *contents: bytes) -> list[str]:
    return [(await sdk.uploads.parts.create(upload.id, data=content)).id for content in contents]


def message(caught: "pytest.ExceptionInfo[openai.APIStatusError]") -> str:
    return caught.value.body["message"]  # type: ignore[index, call-overload, return-value]


async def test_the_file_follows_the_order_of_the_part_ids(sdk: openai.AsyncOpenAI) -> None:
    upload = await created(sdk)
    assert (upload.status, upload.bytes, upload.filename, upload.file) == ("pending", 9, "big.txt", None)
    assert upload.expires_at == upload.created_at + 3600
    first, second, third = await added(sdk, upload, b"aaa", b"bbb", b"ccc")

    done = await sdk.uploads.complete(upload.id, part_ids=[third, first, second], md5=hashlib.md5(b"cccaaabbb").hexdigest())

    assert (done.id, done.status) == (upload.id, "completed")
    assert done.file is not None
    assert (done.file.filename, done.file.bytes, done.file.created_at) == ("big.txt", 9, upload.created_at)
    assert (await sdk.files.content(done.file.id)).content == b"cccaaabbb"
    assert await sdk.files.retrieve(done.file.id) == done.file


async def test_the_shape_of_what_is_answered(http: aiohttp.ClientSession) -> None:
    upload = (await call(http, "POST", "/v1/uploads", UPLOAD)).body
    assert list(upload) == ["id", "object", "bytes", "created_at", "filename", "purpose", "status", "expires_at"]
    assert (upload["id"].split("_")[0], len(upload["id"].split("_")[1])) == ("upload", 32)
    data = aiohttp.FormData({"data": io.BytesIO(b"x" * 9)})
    part = (await call(http, "POST", f"/v1/uploads/{upload['id']}/parts", data=data)).body
    assert list(part) == ["id", "object", "created_at", "upload_id"]
    assert (part["id"].split("_")[0], len(part["id"].split("_")[1]), part["upload_id"]) == ("part", 32, upload["id"])
    done = (await call(http, "POST", f"/v1/uploads/{upload['id']}/complete", {"part_ids": [part["id"]]})).body
    assert list(done) == [*upload, "file"]


async def test_the_chunk_helper_of_the_sdk(sdk: openai.AsyncOpenAI) -> None:
    content = bytes(range(256)) * 4000
    done = await sdk.uploads.upload_file_chunked(
        file=content, filename="big.bin", bytes=len(content), mime_type="text/plain", purpose="assistants", part_size=100_000
    )
    assert done.file is not None
    assert (await sdk.files.content(done.file.id)).content == content


async def test_parts_may_come_at_the_same_time(sdk: openai.AsyncOpenAI) -> None:
    contents = [bytes([number]) * 70_000 for number in range(12)]
    upload = await created(sdk, 12 * 70_000)
    parts = await asyncio.gather(*(sdk.uploads.parts.create(upload.id, data=content) for content in contents))
    done = await sdk.uploads.complete(upload.id, part_ids=[part.id for part in parts])
    assert done.file is not None
    assert (await sdk.files.content(done.file.id)).content == b"".join(contents)


async def test_parts_that_are_not_named_are_left_out(sdk: openai.AsyncOpenAI) -> None:
    upload = await created(sdk)
    _, second = await added(sdk, upload, b"a broken try", b"123456789")
    done = await sdk.uploads.complete(upload.id, part_ids=[second])
    assert done.file is not None
    assert (await sdk.files.content(done.file.id)).content == b"123456789"


async def test_a_wrong_sum_or_hash_can_be_put_right(sdk: openai.AsyncOpenAI) -> None:
    upload = await created(sdk)
    first, second = await added(sdk, upload, b"aaa", b"bbbbbb")
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.uploads.complete(upload.id, part_ids=[first])
    assert message(caught) == "The parts have 3 bytes, but the upload was created with 9."
    with pytest.raises(openai.BadRequestError, match="md5"):
        await sdk.uploads.complete(upload.id, part_ids=[first, second], md5="0" * 32)
    with pytest.raises(openai.BadRequestError, match="No such part"):
        await sdk.uploads.complete(upload.id, part_ids=[first, "part_x"])
    assert [file async for file in sdk.files.list()] == []

    assert (await sdk.uploads.complete(upload.id, part_ids=[first, second])).status == "completed"


async def test_parts_of_another_upload_are_not_taken(sdk: openai.AsyncOpenAI) -> None:
    upload, other = await created(sdk), await created(sdk)
    [part] = await added(sdk, other, b"123456789")
    with pytest.raises(openai.BadRequestError, match="No such part"):
        await sdk.uploads.complete(upload.id, part_ids=[part])


async def test_a_completed_upload_takes_nothing_more(sdk: openai.AsyncOpenAI) -> None:
    upload = await created(sdk)
    parts = await added(sdk, upload, b"123456789")
    await sdk.uploads.complete(upload.id, part_ids=parts)

    for again in (added(sdk, upload, b"x"), sdk.uploads.complete(upload.id, part_ids=parts)):
        with pytest.raises(openai.BadRequestError) as caught:
            await again
        assert message(caught) == f"Upload {upload.id} has status 'completed' and cannot be added to or completed."
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.uploads.cancel(upload.id)
    assert message(caught) == "Cannot cancel upload with status 'completed'."


async def test_a_cancelled_upload_takes_nothing_more(sdk: openai.AsyncOpenAI) -> None:
    upload = await created(sdk)
    parts = await added(sdk, upload, b"123456789")
    cancelled = await sdk.uploads.cancel(upload.id)
    assert (cancelled.id, cancelled.status, cancelled.file) == (upload.id, "cancelled", None)

    for again in (added(sdk, upload, b"x"), sdk.uploads.complete(upload.id, part_ids=parts)):
        with pytest.raises(openai.BadRequestError, match="has status 'cancelled'"):
            await again
    with pytest.raises(openai.BadRequestError, match="Cannot cancel upload with status 'cancelled'"):
        await sdk.uploads.cancel(upload.id)


async def test_of_two_completions_one_makes_the_file(sdk: openai.AsyncOpenAI) -> None:
    upload = await created(sdk, 3_000_000)
    parts = await added(sdk, upload, b"a" * 3_000_000)
    ends = await asyncio.gather(
        *(sdk.uploads.complete(upload.id, part_ids=parts) for _ in range(4)), sdk.uploads.cancel(upload.id), return_exceptions=True
    )
    assert len([end for end in ends if isinstance(end, Upload)]) == 1
    assert all(isinstance(end, Upload | openai.BadRequestError) for end in ends), ends
    made = [file async for file in sdk.files.list()]
    assert [file.bytes for file in made] == [end.bytes for end in ends if isinstance(end, Upload) and end.status == "completed"]


@server_with(upload_expiry_seconds=1)
async def test_an_upload_expires(sdk: openai.AsyncOpenAI) -> None:
    upload = await created(sdk)
    parts = await added(sdk, upload, b"123456789")
    async with asyncio.timeout(10):
        while True:
            try:
                await added(sdk, upload, b"x")
            except openai.BadRequestError as exc:
                assert "has status 'expired'" in str(exc)  # noqa: PT017 - the loop ends here
                break
            await asyncio.sleep(0.1)
    with pytest.raises(openai.BadRequestError, match="has status 'expired'"):
        await sdk.uploads.complete(upload.id, part_ids=parts)
    with pytest.raises(openai.BadRequestError, match="Cannot cancel upload with status 'expired'"):
        await sdk.uploads.cancel(upload.id)


async def test_the_file_of_an_upload_expires_with_its_upload_as_the_anchor(sdk: openai.AsyncOpenAI) -> None:
    upload = await sdk.uploads.create(**UPLOAD, expires_after={"anchor": "created_at", "seconds": 3600})
    done = await sdk.uploads.complete(upload.id, part_ids=await added(sdk, upload, b"123456789"))
    assert done.file is not None
    assert done.file.expires_at == upload.created_at + 3600


async def test_unknown_uploads(http: aiohttp.ClientSession) -> None:
    data = aiohttp.FormData({"data": io.BytesIO(b"x")})
    for path, options in (("parts", {"data": data}), ("complete", {"body": {"part_ids": ["part_x"]}}), ("cancel", {})):
        answer = await refused(http, "POST", f"/v1/uploads/upload_x/{path}", **options)
        assert answer == (404, "No such Upload object: upload_x", "id", None)


async def test_what_is_refused(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    for change, param, code in (
        ({"purpose": "nonsense"}, "purpose", None),
        ({"bytes": 0}, "bytes", "integer_below_min_value"),
        ({"bytes": 8 * 1024**3 + 1}, "bytes", "integer_above_max_value"),
        ({"filename": ""}, "filename", "string_below_min_length"),
        ({"mime_type": None}, "mime_type", "invalid_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds", "integer_below_min_value"),
        ({"colour": "blue"}, "colour", "unknown_parameter"),
    ):
        assert (await refused(http, "POST", "/v1/uploads", {**UPLOAD, **change}))[2:] == (param, code)
    upload = await created(sdk)
    path = f"/v1/uploads/{upload.id}"
    empty = aiohttp.FormData({"data": io.BytesIO(b"")})
    assert (await refused(http, "POST", f"{path}/parts", data=empty))[2:] == ("data", "empty_file")
    other = aiohttp.FormData({"file": io.BytesIO(b"x")})
    assert (await refused(http, "POST", f"{path}/parts", data=other))[2:] == ("data", "missing_required_parameter")
    assert (await refused(http, "POST", f"{path}/complete", {"part_ids": []}))[2:] == ("part_ids", "empty_array")


@server_with(upload_part_bytes_max=1000, upload_bytes_max=2500)
async def test_sizes(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assert (await refused(http, "POST", "/v1/uploads", {**UPLOAD, "bytes": 2501}))[2] == "bytes"
    upload = await created(sdk, 2500)
    with pytest.raises(openai.APIStatusError) as too_large:
        await added(sdk, upload, b"x" * 1001)
    assert too_large.value.status_code == 413
    parts = await added(sdk, upload, b"x" * 1000, b"x" * 1000)
    with pytest.raises(openai.BadRequestError, match="2500 bytes in total"):
        await added(sdk, upload, b"x" * 501)
    parts += await added(sdk, upload, b"x" * 500)
    assert (await sdk.uploads.complete(upload.id, part_ids=parts)).status == "completed"


async def test_a_repeated_completion_with_a_key_gets_the_first_answer(sdk: openai.AsyncOpenAI) -> None:
    upload = await created(sdk)
    parts = await added(sdk, upload, b"123456789")
    answers = [await sdk.uploads.complete(upload.id, part_ids=parts, extra_headers={"Idempotency-Key": "complete-1"}) for _ in range(2)]
    assert answers[0] == answers[1]
    assert len([file async for file in sdk.files.list()]) == 1
