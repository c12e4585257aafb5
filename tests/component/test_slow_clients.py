"""Clients that hold on to what they have: connections, heads, bodies, answers. Each is ended in time, and others are answered meanwhile."""

import asyncio
import contextlib
import dataclasses
import gc
import socket
from collections.abc import AsyncIterator

import aiohttp
import psutil
import pytest

from mini_assistant.settings import Settings
from tests.component.test_http_limits import GET_HEALTH, Connection, assert_refused, connected, post, post_chunked

IDLE_SECONDS = 1
CONNECTIONS_MAX = 30


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return dataclasses.replace(
        settings,
        idle_connection_seconds=IDLE_SECONDS,
        connections_max=CONNECTIONS_MAX,
        body_timeout_seconds=0.4,
        body_bytes_per_second_min=1000,
    )


@pytest.fixture
async def connection(server: str) -> AsyncIterator[Connection]:
    async with connected(server) as connection:
        yield connection


async def is_served(server: str) -> bool:
    async with connected(server) as client:
        await client.send(GET_HEALTH)
        return (await client.answer()).status == 200


async def drip(connection: Connection, piece: bytes) -> None:
    """Send the same again and again, a little at a time, until the server has closed the connection."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            while True:
                await connection.send(piece)
                await asyncio.sleep(0.05)


# ---- heads and bodies --------------------------------------------------------------------------------------------------------------


async def test_a_head_that_drips_is_given_up(connection: Connection, server: str) -> None:
    await connection.send(b"GET /health HTTP/1.1\r\n")
    await drip(connection, b"X: y\r\n")

    assert await is_served(server)


async def test_empty_lines_that_drip_are_given_up(connection: Connection, server: str) -> None:
    await drip(connection, b"\r\n")

    assert await is_served(server)


@pytest.mark.parametrize(
    ("start", "piece"), [(post(length=1_000_000), b" "), (post_chunked(b"{", end=b""), b"1\r\n \r\n")], ids=["a length", "chunks"]
)
async def test_a_body_that_drips_is_refused(start: bytes, piece: bytes, connection: Connection) -> None:
    await connection.send(start)
    dripping = asyncio.create_task(drip(connection, piece))
    try:
        assert_refused(await connection.answer(), 400, "body_timeout")
        assert await connection.is_closed_by_the_server()
    finally:
        dripping.cancel()


async def test_a_form_that_drips_is_refused_and_leaves_nothing(connection: Connection, http: aiohttp.ClientSession) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    head = b"Content-Type: multipart/form-data; boundary=b\r\n"
    await connection.send(post(form, length=1_000_000, headers=head, path=b"/v1/files"))
    dripping = asyncio.create_task(drip(connection, b" "))
    try:
        assert_refused(await connection.answer(), 400, "body_timeout")
    finally:
        dripping.cancel()
    async with http.get("/v1/files") as response:
        assert (await response.json())["data"] == []


async def test_a_body_that_comes_fast_enough_may_take_long(connection: Connection) -> None:
    await connection.send(post(length=20_000))
    for number in range(20):
        await asyncio.sleep(0.05)  # together far longer than the longest pause
        await connection.send((b"{" if number == 0 else b" ") + b" " * 998 + (b"}" if number == 19 else b" "))

    assert (await connection.answer()).status == 200


# ---- connections -------------------------------------------------------------------------------------------------------------------


async def test_more_connections_than_the_limit_are_closed_at_once(server: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connected(server)) for _ in range(CONNECTIONS_MAX)]
        await held[-1].send(GET_HEALTH)
        assert (await held[-1].answer()).status == 200, "all of them are there"
        for _ in range(50):
            async with connected(server) as another:
                assert await another.is_closed_by_the_server()
        await held[0].send(GET_HEALTH)
        assert (await held[0].answer()).status == 200, "those who were there are served"
        assert await held[1].is_closed_by_the_server(), "who asks nothing does not hold his place for ever"

    assert await is_served(server)


async def test_a_place_is_free_again_when_a_client_leaves(server: str) -> None:
    for _ in range(5):
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(CONNECTIONS_MAX):
                await stack.enter_async_context(connected(server))
        async with asyncio.timeout(10):
            while True:  # the server learns of it a moment later
                async with connected(server) as client:
                    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                        await client.send(GET_HEALTH)
                        if (await client.answer()).status == 200:
                            break
                await asyncio.sleep(0.02)


# ---- answers that nobody takes -----------------------------------------------------------------------------------------------------


async def test_an_answer_that_is_not_taken_does_not_hold_the_connection(server: str, settings: Settings) -> None:
    """Also when it needs no key: the document of the API is large, and asked for many times in one packet."""
    async with connected(server) as client:
        client._writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client._writer.transport.pause_reading()
        await client.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * settings.pipelined_requests_max)
        process = psutil.Process()
        async with asyncio.timeout(20):
            while established(process, server) == 0:  # noqa: ASYNC110 - polled
                await asyncio.sleep(0.02)
            while established(process, server) > 0:  # noqa: ASYNC110 - polled
                await asyncio.sleep(0.05)

    assert await is_served(server)


def established(process: psutil.Process, server: str) -> int:
    """Connections of the server to clients; it lives in this process."""
    port = int(server.rsplit(":", 1)[1])
    return sum(found.laddr.port == port and found.status == psutil.CONN_ESTABLISHED for found in process.net_connections("tcp"))


async def test_a_stream_with_requests_behind_it_ends_when_its_reader_leaves(server: str, http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/assistants", json={"model": "m"}) as response:
        assistant = (await response.json())["id"]
    body = b'{"assistant_id":"%b","stream":true,"thread":{"messages":[{"role":"user","content":"stall"}]}}' % assistant.encode()
    before = len(asyncio.all_tasks())
    for _ in range(5):
        async with connected(server) as client:
            await client.send(post(body, path=b"/v1/threads/runs") + GET_HEALTH * 3)
            async with asyncio.timeout(10):
                await client._reader.readuntil(b"event: thread.message.delta")
    async with asyncio.timeout(10):
        while streams() > 0:  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.02)

    assert len(asyncio.all_tasks()) < before + 50
    assert await is_served(server)


def streams() -> int:
    """Tasks of the server in this process that send a stream."""
    return sum("RequestResponseCycle.run_asgi" in repr(task) for task in asyncio.all_tasks())


@pytest.mark.heavy
async def test_nothing_grows_with_clients_that_misbehave(server: str) -> None:
    async def misbehave(number: int) -> None:
        async with connected(server) as client:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await client.send(
                    [b"GET /hea", b"\x00\r\n\r\n", post(b"{", length=50), GET_HEALTH * 20, post_chunked(b"{", end=b"zz")][number % 5]
                )
                if number % 2:
                    await client.answer()

    async def round_of_clients() -> None:
        for start in range(0, 40, 20):
            await asyncio.gather(*(misbehave(start + number) for number in range(20)))
        await asyncio.sleep(0.2)
        gc.collect()

    await round_of_clients()
    process = psutil.Process()
    tasks, memory_bytes, files = len(asyncio.all_tasks()), process.memory_info().rss, process.num_fds()
    for _ in range(3):
        await round_of_clients()

    assert len(asyncio.all_tasks()) <= tasks + 5
    assert process.num_fds() <= files + 10
    assert process.memory_info().rss - memory_bytes < 32 * 1024 * 1024
