"""Every error the server raises on purpose.

    AppError                  has an HTTP status and becomes the OpenAI error envelope in http/error_response.py
    |- InvalidRequest 400     |- NotAuthenticated 401   |- Forbidden 403   |- NotFound 404
    |- MethodNotAllowed 405   |- RunStateConflict 400   |- TooLarge 413
    `- LimitReached 429
    BackendError              a part outside of this process failed; `retryable` says whether trying again may help
    |- ModelError             becomes a run's `last_error` in runs/loop.py
    |- StoreUnavailable       |- BlobMissing
    `- SandboxUnavailable     |- SandboxFull           `- SandboxFileMissing
    ToolFailure               becomes output that the model reads, in runs/tool_calls.py
    ConfigError               raised at start only; names the setting and shows a good value

State conflicts are 400 and never 409: both official SDKs retry a 409 by themselves.
"""

from typing import ClassVar, Literal


class AppError(Exception):
    """Answered to the HTTP client as `{"error": {"message", "type", "param", "code"}}`."""

    status: ClassVar[int] = 500
    type: str = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(AppError):
    """The request is wrong in itself: a field, a value, a header."""

    status = 400


class NotAuthenticated(AppError):
    """No key, or a key that this server does not know."""

    status = 401


class Forbidden(AppError):
    """The key is known and may not do this."""

    status = 403


class NotFound(AppError):
    """The object does not exist, is deleted, or belongs to another project."""

    status = 404


class MethodNotAllowed(AppError):
    """The path exists, the method does not."""

    status = 405


class RunStateConflict(AppError):
    """The request is fine, but not in the state that the run or its thread is in. Nothing was written."""

    status = 400


class TooLarge(AppError):
    """The body is larger than `body_bytes_max`."""

    status = 413


class LimitReached(AppError):
    """The project has used up what it may for now. Source: behaviour §1.4, row "quota / rate".

    type: `requests` or `tokens` for limits that time heals, `insufficient_quota` for what is full until something is deleted.
    retry_after_seconds: None when waiting does not help.
    """

    status = 429

    def __init__(self, message: str, *, type: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message, code="rate_limit_exceeded" if retry_after_seconds is not None else "insufficient_quota")
        self.type = type
        self.retry_after_seconds = retry_after_seconds


class BackendError(Exception):
    """A part outside of this process failed."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = retryable


ModelErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
"""The closed set of a run's `last_error.code`. Source: openapi-assistants.json, RunObject.last_error."""


class ModelError(BackendError):
    """A model did not give a usable answer. `message` is readable by the owner of the run.

    refusal: the provider's own words when it did not accept the request itself, at most 2,000 characters and without the key; else empty.
    """

    def __init__(
        self,
        message: str,
        *,
        code: ModelErrorCode = "server_error",
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        refusal: str = "",
    ) -> None:
        super().__init__(message, retryable=retryable)
        self.code: ModelErrorCode = code
        self.retry_after_seconds = retry_after_seconds
        self.refusal = refusal


class StoreUnavailable(BackendError):
    """The database or the blob store cannot be read or written now: locked by another server, full disk, broken file."""


class BlobMissing(BackendError):
    """The bytes of a file are gone from the blob store, though its row is there."""


class SandboxUnavailable(BackendError):
    """No session can be had, or this one is gone. `message` says what is missing, and how to get it."""


class SandboxFull(BackendError):
    """A file does not fit into a session."""


class SandboxFileMissing(BackendError):
    """A session has no regular file of this name (any more)."""


ToolFailureKind = Literal[
    "bad_arguments", "timeout", "output_limit", "memory_limit", "not_found", "sandbox_unavailable", "cancelled", "failed"
]


class ToolFailure(Exception):
    """A tool call went wrong in a way the model can react to."""

    def __init__(self, kind: ToolFailureKind, message: str) -> None:
        super().__init__(message)
        self.kind: ToolFailureKind = kind
        self.message = message


class ConfigError(Exception):
    """A setting is missing, unknown or out of range. The message names it and shows a good value."""
