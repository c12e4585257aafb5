"""A chat endpoint that costs next to nothing: prepared bytes, written on one timer to all answers at once.

The name of the model says how it answers: `burst-N` sends N tokens at once, `paced-N` sends N tokens at 50 a second, each in a
segment of its own. The text of a token is when it was sent, in milliseconds of CLOCK_MONOTONIC, seven digits.
"""

import asyncio
import sys
import time

import uvloop

TOKENS_PER_SECOND = 50
# Answers are spread over the time between two tokens, as independent models would be.
_SLOTS = 20
_TICK_SECONDS = 1 / TOKENS_PER_SECOND / _SLOTS
STAMP_DIGITS = 7

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_CHUNK = b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":0,"model":"bench","choices":[{"index":0,%b}]}\n\n'


def stamp() -> bytes:
    """Now, as the text of a token."""
    return b"%07d" % (time.monotonic_ns() // 1_000_000 % 10**STAMP_DIGITS)


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _token(text: bytes) -> bytes:
    return _chunked(_CHUNK % (b'"delta":{"content":"%b"},"finish_reason":null' % text))


_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}\n\n'
_END = _chunked(_CHUNK % b'"delta":{},"finish_reason":"stop"') + _chunked(_USAGE) + _chunked(b"data: [DONE]\n\n") + _chunked(b"")


class _Connection(asyncio.Protocol):
    """A client that asks for one answer at a time."""

    def __init__(self, pacer: "_Pacer") -> None:
        self._pacer = pacer
        self._received = b""
        self.tokens_left = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.write = transport.write

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if found and len(body) >= int(length):
            self._received = b""
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        manner, _, count = body.partition(b'"model":"')[2].partition(b'"')[0].partition(b"-")
        if manner == b"paced":
            self.write(_HEAD)
            self.tokens_left = int(count)
            self._pacer.add(self)
        else:
            self.write(_HEAD + _token(stamp()) * int(count) + _END)

    def send(self, token: bytes) -> bool:
        """Send a token on time; whether more are to come."""
        self.tokens_left -= 1
        if self.tokens_left <= 0:
            self.write(token + _END)
            return False
        self.write(token)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.tokens_left = 0
        self.write = lambda data: None


class _Pacer:
    """One timer for all paced answers; each has its slot in the time between two tokens."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: list[list[_Connection]] = [[] for _ in range(_SLOTS)]
        self._tick = 0
        self._added = 0
        self._began = time.monotonic()
        loop.call_soon(self._send_due)

    def add(self, connection: _Connection) -> None:
        self._slots[self._added % _SLOTS].append(connection)
        self._added += 1

    def _send_due(self) -> None:
        due = int((time.monotonic() - self._began) / _TICK_SECONDS)
        token = _token(stamp())
        while self._tick < due:
            place = self._tick % _SLOTS
            if self._slots[place]:
                self._slots[place] = [connection for connection in self._slots[place] if connection.send(token)]
            self._tick += 1
        self._loop.call_later(_TICK_SECONDS, self._send_due)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    pacer = _Pacer(loop)
    listener = await loop.create_server(lambda: _Connection(pacer), "127.0.0.1", 0)
    sys.stdout.write(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await listener.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
