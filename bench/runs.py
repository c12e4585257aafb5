"""Streamed runs as the measurements start them."""

import asyncio
import time
from collections.abc import Iterable

from bench.client import StreamReader, connect, open_stream, request

_OPENED_AT_A_TIME = 5
OPEN_TIMEOUT_SECONDS = 60.0


async def run_request(address: str, model: str) -> bytes:
    """A request that makes a thread and runs an assistant of the model on it, streamed."""
    connection = await connect(address)
    assistant = await connection.ask(request("POST", "/v1/assistants", {"model": model}))
    connection.close()
    body = {"assistant_id": assistant["id"], "stream": True, "thread": {"messages": [{"role": "user", "content": "Hello"}]}}
    return request("POST", "/v1/threads/runs", body)


def chat_request(model: str) -> bytes:
    """The request that the server makes for such a run, to ask the endpoint or a bare relay directly."""
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    return request("POST", "/v1/chat/completions", body)


async def open_streams(address: str, data: bytes, count: int) -> list[StreamReader]:
    """Open streams, a few at a time; they have all brought a token when this returns."""
    readers: list[StreamReader] = []
    async with asyncio.timeout(OPEN_TIMEOUT_SECONDS):
        while len(readers) < count:
            opened = [await open_stream(address, data) for _ in range(min(_OPENED_AT_A_TIME, count - len(readers)))]
            await asyncio.gather(*(reader.began for reader in opened))
            readers += opened
    return readers


async def close_streams(readers: Iterable[StreamReader]) -> None:
    """Leave streams, and give the server the time to see it."""
    for reader in readers:
        reader.close()
    await asyncio.sleep(0.3)


async def streamed_seconds(address: str, data: bytes) -> float:
    """The time from sending a request to the end of its stream."""
    began = time.perf_counter()
    reader = await open_stream(address, data)
    async with asyncio.timeout(OPEN_TIMEOUT_SECONDS):
        await reader.ended
    taken = time.perf_counter() - began
    reader.close()
    return taken
