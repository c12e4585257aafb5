"""Limits of a connection, on raw sockets: bodies too large, too slow or never whole, heads without an end, and what is no HTTP at all.

After each of them the server answers others, and the connection itself either goes on or is closed cleanly.
"""

import asyncio
import contextlib
import dataclasses
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import openai
import psutil
import pytest

from mini_assistant.app import DATABASE_FILE
from mini_assistant.settings import Settings
from tests.envelope import checked_error

BODY_BYTES_MAX = 64 * 1024
HEAD_BYTES_MAX = Settings().head_bytes_max
BODY_TIMEOUT_SECONDS = 0.3


class Answer(NamedTuple):
    """An answer as it came over the wire. Names of headers are lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Connection:
    """A client that sends exactly what it is told to, and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> Answer:
        async with asyncio.timeout(10):
            head = await self._reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
            headers = {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}
            body = await self._reader.readexactly(int(headers.get(b"content-length", b"0")))
        return Answer(int(status_line.split(b" ")[1]), headers, body)

    async def is_closed_by_the_server(self) -> bool:
        try:
            async with asyncio.timeout(10):
                return await self._reader.read() == b""
        except ConnectionResetError:
            return True

    def leave(self) -> None:
        self._writer.transport.abort()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return dataclasses.replace(
        settings, body_bytes_max=BODY_BYTES_MAX, body_timeout_seconds=BODY_TIMEOUT_SECONDS, body_bytes_per_second_min=5
    )


@pytest.fixture
def database(settings: Settings) -> Path:
    return settings.data_dir / DATABASE_FILE


@contextlib.asynccontextmanager
async def connected(server: str) -> AsyncIterator[Connection]:
    host, port = server.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


@pytest.fixture
async def connection(server: str) -> AsyncIterator[Connection]:
    async with connected(server) as connection:
        yield connection
    async with connected(server) as other:
        await other.send(GET_HEALTH)
        assert (await other.answer()).status == 200, "the server does not answer others"


GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(body: bytes = b"", *, length: int | None = None, headers: bytes = b"", path: bytes = b"/v1/threads") -> bytes:
    """A POST; `length`: what is declared, when it is not the truth."""
    declared = len(body) if length is None else length
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%b\r\n%b" % (path, declared, headers, body)


def post_chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = b"POST /v1/threads HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def count_threads(database: Path) -> int:
    connection = sqlite3.connect(database)
    try:
        return connection.execute("SELECT count(*) FROM threads").fetchone()[0]
    finally:
        connection.close()


def assert_refused(answer: Answer, status: int, code: str | None) -> None:
    assert answer.status == status
    assert answer.headers[b"content-type"] == b"application/json"
    assert checked_error(answer.body)["code"] == code


def padded(size_bytes: int) -> bytes:
    """A good body of exactly this size."""
    return b"{" + b" " * (size_bytes - 2) + b"}"


# ---- bodies that are too large -----------------------------------------------------------------------------------------------------


async def test_a_body_of_exactly_the_limit_is_taken_whole(connection: Connection, database: Path) -> None:
    await connection.send(post(padded(BODY_BYTES_MAX)))
    assert (await connection.answer()).status == 200
    half = BODY_BYTES_MAX // 2
    await connection.send(post_chunked(padded(BODY_BYTES_MAX)[:half], padded(BODY_BYTES_MAX)[half:]))
    assert (await connection.answer()).status == 200
    assert count_threads(database) == 2


@pytest.mark.parametrize("over", [1, 1000, 10 * 1024 * 1024])
async def test_a_larger_declared_body_is_refused_and_the_connection_closed(over: int, connection: Connection, database: Path) -> None:
    await connection.send(post(padded(1000), length=BODY_BYTES_MAX + over))
    answer = await connection.answer()

    assert_refused(answer, 413, "body_too_large")
    assert str(BODY_BYTES_MAX) in checked_error(answer.body)["message"]
    assert answer.headers[b"connection"] == b"close"
    assert await connection.is_closed_by_the_server()
    assert count_threads(database) == 0


async def test_a_larger_chunked_body_is_refused_before_it_is_whole(connection: Connection, database: Path) -> None:
    await connection.send(post_chunked(*[b" " * 16_000] * 5, end=b""))

    assert_refused(await connection.answer(), 413, "body_too_large")
    assert await connection.is_closed_by_the_server()
    assert count_threads(database) == 0


async def test_a_larger_body_in_one_piece_is_refused(connection: Connection, database: Path) -> None:
    await connection.send(post_chunked(b" " * (BODY_BYTES_MAX + 1)))

    assert_refused(await connection.answer(), 413, "body_too_large")
    assert count_threads(database) == 0


async def test_a_body_of_many_tiny_chunks_is_counted(connection: Connection, database: Path) -> None:
    await connection.send(post_chunked(*[b" "] * (BODY_BYTES_MAX + 1)))

    assert_refused(await connection.answer(), 413, "body_too_large")
    assert count_threads(database) == 0


async def test_a_client_that_asks_first_need_not_send_the_body(connection: Connection) -> None:
    await connection.send(post(length=10 * BODY_BYTES_MAX, headers=b"Expect: 100-continue\r\n"))
    assert_refused(await connection.answer(), 413, "body_too_large")


async def test_a_client_that_asks_first_is_told_to_go_on(connection: Connection, database: Path) -> None:
    await connection.send(post(length=2, headers=b"Expect: 100-continue\r\n"))
    assert (await connection.answer()).status == 100
    await connection.send(b"{}")
    assert (await connection.answer()).status == 200
    assert count_threads(database) == 1


async def test_the_sdk_is_told_of_a_large_body_while_it_sends_it(sdk: openai.AsyncOpenAI) -> None:
    for size in (BODY_BYTES_MAX, 250_000):
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.beta.threads.create(messages=[{"role": "user", "content": "x" * size}])
        assert caught.value.status_code == 413
        assert caught.value.code == "body_too_large"


async def test_large_bodies_take_little_memory(server: str, http: aiohttp.ClientSession) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server)) for _ in range(50)]
        for client in clients:
            # A real client would go on for a gigabyte; a refused one is not read further.
            await client.send(post_chunked(b" " * 60_000, end=b""))
            await client.send(b"%x\r\n" % 1_000_000_000 + b" " * 60_000)
        for client in clients:
            assert (await client.answer()).status == 413
    async with http.get("/health") as response:
        assert response.status == 200

    assert process.memory_info().rss - before < 64 * 1024 * 1024


# ---- bodies that do not arrive -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start", [post(length=100), post(b'{"metadata"', length=100), post_chunked(b"{", end=b""), post_chunked(end=b"5\r\n{")]
)
async def test_a_body_that_stops_arriving_is_refused_in_time(start: bytes, connection: Connection, database: Path) -> None:
    await connection.send(start)
    answer = await connection.answer()

    assert_refused(answer, 400, "body_timeout")
    assert count_threads(database) == 0


async def test_a_body_that_is_late_does_not_become_the_next_request(connection: Connection, database: Path) -> None:
    hidden = post(b"{}")
    await connection.send(post(b"", length=len(hidden)))
    assert_refused(await connection.answer(), 400, "body_timeout")
    await connection.send(hidden + GET_HEALTH)

    assert (await connection.answer()).body == b'{"status":"ok"}'
    assert count_threads(database) == 0


async def test_a_slow_body_that_keeps_arriving_is_taken(connection: Connection, database: Path) -> None:
    await connection.send(post(length=6))
    for piece in (b"{", b" ", b" ", b" ", b" ", b"}"):
        await asyncio.sleep(BODY_TIMEOUT_SECONDS / 3)
        await connection.send(piece)

    assert (await connection.answer()).status == 200
    assert count_threads(database) == 1


@pytest.mark.parametrize(
    "start", [post(b"{", length=50), post_chunked(b"{", end=b""), post(length=50), b"POST /v1/thr", b"POST /v1/threads HTTP/1.1\r\nHo"]
)
async def test_a_client_that_leaves_in_mid_body_leaves_nothing(
    start: bytes, server: str, connection: Connection, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        async with connected(server) as client:
            await client.send(start)
            client.leave()
    await connection.send(GET_HEALTH)
    assert (await connection.answer()).status == 200

    assert count_threads(database) == 0
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


# ---- heads -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [b"GET /health HTTP/1.1\r\nX-Long: ", b"GET /health?", b"GET /health HTTP/1.1\r\n", b"GET /" + b"a" * 100],
    ids=["one header", "the query", "many headers", "the path"],
)
async def test_a_head_without_an_end_is_refused(start: bytes, connection: Connection) -> None:
    piece = b"X-Header: 0123456789abcdef\r\n" * 500 if start.endswith(b"\r\n") else b"a" * 14_000
    await connection.send(start)
    for _ in range(HEAD_BYTES_MAX // len(piece) + 1):
        await connection.send(piece)

    assert_refused(await connection.answer(), 431, "headers_too_large")
    assert await connection.is_closed_by_the_server()


async def test_a_head_below_the_limit_is_served_also_in_pieces_and_again(connection: Connection) -> None:
    for _ in range(3):
        await connection.send(b"GET /health HTTP/1.1\r\n")
        for number in range(8):
            await connection.send(b"X-%d: %b\r\n" % (number, b"a" * 14_000))
        await connection.send(b"\r\n")
        assert (await connection.answer()).status == 200


async def test_bodies_do_not_count_as_heads(connection: Connection) -> None:
    for _ in range(HEAD_BYTES_MAX // BODY_BYTES_MAX + 2):
        await connection.send(post(padded(BODY_BYTES_MAX)))
        assert (await connection.answer()).status == 200


async def test_a_thousand_headers_are_served(connection: Connection) -> None:
    await connection.send(b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(1000)) + b"\r\n")

    assert (await connection.answer()).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: -2\r\n",
        b"Content-Length: 2x\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Content-Length: 2\r\nX y: z\r\n",
        b"Content-Length: 2\r\nX: \x00\r\n",
        b"Transfer-Encoding: gzip\r\n",
    ],
)
async def test_ambiguous_heads_are_refused(headers: bytes, connection: Connection, database: Path) -> None:
    await connection.send(b"POST /v1/threads HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n{}")

    assert_refused(await connection.answer(), 400, "invalid_http")
    assert await connection.is_closed_by_the_server()
    assert count_threads(database) == 0


@pytest.mark.parametrize(
    "headers",
    [b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n", b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", b"Host: a\r\nHost: b\r\n"],
)
async def test_repeated_headers_do_no_harm(headers: bytes, connection: Connection, database: Path) -> None:
    await connection.send(post(b"{}", headers=headers))

    assert (await connection.answer()).status in (200, 400, 403)


# ---- what is no HTTP ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"hello\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET /v1/threads/thread_\xff\xfe HTTP/1.1\r\n\r\n",
        b"get /health HTTP/1.1\r\n\r\n",
        b"\x00" * 1000,
        b"GET\r\n\r\n",
        post_chunked(end=b"zz\r\n{}\r\n0\r\n\r\n"),
        post_chunked(end=b"-5\r\n{}\r\n0\r\n\r\n"),
        post_chunked(end=b"fffffffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
    ],
)
async def test_garbage_is_refused_in_the_envelope_and_the_connection_closed(garbage: bytes, connection: Connection, database: Path) -> None:
    await connection.send(garbage)

    assert_refused(await connection.answer(), 400, "invalid_http")
    assert await connection.is_closed_by_the_server()
    assert count_threads(database) == 0


async def test_garbage_behind_a_good_request_does_not_spoil_it(connection: Connection, database: Path) -> None:
    await connection.send(post(b"{}"))
    assert (await connection.answer()).status == 200
    await connection.send(b"\x00\x01garbage\r\n\r\n")

    assert_refused(await connection.answer(), 400, "invalid_http")
    assert count_threads(database) == 1


@pytest.mark.parametrize(
    "request_line", [b"GET * HTTP/1.1", b"GET http://test/health2 HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET // HTTP/1.1"]
)
async def test_odd_targets_are_not_found(request_line: bytes, connection: Connection) -> None:
    await connection.send(request_line + b"\r\nHost: localhost\r\n\r\n")

    assert_refused(await connection.answer(), 404, None)


async def test_an_upgrade_to_something_else_is_ignored(connection: Connection) -> None:
    websocket = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    await connection.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + websocket + b"\r\n")

    assert (await connection.answer()).body == b'{"status":"ok"}'


async def test_requests_in_one_packet_are_answered_in_their_order(connection: Connection, database: Path) -> None:
    await connection.send(GET_HEALTH + post(b"{}") + GET_HEALTH + post(b"[") + GET_HEALTH)
    answers = [await connection.answer() for _ in range(5)]

    assert [answer.status for answer in answers] == [200, 200, 200, 400, 200]
    assert count_threads(database) == 1


async def test_a_refused_request_does_not_end_the_connection(connection: Connection) -> None:
    for request in (post(b"{"), b"DELETE /v1/threads HTTP/1.1\r\n\r\n", b"GET /unknown HTTP/1.1\r\n\r\n", GET_HEALTH):
        await connection.send(request)
        answer = await connection.answer()
        assert b"connection" not in answer.headers

    assert answer.status == 200


async def test_head_requests_have_no_body(connection: Connection) -> None:
    await connection.send(b"HEAD /v1/threads HTTP/1.1\r\nHost: localhost\r\n\r\n" + GET_HEALTH)
    async with asyncio.timeout(10):
        head = await connection._reader.readuntil(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 405 ")
    assert (await connection.answer()).body == b'{"status":"ok"}'


async def test_an_old_client_is_served_and_the_connection_closed(connection: Connection) -> None:
    await connection.send(b"GET /health HTTP/1.0\r\n\r\n")

    assert (await connection.answer()).status == 200
    assert await connection.is_closed_by_the_server()


async def test_many_clients_at_once_are_all_answered(server: str) -> None:
    async def client() -> int:
        async with connected(server) as connection:
            await connection.send(post(b"{}"))
            return (await connection.answer()).status

    assert await asyncio.gather(*(client() for _ in range(200))) == [200] * 200
