"""Connections that are fed with pieces of HTTP in any order: no 5xx, nothing in the log, nothing left behind, and others are answered."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import random
import re
import time

import psutil
import pytest

from mini_assistant.settings import Settings
from tests.component.test_http_limits import GET_HEALTH, connected, post, post_chunked

SECONDS = float(os.environ.get("FUZZ_SECONDS", "2"))
HEAVY_SECONDS = float(os.environ.get("FUZZ_SECONDS", "120"))
CLIENTS = 20
GROWTH_BYTES_MAX = 64 * 1024 * 1024

PIECES = [
    GET_HEALTH,
    post(b"{}"),
    post(b"{"),
    post(b"", length=5),
    post_chunked(b"{", b"}"),
    post_chunked(b"{", end=b""),
    b"POST /v1/files HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /v1/threads/runs HTTP/1.1\r\n",
    b"GET /v1/threads?limit=%ff&order=x HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"HEAD /v1/threads HTTP/1.1\r\n\r\n",
    b"Host: localhost\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\n",
    b"Idempotency-Key: a\r\n",
    b"Range: bytes=0-\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"5\r\n12345\r\n",
    b"0\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
    b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx',
    b"\x00",
    b"\xff\xfe",
    b"{}",
    b"a" * 2000,
]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return dataclasses.replace(settings, body_timeout_seconds=0.1, idle_connection_seconds=1, cors_origins=("https://app.example",))


async def client(server: str, chance: random.Random) -> bytes:
    """Send some pieces, whole or cut, take what comes for a moment, and leave; returns what has come."""
    received = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(3), connected(server) as connection:
            for _ in range(chance.randrange(1, 12)):
                piece = chance.choice(PIECES)
                await connection.send(piece[: chance.randrange(1, len(piece) + 1)] if chance.random() < 0.2 else piece)
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.choice([0, 0.05, 0.3])):
                    while piece := await connection._reader.read(65_536):
                        received += piece
    return received


async def fuzz(server: str, seconds: float, seed: int) -> int:
    chance, sent, give_up_at = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < give_up_at:
        answers = await asyncio.gather(*(client(server, random.Random(chance.random())) for _ in range(CLIENTS)))
        sent += CLIENTS
        statuses = [int(status) for received in answers for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", received)]
        assert [status for status in statuses if status >= 500] == [], f"seed {seed}"
        async with asyncio.timeout(10), connected(server) as honest:
            await honest.send(GET_HEALTH)
            assert (await honest.answer()).body == b'{"status":"ok"}', f"seed {seed}"
    return sent


async def assert_nothing_is_left() -> None:
    """No request is being answered for a client that has gone."""
    give_up_at = time.monotonic() + 10
    while (left := answering()) and time.monotonic() < give_up_at:  # noqa: ASYNC110 - polled
        await asyncio.sleep(0.05)
    assert left == []


def answering() -> list[str]:
    """Tasks of the server in this process that answer a request."""
    return [text for text in map(repr, asyncio.all_tasks()) if "RequestResponseCycle.run_asgi" in text]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server has to say about it. The parser of forms warns of each that is malformed."""
    told = [record for record in caplog.records if not record.name.startswith("python_multipart")]
    return [record.getMessage() for record in told if record.levelno >= logging.WARNING]


async def test_pieces_of_http_in_any_order(server: str, caplog: pytest.LogCaptureFixture) -> None:
    assert await fuzz(server, SECONDS, seed=1) >= CLIENTS
    await assert_nothing_is_left()
    assert warnings(caplog) == []


@pytest.mark.heavy
async def test_many_pieces_of_http_and_nothing_grows(server: str, caplog: pytest.LogCaptureFixture) -> None:
    seed = random.randrange(2**32)
    await fuzz(server, min(HEAVY_SECONDS, 10.0), seed)
    gc.collect()
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    await fuzz(server, HEAVY_SECONDS, seed + 1)
    await assert_nothing_is_left()
    gc.collect()

    assert warnings(caplog) == [], f"seed {seed}"
    assert process.memory_info().rss - before_bytes < GROWTH_BYTES_MAX
