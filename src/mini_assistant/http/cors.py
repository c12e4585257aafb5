"""Calls from web pages of other sites: refused by browsers unless `cors_origins` names the site.

The answers never allow cookies or other credentials of the browser: a page that may call the server has to bring a key itself.
"""

import re

from mini_assistant.settings import Settings

_EXPOSED = (
    b"x-request-id, retry-after, retry-after-ms, x-should-retry, openai-processing-ms, openai-version, openai-poll-after-ms, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"content-disposition, content-range, accept-ranges, etag"
)
# What browsers ask for when the official SDKs run in them, beside the `x-stainless-` ones.
_USUAL = (
    b"authorization, content-type, openai-beta, openai-organization, openai-project, idempotency-key, last-event-id, range, if-range, "
    b"if-none-match, traceparent"
)
_NAMES = re.compile(rb"[A-Za-z0-9_-]{1,100}(?:, ?[A-Za-z0-9_-]{1,100}){0,99}")
_VARY = (b"vary", b"origin")


class Cors:
    """What browsers are told about other sites. Off, and without cost, as long as no origin is set."""

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(origin.rstrip("/").lower().encode() for origin in settings.cors_origins)
        self._allows_all = b"*" in self._origins

    def allows(self, origin: bytes | None) -> bool:
        """Whether the settings name the origin of a request. None: it has no such header, and so no page of another site can read it."""
        return origin is not None and (self._allows_all or origin.lower() in self._origins)

    def headers(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        """The headers of an answer to a page of this origin; none that say anything when it may not read it."""
        if not self._origins:
            return []
        if not self.allows(origin):
            return [_VARY]
        return [self._allowed(origin), _VARY, (b"access-control-expose-headers", _EXPOSED)]

    def preflight_or_none(self, method: str, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]] | None:
        """The headers that answer a browser's question before a call; None when the request is no such question from a site allowed."""
        origin = headers.get(b"origin")
        if method != "OPTIONS" or b"access-control-request-method" not in headers or not self.allows(origin):
            return None
        wanted = headers.get(b"access-control-request-headers", b"").strip()
        return [
            self._allowed(origin),
            _VARY,
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            # No header gives a page more than its key does, so it may send those that it asks for.
            (b"access-control-allow-headers", wanted if _NAMES.fullmatch(wanted) else _USUAL),
            (b"access-control-max-age", b"7200"),
        ]

    def _allowed(self, origin: bytes | None) -> tuple[bytes, bytes]:
        return (b"access-control-allow-origin", b"*" if self._allows_all else origin or b"")
