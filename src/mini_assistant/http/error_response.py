"""The one place where an error becomes an HTTP answer. Source: behaviour §1.4."""

import msgspec
from msgspec import UNSET, UnsetType

from mini_assistant.errors import AppError, BackendError, BlobMissing, StoreUnavailable


class ErrorBody(msgspec.Struct):
    """The inner object of the envelope."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorDetail(msgspec.Struct):
    """What the answers of the Files API say once more."""

    message: str
    code: str | None


class ErrorEnvelope(msgspec.Struct, omit_defaults=True):
    """`{"error": {...}}`, the body of every 4xx and 5xx. detail: for files only. Source: behaviour §0 row 16."""

    error: ErrorBody
    detail: ErrorDetail | UnsetType = UNSET


SERVER_ERROR = ErrorBody(
    message="The server had an error while processing your request. Sorry about that!", type="server_error", param=None, code=None
)


def error_of(exc: AppError) -> ErrorBody:
    """The error as clients see it."""
    return ErrorBody(message=exc.message, type=exc.type, param=exc.param, code=exc.code)


def unavailable(exc: BackendError) -> ErrorBody:
    """A failed part as clients see it: what storage says of itself is for the log alone."""
    is_storage = isinstance(exc, StoreUnavailable | BlobMissing)
    message = "The server cannot use its storage at the moment. Please try again." if is_storage else exc.message
    return ErrorBody(message=message, type="server_error", param=None, code="unavailable")


def envelope(error: ErrorBody, *, has_detail: bool = False) -> bytes:
    """The body of an error answer: indented by two, as the hosted API sent it. has_detail: whether it is about a file."""
    whole = ErrorEnvelope(error, ErrorDetail(error.message, error.code) if has_detail else UNSET)
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def error_frame(error: ErrorBody) -> bytes:
    """The end of a stream that cannot go on. Nested for the official SDKs and flat for readers of the specification (behaviour §4.6)."""
    data = msgspec.json.encode({"error": error, **msgspec.structs.asdict(error)})
    return b"event: error\ndata: " + data + b"\n\nevent: done\ndata: [DONE]\n\n"
