"""Puts a provider's failures into words for the owner of a run: the only place where they become a ModelError.

A message says what is wrong and quotes at most 200 characters of what the provider wrote; it never holds the key.
"""

import email.utils
import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from mini_assistant.clock import SystemClock
from mini_assistant.errors import ModelError, ModelErrorCode

_EXCERPT_CHARACTERS_MAX = 200
_REFUSAL_CHARACTERS_MAX = 2_000
_DEPTH_MAX = 10
_PROMPT_STATUSES = (400, 413, 422)
# llama.cpp answers 500 to what it cannot do, and will never do, with a request.
_UNSUPPORTED = re.compile(r"unsupported param|param requires|not supported|does not support|must be one of|cannot use tools", re.IGNORECASE)
_RATE_LIMIT_CODES = ("rate_limit_exceeded", "insufficient_quota", "rate_limit_error", "tokens", "requests")
_PROMPT_CODES = (
    "invalid_request_error",
    "invalid_prompt",
    "context_length_exceeded",
    "content_filter",
    "content_policy_violation",
    "BadRequestError",
)


class ProviderErrors:
    """The failures of one provider. secrets: its key and what else is not to be seen, taken out of everything that is quoted."""

    def __init__(self, provider: str, *secrets: str) -> None:
        self._provider = provider
        self._secrets = [secret for secret in secrets if secret]

    def refused(self, status: int, headers: Mapping[str, str], body: bytes) -> ModelError:
        """An HTTP answer that is no success."""
        words = _words_of(body)
        detail = self._quoted(words)
        if status == 429:
            # A used-up quota does not come back within seconds.
            retryable = b"insufficient_quota" not in body
            after = retry_after_seconds(headers)
            return self._error("limits the rate of requests", detail, "rate_limit_exceeded", retryable=retryable, after=after)
        if status in _PROMPT_STATUSES or (status in (500, 501) and _UNSUPPORTED.search(words)):
            refusal = self._quoted(words, _REFUSAL_CHARACTERS_MAX)
            return self._error(f"did not accept the request (HTTP {status})", detail, "invalid_prompt", refusal=refusal)
        if status in (401, 403):
            return self._error(f"refused the key (HTTP {status}); check the provider's API key", detail)
        if status == 404:
            what = "does not know the model or the address (HTTP 404); check the model's name and base_url"
            return self._error(what, detail, refusal=self._quoted(words, _REFUSAL_CHARACTERS_MAX))
        if 300 <= status < 400:
            return self._error(f"redirects to another address (HTTP {status}); check base_url", "")
        retryable = status >= 500 or status == 408
        after = retry_after_seconds(headers) if retryable else None
        return self._error(f"failed (HTTP {status})", detail, retryable=retryable, after=after)

    def error_frame(self, error: Any) -> ModelError:
        """An error object instead of a piece of the answer: `{"message", "type", "code"}` or plain text."""
        fields = _fields_of(error)
        kinds = (fields.get("code"), fields.get("type"))
        words = _message_of(error)
        detail = self._quoted(words)
        if 429 in kinds or "429" in kinds or any(kind in _RATE_LIMIT_CODES for kind in kinds):
            return self._error("limits the rate of requests", detail, "rate_limit_exceeded", retryable="insufficient_quota" not in kinds)
        if any(kind in _PROMPT_STATUSES or kind in _PROMPT_CODES for kind in kinds):
            refusal = self._quoted(words, _REFUSAL_CHARACTERS_MAX)
            return self._error("did not accept the request", detail, "invalid_prompt", refusal=refusal)
        return self._error("reported an error", detail, retryable=True)

    def nonsense(self, what: str, sent: bytes = b"") -> ModelError:
        """An answer that cannot be understood. what: ends the sentence `The provider '...' sent ...`."""
        return self._error(f"sent {what}", self._quoted(sent[:4096].decode("utf-8", "replace")))

    def cut_off(self) -> ModelError:
        """The answer stopped before its end."""
        return self._error("broke off: the answer was cut off before its end", "", retryable=True)

    def silent(self, seconds: float, *, has_begun: bool) -> ModelError:
        """Nothing came for too long."""
        what = "stopped sending in the middle of its answer" if has_begun else "did not begin to answer"
        return self._error(f"{what} within {seconds:g} seconds", "", retryable=True)

    def unreachable(self, reason: str, *, retryable: bool = True, after: float | None = None) -> ModelError:
        """There is no connection, or it broke before the answer. after: seconds until another attempt makes sense; None when unknown."""
        return self._error("cannot be reached", self._quoted(reason), retryable=retryable, after=after)

    def _error(
        self,
        what: str,
        detail: str,
        code: ModelErrorCode = "server_error",
        *,
        retryable: bool = False,
        after: float | None = None,
        refusal: str = "",
    ) -> ModelError:
        message = f"The provider '{self._provider}' {what}" + (f": {detail}" if detail else ".")
        return ModelError(message, code=code, retryable=retryable, retry_after_seconds=after, refusal=refusal)

    def _quoted(self, text: str, characters_max: int = _EXCERPT_CHARACTERS_MAX) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


def _words_of(body: bytes) -> str:
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")
    return _message_of(decoded)


def _fields_of(error: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", error) if isinstance(error, dict) else {}


def _message_of(error: Any) -> str:
    """The text in the shapes that servers use: `error.message`, `error`, `message`, `detail`, or a list of those.

    A gateway says less itself than the server behind it, whose words it passes on in `metadata.raw`.
    """
    passed_on: Any = None
    for _ in range(_DEPTH_MAX):
        if isinstance(error, list) and error:
            error = cast("list[Any]", error)[0]
            continue
        fields = _fields_of(error)
        passed_on = passed_on or _fields_of(fields.get("metadata")).get("raw")
        inner = next((fields[name] for name in ("error", "message", "detail") if fields.get(name)), None)
        if inner is None:
            break
        error = inner
    message = error if isinstance(error, str) else _json_of(error)
    return f"{message}: {passed_on}" if isinstance(passed_on, str) and passed_on else message


def _json_of(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except RecursionError:
        return ""


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the server asks to wait (`retry-after-ms`, or `Retry-After` in seconds or as a date); None when it does not."""
    for name, unit_seconds in (("retry-after-ms", 0.001), ("Retry-After", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit_seconds)
        except (KeyError, ValueError):
            continue
    try:
        at_seconds = email.utils.parsedate_to_datetime(headers["Retry-After"]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None
    return max(0.0, at_seconds - SystemClock().now())
