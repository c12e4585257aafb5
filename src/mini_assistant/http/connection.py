"""A client's connection: uvicorn's, with limits on what one can send and hold, and our envelope for what is no HTTP at all.

The limits bound the memory and the time that a client without a key can take; uvicorn has one for its other parser only. Nothing is
answered twice or out of turn: what cannot be understood ends the connection behind the answers that are still to come, for whoever
stands between may see other borders of requests than we do. And a connection has one timer for its idle time: uvicorn sets one with
each answer and takes it back with the next request, which costs more than all that the API does to find out what is asked.
"""

import asyncio
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from mini_assistant.errors import AppError, InvalidRequest
from mini_assistant.http.error_response import envelope, error_of
from mini_assistant.settings import Settings

ABORT = "mini_assistant.abort"
"""The entry of a request's `state` by which the API drops the connection together with what is still to be written to it."""

# More than stands around a chunk of a body; what is more than that is extensions and trailers.
_CHUNK_BORDER_BYTES = 32


class HeadTooLarge(AppError):
    """The request line and the headers are larger than `head_bytes_max`, or there are more headers than `headers_max`."""

    status = 431


class HttpConnection(HttpToolsProtocol):
    """One connection, from the first byte to the last.

    settings: for `connections_max`, `head_bytes_max`, `headers_max` and `pipelined_requests_max`. A head that arrives whole in one read is
    served whatever its size.
    """

    settings: ClassVar[Settings]
    _head_bytes = 0
    # Of the body that is being received: what of the last bytes was content, and all so far that was neither that nor borders of chunks.
    _content_bytes = 0
    _extra_bytes = 0
    _unsent_bytes = 0
    _idle_since = 0.0
    # Nothing more is read; what is still to be answered is answered.
    _is_over = False
    # Why the parser was stopped, where it was not the parser itself that found a fault.
    _fault: AppError | None = None
    # The request that is being answered. Others wait behind it in `pipeline`; `cycle` is the last of them all.
    _running: RequestResponseCycle | None = None

    @classmethod
    def with_limits(cls, settings: Settings) -> "type[HttpConnection]":
        """The class of connections with these limits: uvicorn makes the connections itself and takes nothing but a class."""
        return type("HttpConnection", (cls,), {"settings": settings})

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if len(self.connections) >= self.settings.connections_max:
            self.transport, self._is_over = transport, True
            transport.abort()
            return
        super().connection_made(transport)
        # A reader that takes nothing holds what was written to it: closing in order would wait for that reader.
        self.app_state = {**self.app_state, ABORT: transport.abort}
        self._idle_since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._leave_running()
        self.pipeline.clear()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection when it has been idle for long; a request whose head takes as long to arrive ends with it.

        A client that has taken nothing of what is to be written since the last look is cut off: closing in order would wait for it.
        """
        unsent_bytes = self.transport.get_write_buffer_size()
        if 0 < unsent_bytes == self._unsent_bytes:
            self.transport.abort()
            return
        self._unsent_bytes = unsent_bytes
        is_busy = unsent_bytes > 0 or self._is_answering
        left_seconds = self.timeout_keep_alive if is_busy else self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_seconds > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left_seconds, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _unset_keepalive_if_required(self) -> None:
        """The one timer goes on: it looks itself whether the connection has been idle."""

    # ---- requests ------------------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_over or self.parser is None:
            return
        scope, is_in_body = self.scope, self._is_in_body
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing here changes to another protocol, and what follows may not be taken for a request: it is no HTTP to the parser.
            self._end_behind_answers()
            return
        except httptools.HttpParserError:
            self._refuse(self._fault or InvalidRequest("Invalid HTTP request received.", code="invalid_http"))
            return
        if is_in_body:
            extra_bytes = self._extra_bytes + len(data) - self._content_bytes
            self._extra_bytes = max(0, extra_bytes) if self.scope is scope else 0
            self._content_bytes = 0
            if self._extra_bytes > self.settings.head_bytes_max:
                self._refuse(self._head_too_large("What stands around the body"))
                return
        if data.endswith(b"\r\n\r\n"):  # nearly every request without a body; no head goes on behind these bytes
            self._head_bytes = 0
            return
        # A request gets its scope with the first byte, and its cycle with the last one of the head.
        if self.scope is None or (self.cycle is not None and self.cycle.scope is self.scope):  # pyright: ignore[reportUnnecessaryComparison]
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.settings.head_bytes_max:
            self._refuse(self._head_too_large("The head"))

    def on_headers_complete(self) -> None:
        """Begin to answer. An exception stops the parser, and `_fault` is what the client is told."""
        settings, parser = self.settings, self.parser
        assert parser is not None, "it is calling"
        if len(self.headers) > settings.headers_max:
            self._stop(HeadTooLarge(f"Your request has more than {settings.headers_max} headers.", code="headers_too_large"))
        if len(self.pipeline) >= settings.pipelined_requests_max:
            message = f"More than {settings.pipelined_requests_max} requests wait on this connection for their answers."
            self._stop(InvalidRequest(message, code="too_many_pipelined_requests"))
        if parser.get_http_version() not in ("1.1", "1.0"):
            self._stop(InvalidRequest("This server speaks HTTP/1.1.", code="invalid_http"))
        if parser.should_upgrade() and any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
            # The parser would not read that body, and would take it for the next request.
            self._stop(
                InvalidRequest("A request with a body cannot ask for another protocol: send it without `Upgrade`.", code="invalid_http")
            )
        super().on_headers_complete()
        # What comes behind a body is no header, and may not stand in the place of one.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        self._content_bytes += len(body) + _CHUNK_BORDER_BYTES
        super().on_body(body)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:  # no more is read as long as requests wait
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self.flow.resume_reading()
            self._idle_since = self.loop.time()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    @property
    def _is_in_body(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.more_body and cycle.scope is self.scope  # pyright: ignore[reportUnnecessaryComparison]

    # ---- refusals ------------------------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(msg, code="invalid_http"))

    def _head_too_large(self, what: str) -> HeadTooLarge:
        return HeadTooLarge(f"{what} of your request is larger than {self.settings.head_bytes_max} bytes.", code="headers_too_large")

    def _stop(self, fault: AppError) -> None:
        self._fault = fault
        raise ValueError(fault.message)

    def _refuse(self, fault: AppError) -> None:
        """End the connection: with an answer, unless the client would take it for the answer to another request."""
        if self._is_in_body:
            is_answered = self.cycle.response_started or self.cycle is not self._running
            self._is_over = True
            self._leave_running()
        elif self._is_answering:
            self._end_behind_answers()
            return
        else:
            is_answered = False
            self._is_over = True
        if not is_answered:
            body = envelope(error_of(fault))
            head = b"content-type: application/json\r\nx-content-type-options: nosniff\r\nconnection: close\r\n"
            self.transport.write(b"%bcontent-length: %d\r\n%b\r\n%b" % (STATUS_LINE[fault.status], len(body), head, body))
        self.transport.close()

    def _end_behind_answers(self) -> None:
        """Read no more, and close the connection when everything is answered."""
        self._is_over = True
        if self._is_answering:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
        else:
            self.transport.close()

    def _leave_running(self) -> None:
        """Tell the request that is being answered that nobody waits for it: uvicorn tells the last one only."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
