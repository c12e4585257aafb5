"""The public API, called over HTTP."""

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from mini_assistant.errors import BackendError, ConfigError
from mini_assistant.terminal.event_frames import Event, EventFrames
from mini_assistant.terminal.printable import one_line

_PAGE_ITEMS = 100
_ATTEMPTS_MAX = 5
_WAIT_SECONDS_MAX = 60.0
_WAIT_SECONDS_DEFAULT = 1.0
_CALL_TIMEOUT = aiohttp.ClientTimeout(total=120, sock_connect=10)
# A server is silent for at most 15 seconds unless it is told otherwise, and large files take their time.
_LONG_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300)


class Target(NamedTuple):
    """Where the server is. key_variable: the environment variable that the key comes from, for messages about it."""

    url: str
    key: str
    key_variable: str


class ApiFailure(BackendError):
    """The server answered with an error. status: of HTTP. code: as the API gave it, empty for none."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Unreachable(BackendError):
    """The server could not be spoken to, or not to the end."""


class Client:
    """Calls of the API. `open` it inside of the loop that uses it, and `close` it there."""

    def __init__(self, target: Target, *, keeps_connections: bool) -> None:
        """keeps_connections: for calls that follow each other closely. A connection that has rested may have been closed meanwhile."""
        self._target = target
        self._keeps_connections = keeps_connections
        self.base_url = _base_url(target.url)
        self._opened: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make what connections are kept in. None is opened yet."""
        headers = {"OpenAI-Beta": "assistants=v2"}
        if self._target.key:
            headers["Authorization"] = f"Bearer {self._target.key}"
        connector = aiohttp.TCPConnector(force_close=not self._keeps_connections)
        self._opened = aiohttp.ClientSession(headers=headers, connector=connector)

    async def close(self) -> None:
        """Close all connections."""
        if self._opened is not None:
            await self._opened.close()

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """The object that a GET answers with. Raises ApiFailure and Unreachable, as all calls do."""
        return await self._json("GET", path, query=query)

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The object that a POST answers with. It is made once, however often it has to be sent."""
        headers = {"Idempotency-Key": uuid.uuid4().hex, "Content-Type": "application/json"}
        return await self._json("POST", path, data=msgspec.json.encode(body or {}), headers=headers)

    async def delete(self, path: str) -> None:
        """Delete an object. One that is not there any more is no failure."""
        try:
            await self._json("DELETE", path)
        except ApiFailure as exc:
            if exc.status != 404:
                raise

    async def listed(self, path: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        """All objects of a list, a page at a time."""
        after: dict[str, str] = {}
        while True:
            page = await self.get(path, limit=str(_PAGE_ITEMS), **query, **after)
            for item in page["data"]:
                yield item
            if not page["has_more"]:
                return
            after = {"after": page["last_id"]}

    async def upload(self, file: Path, purpose: str, on_read: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """Upload a file; returns its object. on_read: told how many bytes more are on their way."""
        loop = asyncio.get_running_loop()
        for attempt in range(1, _ATTEMPTS_MAX + 1):
            # It is read in other threads, but told in this one.
            with await asyncio.to_thread(_Watched, file, lambda count: loop.call_soon_threadsafe(on_read, count)) as content:
                form = aiohttp.FormData(quote_fields=False)
                form.add_field("purpose", purpose)
                form.add_field("file", content, filename=_form_name(file.name))
                # It is sent again only when the server has refused it: what was cut off may have arrived.
                try:
                    return await self._json("POST", "/files", attempts=1, data=form, timeout=_LONG_TIMEOUT)
                except _ComeAgain as exc:
                    if attempt == _ATTEMPTS_MAX:
                        raise
                    await asyncio.sleep(exc.seconds)
        raise AssertionError(file)

    async def download(self, path: str, keep: Callable[[bytes], object]) -> None:
        """The bytes of an answer, in pieces."""
        async with self._answer("GET", path, timeout=_LONG_TIMEOUT) as response:
            async for piece in response.content.iter_chunked(65_536):
                keep(piece)

    async def has_content(self, file_id: str, sha256: str) -> bool | None:
        """Whether a file of the server has this content; None when the server does not tell. The content is not sent."""
        headers = {"If-None-Match": f'"{sha256}"', "Range": "bytes=0-0"}
        try:
            async with self._answer("GET", f"/files/{file_id}/content", headers=headers) as response:
                return response.status == 304 if "ETag" in response.headers else None
        except ApiFailure as exc:
            if exc.status == 404:
                return False
            # An empty file has no first byte, and some servers give out no files of this purpose.
            if exc.status in (400, 403, 416):
                return None
            raise

    async def events(self, path: str, last_id: str) -> AsyncGenerator[Event, None]:
        """The events of a stream, after the one with this id. Ends where the stream ends, also when it was cut off."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
        frames = EventFrames()
        async with self._answer("GET", path, headers=headers, timeout=_LONG_TIMEOUT) as response:
            async for piece in response.content.iter_any():
                for event in frames.feed(piece):
                    yield event

    async def _json(self, method: str, path: str, *, attempts: int = _ATTEMPTS_MAX, **request: Any) -> dict[str, Any]:
        for attempt in range(1, attempts + 1):
            try:
                async with self._answer(method, path, **request) as response:
                    return msgspec.json.decode(await response.read())
            except msgspec.DecodeError as exc:
                raise Unreachable(f"What answers at {self.base_url} is no server of the Assistants API.") from exc
            except _ComeAgain as exc:
                if attempt == attempts:
                    raise
                await asyncio.sleep(exc.seconds)
        raise AssertionError(attempts)

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout = _CALL_TIMEOUT,
        **request: Any,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        assert self._opened is not None
        try:
            async with self._opened.request(
                method, self.base_url + path, params=query, timeout=timeout, allow_redirects=False, **request
            ) as response:
                if response.status >= 300 and response.status != 304:
                    raise self._failure(response, await response.content.read(65_536))
                yield response
        except aiohttp.ClientSSLError as exc:
            raise Unreachable(f"The certificate of {self.base_url} is not one that is trusted: {one_line(str(exc.os_error))}.") from exc
        except aiohttp.ClientConnectorError as exc:
            raise Unreachable(
                f"No server answers at {self.base_url} ({exc.os_error.strerror or exc.os_error}). "
                "Start one with `mini-assistant serve`, or name another with --url."
            ) from exc
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise Unreachable(f"The connection to {self.base_url} was lost: {one_line(str(exc)) or 'it took too long'}.") from exc

    def _failure(self, response: aiohttp.ClientResponse, body: bytes) -> ApiFailure:
        code, message = _error_in(body)
        message = one_line(message or f"The server answered {response.status}.")
        if response.status == 401:
            message = f"{message} The key comes from the variable {self._target.key_variable}; --key-env names another."
        if response.status == 429 and "Retry-After" in response.headers:
            return _ComeAgain(response.status, code, message, _seconds(response.headers["Retry-After"]))
        return ApiFailure(response.status, code, message)


class _ComeAgain(ApiFailure):
    """The server asks to be asked again later."""

    def __init__(self, status: int, code: str, message: str, seconds: float) -> None:
        super().__init__(status, code, message)
        self.seconds = seconds


class _Watched(BufferedReader):
    """A file that tells how much of it is read."""

    def __init__(self, path: Path, on_read: Callable[[int], object]) -> None:
        super().__init__(FileIO(str(path)))
        self._on_read = on_read

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual."""
        data = super().read(size)
        self._on_read(len(data))
        return data


class _ErrorBody(msgspec.Struct):
    message: str | None = None
    code: str | None = None


class _ErrorEnvelope(msgspec.Struct):
    error: _ErrorBody


def _error_in(body: bytes) -> tuple[str, str]:
    """Code and message of an error's body; empty when it is none of the API."""
    try:
        error = msgspec.json.decode(body, type=_ErrorEnvelope).error
    except (msgspec.MsgspecError, RecursionError):
        return "", ""
    return error.code or "", error.message or ""


def _seconds(retry_after: str) -> float:
    try:
        return min(max(float(retry_after), 0.0), _WAIT_SECONDS_MAX)
    except ValueError:
        return _WAIT_SECONDS_DEFAULT


def _form_name(name: str) -> str:
    """A file's name as a form writes it, without what has no place in a header."""
    text = name.encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x1f\x7f]", "", text).replace('"', "%22")


def _base_url(url: str) -> str:
    url = url.rstrip("/").removesuffix("/v1").rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url must begin with http:// or https://, such as http://127.0.0.1:8000, but is '{one_line(url)}'.")
    return f"{url}/v1"
