"""A connection is closed when it has been idle for long, and never while it is in use."""

import asyncio
import dataclasses

import pytest

from mini_assistant.settings import Settings

IDLE_SECONDS = 1
GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF_A_POST = b"POST /v1/threads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return dataclasses.replace(settings, idle_connection_seconds=IDLE_SECONDS)


async def opened(server: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def assert_answered(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
    assert head.startswith(b"HTTP/1.1 200 ")


async def assert_closed(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(10):
        assert await reader.read() == b""


@pytest.mark.parametrize("sent", [b"", b"GET /hea"], ids=["nothing", "half a head"])
async def test_a_client_that_asks_nothing_is_sent_away(sent: bytes, server: str) -> None:
    reader, writer = await opened(server)
    writer.write(sent)

    await assert_closed(reader)
    writer.close()


async def test_an_idle_connection_is_closed_after_its_last_answer(server: str) -> None:
    reader, writer = await opened(server)
    for _ in range(4):
        await asyncio.sleep(IDLE_SECONDS * 0.4)  # together longer than the limit
        writer.write(GET_HEALTH)
        await assert_answered(reader)

    await assert_closed(reader)
    writer.close()


async def test_a_request_that_takes_longer_than_the_limit_is_answered(server: str) -> None:
    reader, writer = await opened(server)
    writer.write(HALF_A_POST)
    await asyncio.sleep(IDLE_SECONDS * 2.5)
    writer.write(b"}")

    await assert_answered(reader)
    await assert_closed(reader)
    writer.close()


async def test_requests_in_one_packet_leave_the_connection_open(server: str) -> None:
    reader, writer = await opened(server)
    writer.write(GET_HEALTH * 3)
    for _ in range(3):
        await assert_answered(reader)
    writer.write(GET_HEALTH)

    await assert_answered(reader)
    writer.close()
