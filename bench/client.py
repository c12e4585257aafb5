"""HTTP clients that cost little beside what they measure: hand-written requests on kept connections, no parsing beyond need."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from bench.endpoint import STAMP_DIGITS

_TEXT = b'"value":"'
_DELTA = b"event: thread.message.delta\n"
_DONE = b"data: [DONE]"


def request(method: str, path: str, body: object = None) -> bytes:
    """The bytes of a request. body: sent as JSON when not None."""
    content = b"" if body is None else msgspec.json.encode(body)
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


class Connection(asyncio.Protocol):
    """A kept connection on which one request at a time is asked and answered whole."""

    def __init__(self) -> None:
        self._missing_bytes = 0
        self._parts: list[bytes] = []
        self._on_answer: Callable[[bytes], None] = lambda body: None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def send(self, data: bytes, on_answer: Callable[[bytes], None]) -> None:
        """Send a request; `on_answer` gets the body of a 200. Another status is a fault of the benchmark."""
        self._on_answer = on_answer
        self._transport.write(data)

    async def ask(self, data: bytes) -> Any:
        """Send a request and give its answer, decoded."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.send(data, answer.set_result)
        await self.or_failed(answer)
        return msgspec.json.decode(answer.result())

    async def or_failed(self, future: "asyncio.Future[Any]") -> None:
        """Wait until the future is done. Raises ConnectionError when the connection is lost first."""
        await asyncio.wait([future, self.failed], return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            self.failed.result()

    def data_received(self, data: bytes) -> None:
        if not self._parts:
            end = data.index(b"\r\n\r\n") + 4
            at = data.index(b"content-length: ") + 16
            if data[9:12] != b"200":
                raise RuntimeError(f"unexpected answer: {data[:1000]!r}")
            self._missing_bytes = end + int(data[at : data.index(b"\r", at)])
        self._parts.append(data)
        self._missing_bytes -= len(data)
        if self._missing_bytes == 0:
            whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts = []
            self._on_answer(whole[whole.index(b"\r\n\r\n") + 4 :])

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed.set_exception(exc or ConnectionError("the server has closed the connection"))
        self.failed.exception()  # looked at: after the last answer nobody waits for it

    def close(self) -> None:
        self._transport.close()


async def connect(address: str) -> Connection:
    """A kept connection to a server."""
    url = urlsplit(address)
    _, connection = await asyncio.get_running_loop().create_connection(Connection, url.hostname, url.port)
    return connection


class Load(NamedTuple):
    """What clients that never pause have got: answers in a time, and how long each took, in seconds and sorted."""

    answers: int
    seconds: float
    latencies_seconds: list[float]

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds


async def load(address: str, requests: Sequence[bytes], seconds: float) -> Load:
    """Send each request again and again on a connection of its own."""
    connections = [await connect(address) for _ in requests]
    latencies: list[float] = []
    began = time.perf_counter()
    try:
        await asyncio.gather(
            *(_repeat(connection, data, began + seconds, latencies) for connection, data in zip(connections, requests, strict=True))
        )
    finally:
        for connection in connections:
            connection.close()
    return Load(len(latencies), time.perf_counter() - began, sorted(latencies))


async def _repeat(connection: Connection, data: bytes, until: float, latencies: list[float]) -> None:
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    sent = time.perf_counter()

    def again(_body: bytes) -> None:
        nonlocal sent
        now = time.perf_counter()
        latencies.append(now - sent)
        if now < until:
            sent = now
            connection.send(data, again)
        else:
            ended.set_result(None)

    connection.send(data, again)
    await connection.or_failed(ended)


class StreamReader(asyncio.Protocol):
    """Reads one streamed run: counts tokens, and how late they are. `ended` is done at the end of the stream."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._rest = b""
        self.tokens = 0
        self.delays_ms: list[int] = []
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(self._data)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        end = data.rfind(b"\n\n") + 2
        tokens = data.count(_DELTA, 0, end)
        if tokens:
            self.tokens += tokens
            at = data.find(_TEXT) + len(_TEXT)
            sent = data[at : at + STAMP_DIGITS]
            if sent.isdigit():  # other endpoints write words
                self.delays_ms.append((time.monotonic_ns() // 1_000_000 - int(sent)) % 10**STAMP_DIGITS)
            if not self.began.done():
                self.began.set_result(None)
        if data.find(_DONE) >= 0 and not self.ended.done():
            self.ended.set_result(None)
        self._rest = data[end:] if end < len(data) and end > 1 else b""

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self.began, self.ended):
            if not future.done():
                future.set_exception(ConnectionError("the stream broke"))
                future.exception()  # looked at, so that nobody is told twice

    def close(self) -> None:
        self._transport.close()


async def open_stream(address: str, data: bytes) -> StreamReader:
    """Ask for a streamed run on a connection of its own."""
    url = urlsplit(address)
    _, reader = await asyncio.get_running_loop().create_connection(lambda: StreamReader(data), url.hostname, url.port)
    return reader
