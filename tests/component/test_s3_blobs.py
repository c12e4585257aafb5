"""Blobs on S3 when things go wrong: a server that dies, refuses or cuts off, and writers that are cancelled. Memory stays flat."""

import asyncio
import contextlib
import gc
import itertools
import json
import os
import random
import re
import shlex
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from aiohttp import web

from mini_assistant.errors import BlobMissing, ConfigError, StoreUnavailable
from mini_assistant.files.blobs.s3 import S3BlobStore
from mini_assistant.ids import new_blob_key
from tests.s3_server import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server, running_s3

MEGABYTE = 1024 * 1024
PIECE = random.Random(1).randbytes(MEGABYTE)


def store_of(
    bucket: str, endpoint_url: str, *, access_key_id: str = ACCESS_KEY_ID, secret_access_key: str = SECRET_ACCESS_KEY
) -> S3BlobStore:
    return S3BlobStore(
        f"s3://{bucket}/files",
        endpoint_url=endpoint_url,
        region="us-east-1",
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
    )


async def megabytes(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield PIECE


async def endless(began: asyncio.Event, begun_after: int) -> AsyncIterator[bytes]:
    """Megabytes without end; `began` is set when some of them have been taken."""
    count = 0
    while True:
        yield PIECE
        count += 1
        if count == begun_after:
            began.set()
        await asyncio.sleep(0)


async def written(store: S3BlobStore, count: int) -> str:
    key = new_blob_key()
    await store.write(key, megabytes(count), bytes_max=count * MEGABYTE)
    return key


async def all_of(store: S3BlobStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in store.read(key, start, end)])


def kept(server: S3Server, bucket: str) -> list[str]:
    return server.keys(bucket) + server.uploads(bucket)


@pytest.mark.heavy
async def test_a_server_that_dies_is_told_and_all_goes_on_when_it_is_back() -> None:
    with running_s3() as server:
        server.make_bucket("bucket")
        store = store_of("bucket", server.url)
        whole = PIECE * 64
        key = await written(store, 64)
        reading = store.read(key)
        first = await anext(reading)
        began = asyncio.Event()
        lost = new_blob_key()
        writing = asyncio.create_task(store.write(lost, endless(began, 12), bytes_max=10**12))
        await began.wait()

        server.kill()

        async with asyncio.timeout(60):
            with pytest.raises(StoreUnavailable, match="cannot be written: it cannot be reached"):
                await writing
            with pytest.raises(StoreUnavailable, match="cannot be read: it cannot be reached"):
                async for _ in reading:
                    pass
        assert whole.startswith(first)
        await asyncio.to_thread(server.start)
        assert server.keys("bucket") == [f"files/{key}"]
        with pytest.raises(BlobMissing):
            await all_of(store, lost)
        assert await all_of(store, key) == whole
        assert await all_of(store, await written(store, 7)) == PIECE * 7
        await store.close()


@contextlib.asynccontextmanager
async def answering(status: int, code: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that answers this to everything; gives its address, and the methods that it was asked for."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.method)
        await request.read()
        body = f"<Error><Code>{code}</Code><Message>For {ACCESS_KEY_ID}</Message><AWSAccessKeyId>{ACCESS_KEY_ID}</AWSAccessKeyId></Error>"
        return web.Response(status=status, text=body, content_type="application/xml")

    application = web.Application(client_max_size=100 * MEGABYTE)
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


async def failures(store: S3BlobStore) -> list[str]:
    """What each of a store's functions says; each has to fail."""
    key = new_blob_key()
    works = [
        written(store, 0),
        written(store, 1),
        written(store, 14),
        store.join(key, [key]),
        all_of(store, key),
        all_of(store, key, 5),
        all_of(store, key, 5, 7),
        store.delete(key),
        store.check(),
    ]
    ended = await asyncio.gather(*works, return_exceptions=True)
    assert [type(failure) for failure in ended] == [StoreUnavailable] * len(works), ended
    return [str(failure) for failure in ended]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (503, "SlowDown", "it is overloaded"),
        (500, "InternalError", "S3 answered InternalError"),
        (403, "AccessDenied", "the key may not do this"),
        (403, "InvalidAccessKeyId", "the key is not known there"),
        (404, "NoSuchBucket", "the bucket does not exist"),
        (502, "not a code", "S3 answered 502"),
    ],
)
async def test_a_server_that_answers_with_errors_is_told_without_its_own_words(status: int, code: str, words: str) -> None:
    async with asyncio.timeout(100), answering(status, code) as (address, asked):
        said = await failures(store_of("bucket", address))

    for message in said:
        assert words in message
        assert f"s3://bucket/files at {address}" in message
        assert ACCESS_KEY_ID not in message
    assert len(asked) < 100


async def test_a_server_that_cannot_be_reached_is_told() -> None:
    async with answering(200, "") as (address, _):
        pass
    async with asyncio.timeout(100):
        for message in await failures(store_of("bucket", address)):
            assert "it cannot be reached" in message


async def test_a_wrong_key_secret_or_bucket_is_told(s3: S3Server, s3_bucket: str) -> None:
    wrong = {
        "the key is not known there": store_of(s3_bucket, s3.url, access_key_id="another-key"),
        "the secret does not belong to the key": store_of(s3_bucket, s3.url, secret_access_key="another-secret"),
        "the bucket does not exist": store_of("another-bucket", s3.url),
    }
    for words, store in wrong.items():
        for message in await failures(store):
            assert words in message
            assert "another-key" not in message
            assert "another-secret" not in message


class CuttingProxy:
    """Passes bytes on to a server. The first `cuts` answers end after `cut_after` bytes, without a word."""

    def __init__(self, server_url: str, *, cuts: int, cut_after: int) -> None:
        self._host, self._port = urlsplit(server_url).hostname, urlsplit(server_url).port
        self._cut_after = cut_after
        self.cuts_left = cuts
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        asking = asyncio.create_task(self._pass_on(client_reader, server_writer, None))
        limit = None
        if self.cuts_left > 0:
            self.cuts_left -= 1
            limit = self._cut_after
        try:
            await self._pass_on(server_reader, client_writer, limit)
        finally:
            asking.cancel()
            client_writer.transport.abort()
            server_writer.transport.abort()

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
        with contextlib.suppress(ConnectionError):
            while (limit is None or limit > 0) and (data := await reader.read(64 * 1024 if limit is None else min(64 * 1024, limit))):
                writer.write(data)
                await writer.drain()
                if limit is not None:
                    limit -= len(data)


async def test_a_read_that_is_cut_off_goes_on_from_where_it_was(s3: S3Server, s3_bucket: str) -> None:
    key = await written(store_of(s3_bucket, s3.url), 8)
    proxy = CuttingProxy(s3.url, cuts=8, cut_after=600_000)  # more than the client itself goes on after
    async with asyncio.timeout(60), proxy as address:
        assert await all_of(store_of(s3_bucket, address), key, 1_000, 7_900_000) == (PIECE * 8)[1_000:7_900_000]
    assert proxy.cuts_left == 0


@pytest.mark.heavy
async def test_a_read_that_is_cut_off_for_ever_is_given_up(s3: S3Server, s3_bucket: str) -> None:
    key = await written(store_of(s3_bucket, s3.url), 8)
    proxy = CuttingProxy(s3.url, cuts=10**6, cut_after=2_000)
    async with asyncio.timeout(100), proxy as address:
        with pytest.raises(StoreUnavailable, match="cannot be read: the connection broke"):
            await all_of(store_of(s3_bucket, address), key)
    assert 10**6 - proxy.cuts_left < 100


async def test_a_cancelled_writer_leaves_nothing(s3: S3Server, s3_bucket: str) -> None:
    store = store_of(s3_bucket, s3.url)
    for begun_after in (1, 6, 20):
        began = asyncio.Event()
        writing = asyncio.create_task(store.write(new_blob_key(), endless(began, begun_after), bytes_max=10**12))
        await began.wait()
        writing.cancel()
        await asyncio.sleep(0)
        writing.cancel()  # as a server does that cannot wait any longer
        with pytest.raises(asyncio.CancelledError):
            await writing
        await store.close()
        assert kept(s3, s3_bucket) == []


async def test_a_writer_that_is_cancelled_in_its_last_steps_leaves_all_or_nothing(s3: S3Server, s3_bucket: str) -> None:
    """Cancelled ever later, until it is done before that."""
    store = store_of(s3_bucket, s3.url)
    for milliseconds in itertools.count(0, 4):
        key = new_blob_key()
        taken = asyncio.Event()

        async def pieces(taken: asyncio.Event = taken) -> AsyncIterator[bytes]:
            async for piece in megabytes(7):
                yield piece
            taken.set()

        writing = asyncio.create_task(store.write(key, pieces(), bytes_max=10 * MEGABYTE))
        await taken.wait()
        await asyncio.wait([writing], timeout=milliseconds / 1000)
        if not writing.cancel():
            break
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert kept(s3, s3_bucket) == []
    assert milliseconds > 0
    assert kept(s3, s3_bucket) == [f"files/{key}"]


async def test_large_blobs_are_written_and_joined_at_a_time(s3: S3Server, s3_bucket: str) -> None:
    store = store_of(s3_bucket, s3.url)
    keys = await asyncio.gather(*(written(store, count) for count in range(4, 12)))
    joined = new_blob_key()

    blob = await store.join(joined, keys[:3])

    assert blob.size_bytes == 15 * MEGABYTE
    assert await all_of(store, joined) == PIECE * 15
    for count, whole in zip(range(4, 12), await asyncio.gather(*(all_of(store, key) for key in keys)), strict=True):
        assert whole == PIECE * count
    assert s3.uploads(s3_bucket) == []


@pytest.mark.heavy
async def test_memory_is_flat_while_a_large_blob_goes_in_and_out(s3: S3Server, s3_bucket: str) -> None:
    store = store_of(s3_bucket, s3.url)
    await all_of(store, await written(store, 12))
    gc.collect()
    process = psutil.Process()
    before = highest = process.memory_info().rss

    async def watched(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        nonlocal highest
        async for piece in pieces:
            highest = max(highest, process.memory_info().rss)
            yield piece

    key = new_blob_key()
    await store.write(key, watched(megabytes(256)), bytes_max=256 * MEGABYTE)
    size_bytes = 0
    async for piece in watched(store.read(key)):
        size_bytes += len(piece)

    assert size_bytes == 256 * MEGABYTE
    assert highest - before < 48 * MEGABYTE


@pytest.mark.parametrize(
    "url", ["", "bucket", "http://bucket/files", "s3://", "s3:///files", "s3://B/files", "s3://bucket/a//b", "s3://bucket/a b"]
)
def test_a_url_that_is_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="Example: s3://my-bucket/files"):
        S3BlobStore(url, endpoint_url="", region="", access_key_id="", secret_access_key="")


@pytest.mark.parametrize("endpoint_url", ["127.0.0.1:9000", "ftp://127.0.0.1", "http://", "http://key:secret@127.0.0.1:9000"])
def test_an_endpoint_that_cannot_be_right_is_refused(endpoint_url: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("Example: http://127.0.0.1:9000")) as caught:
        store_of("bucket", endpoint_url)
    assert "secret@" not in str(caught.value)


def test_half_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="belong together"):
        store_of("bucket", "http://127.0.0.1:9000", secret_access_key="")


def test_the_lifecycle_rule_of_the_documents_is_taken(s3: S3Server, s3_bucket: str) -> None:
    """It aborts what a killed process has left unfinished among the files. Whether it is obeyed shows after a day, and is not tried."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "scale-out.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^aws s3api put-bucket-lifecycle-configuration .*?(?=^```)", page, re.MULTILINE | re.DOTALL)
    *command, configuration = shlex.split(block)
    [location] = re.findall(r"MINI_ASSISTANT_BLOBS_URL=s3://(\S+)", page)
    bucket, _, prefix = location.partition("/")
    assert command[3:] == ["--bucket", bucket, "--lifecycle-configuration"]
    [rule] = json.loads(configuration)["Rules"]
    assert rule.pop("ID")
    assert rule == {"Status": "Enabled", "Filter": {"Prefix": f"{prefix}/"}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}

    document = f"<LifecycleConfiguration><Rule>{xml_of(rule)}</Rule></LifecycleConfiguration>"
    request = urllib.request.Request(f"{s3.url}/{s3_bucket}?lifecycle", document.encode(), method="PUT")
    urllib.request.urlopen(request, timeout=30).close()
    with urllib.request.urlopen(f"{s3.url}/{s3_bucket}?lifecycle", timeout=30) as answer:
        assert xml_of(rule) in answer.read().decode()


def xml_of(value: Any) -> str:
    """Values of JSON as S3's own clients send them."""
    return "".join(f"<{name}>{xml_of(inner)}</{name}>" for name, inner in value.items()) if isinstance(value, dict) else str(value)


async def test_the_key_may_come_from_the_environment(s3: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
    store = S3BlobStore(f"s3://{s3_bucket}", endpoint_url=s3.url, region="", access_key_id="", secret_access_key="")

    assert await store.check() == f"s3://{s3_bucket} at {s3.url}"
    assert kept(s3, s3_bucket) == []


async def test_a_machine_without_any_key_is_told(s3: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    store = S3BlobStore(f"s3://{s3_bucket}", endpoint_url=s3.url, region="", access_key_id="", secret_access_key="")

    async with asyncio.timeout(60):
        with pytest.raises(StoreUnavailable, match="no key is set, and this machine has no role"):
            await store.check()
