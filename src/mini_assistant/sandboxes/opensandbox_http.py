"""Speaks HTTP to OpenSandbox: to its server, and to the daemon inside of each sandbox, which is called execd.

What comes from execd is as hostile as the code that runs beside it: answers are bounded, redirects are not followed, and the key of the
server never goes there. The forms are those of OpenSandbox 1.1. Source: its specs/sandbox-lifecycle.yml and specs/execd-api.yaml.
"""

import asyncio
import contextlib
import io
import re
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import aiohttp
import msgspec
import yarl

from mini_assistant.errors import SandboxUnavailable

ANSWER_BYTES_MAX = 256 * 1024
ERROR_CHARACTERS_MAX = 300
_ERROR_BODY_BYTES_MAX = 16 * 1024
_CONNECT_TIMEOUT_SECONDS = 10.0
# execd sends a sign of life every 3 seconds while code runs.
_SILENCE_SECONDS_MAX = 60.0
_HEADERS_MAX = 20
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,100}")
_HEADERS_OF_HTTP = {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding"}
# Ids become parts of addresses.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

AnswerT = TypeVar("AnswerT")


class SandboxStatus(msgspec.Struct, frozen=True):
    """Where a sandbox is in its life, such as `Pending`, `Running` or `Failed`."""

    state: str
    message: str | None = None


class SandboxRecord(msgspec.Struct, frozen=True, rename="camel"):
    """A sandbox as the server tells it. expires_at: None when it never expires."""

    id: str
    status: SandboxStatus
    expires_at: datetime | None = None


class RenewedExpiration(msgspec.Struct, frozen=True, rename="camel"):
    """The answer to a renewal."""

    expires_at: datetime


class EndpointRecord(msgspec.Struct, frozen=True):
    """Where a port of a sandbox can be reached. endpoint: host, port and path, without a scheme."""

    endpoint: str
    headers: dict[str, str] | None = None


class ContextRecord(msgspec.Struct, frozen=True):
    """An interpreter in a sandbox."""

    id: str


class FileRecord(msgspec.Struct, frozen=True):
    """A file or folder as execd sees it. type: `file`, `directory`, `symlink`, `other`; empty from an execd older than 1.0."""

    path: str
    size: int
    modified_at: str
    type: str = ""


class Upload(NamedTuple):
    """A body that is sent as it is read."""

    content_type: str
    size_bytes: int
    pieces: AsyncIterable[bytes]


class RequestRefused(SandboxUnavailable):
    """An answer with an HTTP status that is none of success."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, retryable=status >= 500)
        self.status = status


class AnswerLate(SandboxUnavailable):
    """There was no answer in time, which says nothing about what became of the request."""


class Connections:
    """The connections to the server and to all sandboxes; made on first use, because they belong to the loop in which they are made."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def client(self) -> aiohttp.ClientSession:
        """The client."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
                # A compressed answer is neither asked for nor unpacked: a small one could unpack to any size.
                headers={"Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_SECONDS, sock_read=_SILENCE_SECONDS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        """Close them."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class Endpoint:
    """One address that is asked. who: what it is, as the subject of a sentence. reasons: what a status of it means."""

    def __init__(
        self, connections: Connections, who: str, url: yarl.URL, headers: Mapping[str, str], *, reasons: Mapping[int, str] | None = None
    ) -> None:
        self._connections = connections
        self._who = who
        self._reasons = reasons or {}
        self._url = url
        self._headers = headers

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,
        upload: Upload | None = None,
        timeout_seconds: float = 30.0,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> bytes:
        """The answer's body, cut off at `answer_bytes_max`. body: sent as JSON.

        Raises SandboxUnavailable, as RequestRefused for a status of failure and as AnswerLate when time is over.
        """
        try:
            async with asyncio.timeout(timeout_seconds), self.open(method, path, query=query, body=body, upload=upload) as answer:
                kept = bytearray()
                async for piece in answer:
                    kept += piece
                    if len(kept) >= answer_bytes_max:
                        break
                return bytes(kept[:answer_bytes_max])
        except TimeoutError:
            raise AnswerLate(f"{self._who} did not answer within {timeout_seconds:g} seconds.", retryable=True) from None

    @contextlib.asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,
        upload: Upload | None = None,
    ) -> AsyncGenerator[AsyncGenerator[bytes]]:
        """The pieces of an answer as they arrive; neither their number nor their time is bounded here.

        Raises SandboxUnavailable, also while the pieces are read.
        """
        headers = dict(self._headers)
        data: Any = None
        if upload is not None:
            headers |= {"Content-Type": upload.content_type, "Content-Length": str(upload.size_bytes)}
            data = upload.pieces
        elif body is not None:
            headers["Content-Type"] = "application/json"
            data = io.BytesIO(msgspec.json.encode(body))
        url = self._url.joinpath(path.lstrip("/")).extend_query(query)
        with self._in_words():
            response = await self._connections.client().request(method, url, data=data, headers=headers, allow_redirects=False)
        async with response:
            if not 200 <= response.status < 300:
                raise await self._refusal(response)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise SandboxUnavailable(f"{self._who} sent a compressed answer, which was not asked for.")
            async with contextlib.aclosing(self._pieces(response)) as pieces:
                yield pieces

    def decoded(self, answer: bytes, kind: type[AnswerT]) -> AnswerT:
        """An answer as what it should be. Raises SandboxUnavailable when it is something else."""
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise SandboxUnavailable(f"{self._who} sent an answer that is not as it should be.") from exc

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        while True:
            with self._in_words():
                piece = await response.content.readany()
            if not piece:
                return
            yield piece

    @contextlib.contextmanager
    def _in_words(self) -> Generator[None]:
        """Turns what goes wrong with the connection into SandboxUnavailable; the time limit of the caller passes."""
        try:
            yield
        except aiohttp.ServerTimeoutError as exc:
            raise AnswerLate(f"{self._who} does not answer.", retryable=True) from exc
        except aiohttp.ClientConnectorError as exc:
            raise SandboxUnavailable(
                f"{self._who} cannot be reached: {exc.os_error.strerror or 'the connection failed'}.", retryable=True
            ) from exc
        except (aiohttp.ClientError, ValueError) as exc:
            raise SandboxUnavailable(f"{self._who} broke off its answer.", retryable=True) from exc

    async def _refusal(self, response: aiohttp.ClientResponse) -> RequestRefused:
        body = bytearray()
        async for piece in self._pieces(response):
            body += piece
            if len(body) >= _ERROR_BODY_BYTES_MAX:
                break
        reason = self._reasons.get(response.status) or _told_reason(bytes(body))
        return RequestRefused(
            f"{self._who} refused a request with status {response.status}{': ' if reason else ''}{reason}.", response.status
        )


class _ErrorBody(msgspec.Struct):
    message: str = ""


def _told_reason(body: bytes) -> str:
    try:
        message = msgspec.json.decode(body, type=_ErrorBody).message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return plain_words(message).rstrip(".")


def plain_words(text: str) -> str:
    """A text of somebody else, short and in one line, for a sentence of ours."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[:ERROR_CHARACTERS_MAX]).split())


def checked_id(told: str, what: str) -> str:
    """An id that can be a part of an address. Raises SandboxUnavailable for any other."""
    if not _ID.fullmatch(told):
        raise SandboxUnavailable(f"OpenSandbox gave {what} an id that none can have.")
    return told


def checked_headers(told: Mapping[str, str] | None) -> dict[str, str]:
    """The headers that the server wants on requests to a sandbox. Raises SandboxUnavailable for those that cannot be sent."""
    headers = dict(told or {})
    for name, value in headers.items():
        is_fine = _HEADER_NAME.fullmatch(name) and name.lower() not in _HEADERS_OF_HTTP and value.isascii() and value.isprintable()
        if not is_fine or len(value) > 8192 or len(headers) > _HEADERS_MAX:
            raise SandboxUnavailable("The OpenSandbox server asks for headers that cannot be sent.")
    return headers
