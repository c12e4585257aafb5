"""The one place where an error becomes an HTTP answer. Source: behaviour §1.4."""

import msgspec

from mini_assistant.errors import AppError


class ErrorBody(msgspec.Struct):
    """The inner object of the envelope."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct):
    """`{"error": {...}}`, the body of every 4xx and 5xx."""

    error: ErrorBody


SERVER_ERROR = ErrorBody(
    message="The server had an error while processing your request. Sorry about that!", type="server_error", param=None, code=None
)
UNAVAILABLE = ErrorBody(
    message="The server cannot use its database at the moment. Please try again.", type="server_error", param=None, code="unavailable"
)


def error_of(exc: AppError) -> ErrorBody:
    """The error as clients see it."""
    return ErrorBody(message=exc.message, type=exc.type, param=exc.param, code=exc.code)


def envelope(error: ErrorBody) -> bytes:
    """The body of an error answer: indented by two, as the hosted API sent it."""
    return msgspec.json.format(msgspec.json.encode(ErrorEnvelope(error)), indent=2) + b"\n"


def error_frame(error: ErrorBody) -> bytes:
    """The end of a stream that cannot go on. Nested for the official SDKs and flat for readers of the specification (behaviour §4.6)."""
    data = msgspec.json.encode({"error": error, **msgspec.structs.asdict(error)})
    return b"event: error\ndata: " + data + b"\n\nevent: done\ndata: [DONE]\n\n"
