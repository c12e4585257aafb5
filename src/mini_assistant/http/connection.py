"""A client's connection: uvicorn's, with a limit on the head of a request and our envelope for what is no HTTP at all.

The limit bounds the memory that a client without a key can take; uvicorn has one for its other parser only. And a connection has one
timer for its idle time: uvicorn sets one with each answer and takes it back with the next request, which costs more than all that the
API does to find out what is asked.
"""

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mini_assistant.errors import AppError, InvalidRequest
from mini_assistant.http.error_response import envelope, error_of

ABORT = "mini_assistant.abort"
"""The entry of a request's `state` by which the API drops the connection together with what is still to be written to it."""


class HeadTooLarge(AppError):
    """The request line and the headers are larger than `head_bytes_max`."""

    status = 431


class HttpConnection(HttpToolsProtocol):
    """One connection, from the first byte to the last.

    head_bytes_max: of request line and headers together. A head that arrives whole in one read is served whatever its size.
    """

    head_bytes_max: ClassVar[int]
    _head_bytes = 0
    _idle_since = 0.0

    @classmethod
    def with_limit(cls, head_bytes_max: int) -> "type[HttpConnection]":
        """The class of connections with this limit: uvicorn makes the connections itself and takes nothing but a class."""
        return type("HttpConnection", (cls,), {"head_bytes_max": head_bytes_max})

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        # A reader that takes nothing holds what was written to it: closing in order would wait for that reader.
        self.app_state = {**self.app_state, ABORT: transport.abort}
        self._idle_since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()

    def on_response_complete(self) -> None:
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection when it has been idle for long; a request whose head takes as long to arrive ends with it."""
        is_busy = self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]
        left_seconds = self.timeout_keep_alive if is_busy else self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_seconds > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left_seconds, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _unset_keepalive_if_required(self) -> None:
        """The one timer goes on: it looks itself whether the connection has been idle."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if data.endswith(b"\r\n\r\n"):  # nearly every request without a body; no head goes on behind these bytes
            self._head_bytes = 0
            return
        # A request gets its scope with the first byte, and its cycle with the last one of the head.
        if self.scope is None or (self.cycle is not None and self.cycle.scope is self.scope):  # pyright: ignore[reportUnnecessaryComparison]
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        limit = self.head_bytes_max
        if self._head_bytes > limit and not self.transport.is_closing():
            self._refuse(HeadTooLarge(f"The headers of your request are larger than {limit} bytes.", code="headers_too_large"))

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(msg, code="invalid_http"))

    def _refuse(self, reason: AppError) -> None:
        body = envelope(error_of(reason))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[reason.status] + head + body)
        self.transport.close()
