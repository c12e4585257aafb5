"""A client's connection: uvicorn's, with a limit on the head of a request and our envelope for what is no HTTP at all.

The limit bounds the memory that a client without a key can take; uvicorn has one for its other parser only.
"""

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mini_assistant.errors import AppError, InvalidRequest
from mini_assistant.http.error_response import envelope, error_of

ABORT = "mini_assistant.abort"
"""The ASGI extension by which the API drops a connection together with what is still to be written to it."""

HEAD_BYTES_MAX = 128 * 1024
"""Request line and headers together. A head that arrives whole in one read is served whatever its size."""


class HeadTooLarge(AppError):
    """The request line and the headers are larger than `HEAD_BYTES_MAX`."""

    status = 431


class HttpConnection(HttpToolsProtocol):
    """One connection, from the first byte to the last."""

    _head_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # A reader that takes nothing holds what was written to it: closing in order would wait for that reader.
        self.scope["extensions"] = {ABORT: {"call": self.transport.abort}}

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A request gets its scope with the first byte, and its cycle with the last one of the head.
        if self.scope is None or (self.cycle is not None and self.cycle.scope is self.scope):  # pyright: ignore[reportUnnecessaryComparison]
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refuse(HeadTooLarge(f"The headers of your request are larger than {HEAD_BYTES_MAX} bytes.", code="headers_too_large"))

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(msg, code="invalid_http"))

    def _refuse(self, reason: AppError) -> None:
        body = envelope(error_of(reason))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[reason.status] + head + body)
        self.transport.close()
