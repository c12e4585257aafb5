"""CPU of finding out who makes a request, with a thousand keys in the database: the usual path, from memory."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.report import Row, at_most, median
from bench.scale import Scale
from mini_assistant.app import open_services
from mini_assistant.http.auth import Authenticator, check_scope
from mini_assistant.projects.keys import insert_key, new_key
from mini_assistant.settings import Settings

TARGET_US = 20.0
_KEYS = 1000
_CALLS_PER_ROUND_SECOND = 100_000


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """One row: a request with one of the keys, which all have been used before."""
    with tempfile.TemporaryDirectory() as folder:
        # A process forgets what it has read of keys in a while; within a measurement it must not.
        settings = Settings(data_dir=Path(folder), openai_base_url="http://127.0.0.1:1/v1", sandbox="none", key_cache_seconds=3600.0)
        async with open_services(settings) as services:
            made = [new_key(f"project-{number % 50}", ("read", "write"), services.now()) for number in range(_KEYS)]
            for key in made:
                await services.db.write(insert_key(key.record), durable=False)
            authenticator = Authenticator(services)
            heads = [_headers(key.key) for key in made]
            first_us = median([await _first_use_us(authenticator, head) for head in heads])
            cpu_us = median(
                [await _cpu_us(authenticator, heads, int(_CALLS_PER_ROUND_SECOND * scale.round_seconds)) for _ in range(scale.rounds)]
            )
    yield at_most("who asks, 1,000 keys", cpu_us, TARGET_US, unit=" us", note=" CPU", bound=f"{first_us:.0f} us, read from the database")


def _headers(key: str) -> dict[bytes, bytes]:
    """What an official SDK sends, as the API sees it."""
    return {
        b"host": b"127.0.0.1:8000",
        b"accept": b"application/json",
        b"content-type": b"application/json",
        b"user-agent": b"AsyncOpenAI/Python 2.0.0",
        b"authorization": f"Bearer {key}".encode(),
        b"openai-beta": b"assistants=v2",
    }


async def _first_use_us(authenticator: Authenticator, headers: dict[bytes, bytes]) -> float:
    began = time.perf_counter()
    await authenticator.caller_of(headers, "/threads")
    return (time.perf_counter() - began) * 1e6


async def _cpu_us(authenticator: Authenticator, heads: list[dict[bytes, bytes]], calls: int) -> float:
    await asyncio.sleep(0)
    began = time.process_time()
    for number in range(calls):
        check_scope(await authenticator.caller_of(heads[number % _KEYS], "/threads"), "read")
    return (time.process_time() - began) / calls * 1e6
