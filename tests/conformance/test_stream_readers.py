"""Readers that are slow, go away or lose what they read: the run and the other readers never notice."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai

from mini_assistant.models.script import Stall, Text, Wait
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.conformance.conversations import (
    CALL_WEATHER,
    WEATHER,
    answer_with,
    finished_run,
    messages_of,
    new_assistant,
    stopped,
    submit,
    text_of,
    thread_saying,
)
from tests.conformance.raw_http import call, names, open_stream, read_stream
from tests.conformance.server_settings import server_with

WAIT_SECONDS = 10
BIG_PIECE = "x" * 20_000
BIG_PIECES = 300


async def prepared(sdk: openai.AsyncOpenAI, text: str = "Hello") -> tuple[str, dict[str, Any]]:
    """The path that creates a run, and a body that asks for a stream."""
    assistant, thread = await new_assistant(sdk), await thread_saying(sdk, text)
    return f"/v1/threads/{thread.id}/runs", {"assistant_id": assistant.id, "stream": True}


@server_with(stream_ping_interval_seconds=0.05)
async def test_a_silent_stream_sends_comments_that_stand_between_events(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Wait(0.4), Text("At last."))
    path, body = await prepared(sdk)
    async with open_stream(http, "POST", path, body) as stream:
        frames = [frame async for frame in stream]
    # A comment has no blank line behind it: with one, some clients would read an empty event.
    assert stream.pings >= 2
    assert not any(line == ": ping" and not after for line, after in pairwise(stream.lines))
    assert names(frames)[-2:] == ["thread.run.completed", "done"]


async def test_a_run_goes_on_when_its_reader_leaves(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Text("one two three", delay_seconds=0.05))
    path, body = await prepared(sdk)
    async with open_stream(http, "POST", path, body) as stream:
        async for frame in stream:
            if frame.name == "thread.message.delta":
                break
    [run] = (await sdk.beta.threads.runs.list(path.split("/")[3])).data
    assert (await stopped(sdk, run)).status == "completed"
    assert [text_of(message) for message in await messages_of(sdk, run)] == ["one two three"]


async def test_a_run_goes_on_when_the_reader_of_the_sdk_leaves(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text("one two three", delay_seconds=0.05))
    assistant, thread = await new_assistant(sdk), await thread_saying(sdk, "Hello")
    async with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        async for _ in stream.text_deltas:
            break
    [run] = (await sdk.beta.threads.runs.list(thread.id)).data
    assert (await stopped(sdk, run)).status == "completed"


@asynccontextmanager
async def idle_connection(address: str, path: str) -> AsyncIterator[socket.socket]:
    """A connection that asks for a stream and then takes nothing."""
    place = urlsplit(address)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (place.hostname, place.port))
        await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
        yield connection


async def everything_from(connection: socket.socket) -> bytes:
    """What was sent on a connection until it ended, in whatever way."""
    pieces: list[bytes] = []
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while piece := await loop.sock_recv(connection, 1 << 20):
                pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


@server_with(stream_write_timeout_seconds=0.5, answer_characters_max=32_000_000, event_ring_bytes_max=64_000_000)
async def test_a_reader_that_takes_nothing_is_dropped_alone(
    server: str, sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Text([BIG_PIECE], repeat=BIG_PIECES), Wait(1.2), Text([" end"]))
    path, body = await prepared(sdk)
    made = await call(http, "POST", path, {**body, "stream": False})
    events = f"{path}/{made.body['id']}/events"
    async with idle_connection(server, events) as idle:
        frames = await read_stream(http, "GET", events)
        assert names(frames)[-2:] == ["thread.run.completed", "done"]
        assert sum(frame.name == "thread.message.delta" for frame in frames) == BIG_PIECES + 1
        sent = await everything_from(idle)
    assert b"event: done" not in sent
    assert len(sent) < BIG_PIECES * len(BIG_PIECE)


async def test_deleting_a_thread_ends_its_run_and_the_streams_of_it(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Text("As far as"), Stall())
    path, body = await prepared(sdk)
    thread_id = path.split("/")[3]
    async with asyncio.timeout(WAIT_SECONDS):
        async with open_stream(http, "POST", path, body) as stream:
            frames = []
            async for frame in stream:
                frames.append(frame)
                if frame.name == "thread.message.delta" and "far" in json.dumps(frame.data):
                    await sdk.beta.threads.delete(thread_id)
        await endpoint.wait_for_streams(0)
    assert [frame.name for frame in frames[-2:]] == ["error", "done"]
    assert frames[-2].data["code"] == "stream_interrupted"
    assert (await call(http, "GET", path)).status == 404
    assert (await call(http, "GET", f"{path}/{frames[0].data['id']}/events")).status == 404
    # The worker is not hurt.
    endpoint.script.rules.clear()
    assert (await finished_run(sdk)).status == "completed"


async def test_a_thread_can_be_deleted_while_its_run_waits_or_is_queued(sdk: openai.AsyncOpenAI) -> None:
    waiting = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER])
    await sdk.beta.threads.delete(waiting.thread_id)
    again = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER])
    await submit(sdk, again, "sun")
    await sdk.beta.threads.delete(again.thread_id)
    assert (await finished_run(sdk)).status == "completed"


async def test_a_message_may_be_deleted_while_it_is_written(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Text("one two three", delay_seconds=0.05))
    path, body = await prepared(sdk)
    deleted = False
    async with open_stream(http, "POST", path, body) as stream:
        frames = []
        async for frame in stream:
            frames.append(frame)
            if frame.name == "thread.message.delta" and not deleted:
                await sdk.beta.threads.messages.delete(frame.data["id"], thread_id=path.split("/")[3])
                deleted = True
    assert names(frames)[-2:] == ["thread.run.completed", "done"]
    assert [text_of(message) for message in (await sdk.beta.threads.messages.list(path.split("/")[3])).data] == ["Hello"]
