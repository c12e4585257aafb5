"""The least that a relay can do, as the bound for what a token costs: two sockets, one decode, one template.

It answers every request with the stream of a chat endpoint, framed as the deltas of a message. It keeps nothing, knows no runs and
survives nothing.
"""

import asyncio
import sys
from urllib.parse import urlsplit

import msgspec
import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_DELTA = (
    b'event: thread.message.delta\ndata: {"id":"msg_abcdefghijklmnopqrstuvwx","object":"thread.message.delta",'
    b'"delta":{"content":[{"index":0,"type":"text","text":{"value":%b}}]}}\n\n'
)
_END = b"event: done\ndata: [DONE]\n\n"


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice]


_decode = msgspec.json.Decoder(_Chunk).decode
_encode = msgspec.json.encode


class _Upstream(asyncio.Protocol):
    """The endpoint's answer on its way to the client."""

    def __init__(self, request: bytes, client: asyncio.Transport) -> None:
        self._request = request
        self._client = client
        self._write = client.write
        self._rest = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._client.is_closing():
            self._transport.close()
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        frames = [self._frame(line[6:]) for line in lines if line.startswith(b"data: ")]
        if frames:
            body = b"".join(frames)
            self._write(b"%x\r\n%b\r\n" % (len(body), body))

    def _frame(self, data: bytes) -> bytes:
        if data == b"[DONE]":
            return _END
        choices = _decode(data).choices
        return _DELTA % _encode(choices[0].delta.content or "") if choices else b""


class _Client(asyncio.Protocol):
    """A client that sends each request in one segment."""

    def __init__(self, endpoint: str) -> None:
        self._url = urlsplit(endpoint)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._task: asyncio.Task[object] | None = None

    def data_received(self, data: bytes) -> None:
        self._transport.write(_HEAD)
        connecting = asyncio.get_running_loop().create_connection(
            lambda: _Upstream(data, self._transport), self._url.hostname, self._url.port
        )
        self._task = asyncio.ensure_future(connecting)


async def _serve(endpoint: str) -> None:
    listener = await asyncio.get_running_loop().create_server(lambda: _Client(endpoint), "127.0.0.1", 0)
    sys.stdout.write(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await listener.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
