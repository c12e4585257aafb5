"""Requests whose borders can be seen in more than one way, on raw sockets: never does a body become a request, nor a request two answers.

Behind each of them stands a second request. It is answered only where its beginning is beyond doubt; else the connection ends.
"""

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from mini_assistant.app import DATABASE_FILE
from mini_assistant.settings import Settings
from tests.component.test_http_limits import Connection, connected, count_threads
from tests.envelope import checked_error

# The request in the body, or behind it: if it is carried out, there is a thread.
HIDDEN = b"POST /v1/threads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
FIRST = b"POST /v1/assistants HTTP/1.1\r\nHost: localhost\r\n"
HIDDEN_AND_LAST = HIDDEN.replace(b"Host", b"Connection: close\r\nHost")
BODY = b'{"model":"m"}'
CHUNKED = b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
STEPS = ["at once", "in two packets"]
HEADERS_MAX = 50
PIPELINED_MAX = 20


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return dataclasses.replace(settings, headers_max=HEADERS_MAX, pipelined_requests_max=PIPELINED_MAX, body_timeout_seconds=0.3)


@pytest.fixture
def database(settings: Settings) -> Path:
    return settings.data_dir / DATABASE_FILE


@pytest.fixture
async def connection(server: str) -> AsyncIterator[Connection]:
    async with connected(server) as connection:
        yield connection


async def answers_of(connection: Connection) -> list[int]:
    """The statuses of all that the server sends until it closes the connection, or a moment passes in silence."""
    received = b""
    try:
        async with asyncio.timeout(1):
            while piece := await connection._reader.read(65_536):
                received += piece
    except (TimeoutError, ConnectionResetError):
        pass
    return [int(status) for status in re.findall(rb"(?:^|[}\]\n])HTTP/1\.1 ([0-9]{3}) ", received)]


async def send(connection: Connection, step: str, request: bytes, next_request: bytes) -> None:
    """Send a request and the one behind it, in one packet or in two. The connection may be closed before the second."""
    await connection.send(request + (next_request if step == "at once" else b""))
    if step != "at once":
        await asyncio.sleep(0.02)
        with contextlib.suppress(ConnectionError):
            await connection.send(next_request)


async def send_without_end(connection: Connection, piece: bytes, size_bytes: int) -> None:
    """Send the same again and again until so much was sent, or the server has closed the connection."""
    for _ in range(size_bytes // len(piece)):
        await connection.send(piece)
        await asyncio.sleep(0)


REFUSED = {
    "two equal lengths": FIRST + b"Content-Length: 13\r\nContent-Length: 13\r\n\r\n" + BODY,
    "two lengths": FIRST + b"Content-Length: 13\r\nContent-Length: 0\r\n\r\n" + BODY,
    "a list of lengths": FIRST + b"Content-Length: 13, 13\r\n\r\n" + BODY,
    "a signed length": FIRST + b"Content-Length: +13\r\n\r\n" + BODY,
    "a hexadecimal length": FIRST + b"Content-Length: 0xd\r\n\r\n" + BODY,
    "an empty length": FIRST + b"Content-Length:\r\n\r\n" + BODY,
    "a space before the colon": FIRST + b"Content-Length : 13\r\n\r\n" + BODY,
    "a length on a folded line": FIRST + b"Content-Length:\r\n 13\r\n\r\n" + BODY,
    "another header on a folded line": FIRST + b"X: a\r\n b\r\nContent-Length: 13\r\n\r\n" + BODY,
    "a length that begins with a space": b"POST /v1/assistants HTTP/1.1\r\n Content-Length: 13\r\n\r\n" + BODY,
    "a length and chunks": FIRST + b"Content-Length: 13\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunks and a length": FIRST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + CHUNKED,
    "a length in the trailers": FIRST + b"Transfer-Encoding: chunked\r\n\r\nd\r\n" + BODY + b"\r\n0\r\nContent-Length: 9\r\n\r\n",
    "chunked twice": FIRST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKED,
    "chunked in two headers": FIRST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunked before something": FIRST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + CHUNKED,
    "nearly chunked": FIRST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "chunked in quotes": FIRST + b'Transfer-Encoding: "chunked"\r\n\r\n' + CHUNKED,
    "chunked with a parameter": FIRST + b"Transfer-Encoding: chunked;q=1\r\n\r\n" + CHUNKED,
    "chunked behind a tabulator": FIRST + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + CHUNKED,
    "chunked on a folded line": FIRST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKED,
    "an empty encoding": FIRST + b"Transfer-Encoding:\r\n\r\n" + CHUNKED,
    "identity": FIRST + b"Transfer-Encoding: identity\r\n\r\n" + BODY,
    "identity and a length": FIRST + b"Transfer-Encoding: identity\r\nContent-Length: 13\r\n\r\n" + BODY,
    "a bare LF in a chunk's border": FIRST + b"Transfer-Encoding: chunked\r\n\r\nd\n" + BODY + b"\r\n0\r\n\r\n",
    "a bare LF in an extension": FIRST + b"Transfer-Encoding: chunked\r\n\r\nd;a\n" + BODY + b"\r\n0\r\n\r\n",
    "a quote without end in an extension": FIRST + b'Transfer-Encoding: chunked\r\n\r\nd;a="\r\n' + BODY + b"\r\n0\r\n\r\n",
    "a space behind a chunk's size": FIRST + b"Transfer-Encoding: chunked\r\n\r\nd \r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk's size with 0x": FIRST + b"Transfer-Encoding: chunked\r\n\r\n0xd\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk's size below zero": FIRST + b"Transfer-Encoding: chunked\r\n\r\n-d\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk's size that overflows": FIRST + b"Transfer-Encoding: chunked\r\n\r\n1000000000000000d\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk longer than its size": FIRST + b"Transfer-Encoding: chunked\r\n\r\nc\r\n" + BODY + b"\r\n0\r\n\r\n",
    "bare LFs": FIRST.replace(b"\r\n", b"\n") + b"Content-Length: 13\n\n" + BODY,
    "one bare LF": FIRST + b"X: a\nContent-Length: 13\r\n\r\n" + BODY,
    "a bare CR": FIRST + b"X: a\rContent-Length: 13\r\n\r\n" + BODY,
    "a bare LF at the end of the head": FIRST + b"Content-Length: 13\r\n\n" + BODY,
    "NUL in a name": FIRST + b"X\x00: a\r\nContent-Length: 13\r\n\r\n" + BODY,
    "NUL in a value": FIRST + b"X: \x00\r\nContent-Length: 13\r\n\r\n" + BODY,
    "a control character in a value": FIRST + b"X: \x01\r\nContent-Length: 13\r\n\r\n" + BODY,
    "no name": FIRST + b": a\r\nContent-Length: 13\r\n\r\n" + BODY,
    "no colon": FIRST + b"X\r\nContent-Length: 13\r\n\r\n" + BODY,
    "HTTP/0.9": b"GET /v1/assistants\r\n\r\n",
    "HTTP/1.2": b"GET /v1/assistants HTTP/1.2\r\n\r\n",
    "HTTP/2.0": b"GET /v1/assistants HTTP/2.0\r\n\r\n",
    "a method in small letters": b"get /v1/assistants HTTP/1.1\r\n\r\n",
    "no method at all": b"GETX /v1/assistants HTTP/1.1\r\n\r\n",
    "tabulators in the request line": b"GET\t/v1/assistants\tHTTP/1.1\r\n\r\n",
    "CONNECT": b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "another protocol with a body": FIRST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN),
    "another protocol with chunks": FIRST + b"Connection: Upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
}


@pytest.mark.parametrize("step", STEPS)
async def test_an_ambiguous_request_ends_its_connection(step: str, server: str, database: Path) -> None:
    for name, request in REFUSED.items():
        async with connected(server) as connection:
            await send(connection, step, request, HIDDEN)

            assert await answers_of(connection) == [400], name
            assert await connection.is_closed_by_the_server(), name
            assert count_threads(database) == 0, name


UNDERSTOOD = {
    "a length": (FIRST + b"Content-Length: 13\r\n\r\n" + BODY, [200, 200]),
    "spaces around a length": (FIRST + b"Content-Length:  13 \r\n\r\n" + BODY, [200, 200]),
    "chunks": (FIRST + b"Transfer-Encoding: Chunked\r\n\r\n" + CHUNKED, [200, 200]),
    "an extension": (FIRST + b"Transfer-Encoding: chunked\r\n\r\nd;a=b\r\n" + BODY + b"\r\n0\r\n\r\n", [200, 200]),
    "zeros before a size": (FIRST + b"Transfer-Encoding: chunked\r\n\r\n0000d\r\n" + BODY + b"\r\n0\r\n\r\n", [200, 200]),
    "empty lines between": (b"\r\n\r\n" + FIRST + b"Content-Length: 13\r\n\r\n" + BODY + b"\r\n", [200, 200]),
    "a request in the body": (FIRST + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, [400, 200]),
    "a body where none belongs": (b"GET /health HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, [200, 200]),
    "coded chunks": (FIRST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED, [400, 200]),
    "a name with an underscore": (b"GET /health HTTP/1.1\r\nContent_Length: 100\r\n\r\n", [200, 200]),
    "the absolute form": (b"GET http://other.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n", [200, 200]),
    "the end is announced": (FIRST + b"Connection: close\r\nContent-Length: 13\r\n\r\n" + BODY, [200]),
    "an old client": (b"GET /health HTTP/1.0\r\n\r\n", [200]),
    "an old client with chunks": (FIRST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED, [200]),
    "another protocol": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", [200]),
}


@pytest.mark.parametrize("step", STEPS)
async def test_what_is_beyond_doubt_is_answered_once_each(step: str, server: str, database: Path) -> None:
    carried_out = 0
    for name, (request, statuses) in UNDERSTOOD.items():
        async with connected(server) as connection:
            await send(connection, step, request, HIDDEN_AND_LAST)

            assert await answers_of(connection) == statuses, name
            carried_out += len(statuses) - 1
            assert count_threads(database) == carried_out, name


async def test_trailers_are_no_headers(connection: Connection, http: aiohttp.ClientSession) -> None:
    """They may not stand in the place of what a proxy in front has looked at."""
    head = FIRST + b"Sec-Fetch-Site: cross-site\r\nTransfer-Encoding: chunked\r\n\r\n"
    await connection.send(head + CHUNKED[:-2] + b"Sec-Fetch-Site: same-origin\r\nAuthorization: Bearer x\r\n\r\n")

    assert (await connection.answer()).status == 403
    async with http.get("/v1/assistants") as response:
        assert (await response.json())["data"] == []


async def test_what_goes_wrong_behind_a_request_does_not_become_its_answer(connection: Connection, database: Path) -> None:
    await connection.send(HIDDEN + HIDDEN + b"\x00garbage\r\n\r\n" + HIDDEN)

    assert await answers_of(connection) == [200, 200]
    assert await connection.is_closed_by_the_server()
    assert count_threads(database) == 2


async def test_a_stream_is_not_broken_into_by_a_refusal(connection: Connection, http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/assistants", json={"model": "m"}) as response:
        assistant = (await response.json())["id"]
    body = b'{"assistant_id":"%b","stream":true,"thread":{"messages":[{"role":"user","content":"stall"}]}}' % assistant.encode()
    await connection.send(b"POST /v1/threads/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    async with asyncio.timeout(10):
        received = await connection._reader.readuntil(b"event: thread.message.delta")
    await connection.send(b"\x00garbage\r\n\r\n")

    assert await answers_of(connection) == []
    assert received.count(b"HTTP/1.1 ") == 1


async def test_the_rest_of_a_body_that_was_refused_is_answered_no_more(connection: Connection) -> None:
    head = b"POST /v1/unknown HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    await connection.send(head + b"2\r\n{}\r\n")
    assert (await connection.answer()).status == 404
    await connection.send(b"no chunk" + HIDDEN)

    assert await answers_of(connection) == []
    assert await connection.is_closed_by_the_server()


# ---- numbers -----------------------------------------------------------------------------------------------------------------------


def with_headers(number: int) -> bytes:
    return b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % place for place in range(number)) + b"\r\n"


async def test_so_many_headers_and_no_more(connection: Connection) -> None:
    await connection.send(with_headers(HEADERS_MAX))
    assert (await connection.answer()).status == 200
    await connection.send(with_headers(HEADERS_MAX + 1) + HIDDEN)
    answer = await connection.answer()

    assert (answer.status, checked_error(answer.body)["code"]) == (431, "headers_too_large")
    assert await connection.is_closed_by_the_server()


@pytest.mark.parametrize("border", [b"X: " + b"y" * 1000, b"X" * 1000])
async def test_trailers_without_an_end_are_refused(border: bytes, connection: Connection, settings: Settings) -> None:
    await connection.send(FIRST + b"Transfer-Encoding: chunked\r\n\r\nd\r\n" + BODY + b"\r\n0\r\n")
    with pytest.raises(ConnectionError):
        await send_without_end(connection, border + (b"\r\n" if b":" in border else b""), 20 * settings.head_bytes_max)

    assert await connection.is_closed_by_the_server()


async def test_extensions_without_an_end_are_refused(connection: Connection, settings: Settings) -> None:
    await connection.send(FIRST + b"Transfer-Encoding: chunked\r\n\r\n")
    await asyncio.sleep(0.05)
    with pytest.raises(ConnectionError):
        await send_without_end(connection, b"1;" + b"x" * 1000 + b"\r\n \r\n", 20 * settings.head_bytes_max)

    assert await connection.is_closed_by_the_server()


@pytest.mark.parametrize("number", [PIPELINED_MAX, 50 * PIPELINED_MAX])
async def test_requests_may_be_sent_ahead_up_to_a_limit(number: int, connection: Connection, http: aiohttp.ClientSession) -> None:
    await connection.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * number)
    statuses = await answers_of(connection)

    assert statuses == [200] * min(number, PIPELINED_MAX + 1)
    async with http.get("/health") as response:
        assert response.status == 200
