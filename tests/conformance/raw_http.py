"""Plain requests for what the SDK would not send, with every body checked, and event streams read frame by frame."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp

from tests.conformance.strictness import check_body, check_error, check_event

DONE = "done"


class Reply(NamedTuple):
    """An answer. body: the decoded JSON; of an error, what is inside the envelope."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Frame(NamedTuple):
    """An event of a stream. id: None where the stream carries none. data: decoded JSON, None for `done`."""

    id: str | None
    name: str
    data: Any


async def call(http: aiohttp.ClientSession, method: str, path: str, body: Any = None, **options: Any) -> Reply:
    """Send a request and check its answer. body: sent as JSON; bytes as they are."""
    if isinstance(body, bytes):
        options["data"] = body
    elif body is not None:
        options["json"] = body
    async with http.request(method, path, **options) as response:
        raw = await response.read()
        assert response.headers["Content-Type"] == "application/json"
        assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
        assert response.headers["openai-processing-ms"].isdigit()
        checked = check_body(raw) if response.status == 200 else check_error(raw)
        return Reply(response.status, response.headers, checked)


async def refused(http: aiohttp.ClientSession, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, str, Any, Any]:
    """Send a request that must fail; returns status, message, param and code."""
    reply = await call(http, method, path, body, **options)
    assert reply.status >= 400, reply.body
    return reply.status, reply.body["message"], reply.body["param"], reply.body["code"]


@asynccontextmanager
async def open_stream(
    http: aiohttp.ClientSession, method: str, path: str, body: Any = None, **options: Any
) -> AsyncIterator["FrameReader"]:
    """Open an event stream; it is closed on the way out, read to its end or not."""
    async with http.request(method, path, json=body, **options) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert re.fullmatch("req_[0-9a-f]{32}", response.headers["x-request-id"])
        yield FrameReader(response)


async def read_stream(http: aiohttp.ClientSession, method: str, path: str, body: Any = None, **options: Any) -> list[Frame]:
    """All events of a stream, `done` among them."""
    async with open_stream(http, method, path, body, **options) as frames:
        return [frame async for frame in frames]


class FrameReader:
    """Iterates over the frames of a stream; `pings` counts the heart-beats between them, `lines` is what has been read."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.pings = 0
        self.lines: list[str] = []

    async def __aiter__(self) -> AsyncIterator[Frame]:
        lines: list[str] = []
        async for line in self._lines():
            if line == ": ping":
                assert not lines, "a heart-beat inside a frame"
                self.pings += 1
            elif line:
                lines.append(line)
            else:
                yield _frame(lines)
                lines = []
        assert not lines, "the stream ends inside a frame"

    async def _lines(self) -> AsyncIterator[str]:
        """Lines without their ends. The library's own reader refuses long ones."""
        pieces: list[bytes] = []
        async for chunk in self._response.content.iter_any():
            *whole, rest = chunk.split(b"\n")
            for end in whole:
                line = b"".join([*pieces, end]).decode()
                pieces = []
                self.lines.append(line)
                yield line
            pieces.append(rest)
        assert not b"".join(pieces), "the stream ends inside a line"


def _frame(lines: list[str]) -> Frame:
    assert lines, "a blank line without a frame"
    fields = [line.split(": ", 1) for line in lines]
    names = [name for name, _ in fields]
    assert names in (["event", "data"], ["id", "event", "data"])
    event, data = fields[-2][1], fields[-1][1]
    frame_id = fields[0][1] if names[0] == "id" else None
    if event == DONE:
        assert (frame_id, data) == (None, "[DONE]")
        return Frame(None, event, None)
    decoded = check_event(event, data)
    assert data == json.dumps(decoded, separators=(",", ":"), ensure_ascii=False), "data is not compact JSON"
    return Frame(frame_id, event, decoded)


def names(frames: list[Frame]) -> list[str]:
    """The names of the events in their order, with a run of deltas counted once."""
    found: list[str] = []
    for frame in frames:
        if not (frame.name.endswith(".delta") and found and found[-1] == frame.name):
            found.append(frame.name)
    return found
