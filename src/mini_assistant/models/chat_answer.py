"""One HTTP response that holds an answer, read piece by piece under the provider's time limits."""

import asyncio
import contextlib
import io
from collections.abc import Callable

import aiohttp

from mini_assistant.errors import ModelError
from mini_assistant.models.base import ChatDelta, ReasoningDelta
from mini_assistant.models.chat_chunks import ChatChunks
from mini_assistant.models.provider_errors import ProviderErrors
from mini_assistant.models.provider_limits import ProviderLimits

_COMPLETION_BYTES_MAX = 16 * 1024 * 1024
# After the finish reason only usage and the end of the stream may follow; they come at once or not at all.
_USAGE_TIMEOUT_SECONDS = 5.0
# How long the end of a finished response is waited for, so that its connection can be used again.
_DRAIN_TIMEOUT_SECONDS = 0.05


class ChatAnswer:
    """An answer whose headers have arrived. deadline: when its first piece must be there, in the loop's time."""

    def __init__(self, response: aiohttp.ClientResponse, errors: ProviderErrors, limits: ProviderLimits, deadline: float) -> None:
        self._response = response
        self._content = response.content
        self._is_whole = response.content_type == "application/json"
        self._errors = errors
        self._limits = limits
        self._chunks = ChatChunks(errors)
        self._watchdog = _Watchdog(self._end_reading, deadline)
        self._has_begun = False

    async def read(self) -> list[ChatDelta]:
        """The deltas that the next read brings; none after `Finished`. Raises ModelError.

        The first ones come when there is more than reasoning: of a model that broke off while it was thinking, nothing has been seen, so
        it can be asked once more.
        """
        if self._has_begun:
            return await self._read()
        thoughts = io.StringIO()
        while True:
            deltas = await self._read()
            if not all(isinstance(delta, ReasoningDelta) for delta in deltas):
                break
            thoughts.writelines(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
        self._has_begun = True
        return [ReasoningDelta(text), *deltas] if (text := thoughts.getvalue()) else deltas

    async def _read(self) -> list[ChatDelta]:
        if self._chunks.finished:
            await self._drain()
            return []
        chunks, watchdog = self._chunks, self._watchdog
        if chunks.failure is not None:
            raise chunks.failure
        progress = chunks.progress
        watchdog.start()
        try:
            if self._is_whole:
                return chunks.feed_completion(await self._read_completion())
            while data := await self._content.readany():
                deltas = chunks.feed(data)
                # Comments and empty chunks are no progress: a gateway sends them for a model that hangs.
                if chunks.progress != progress or chunks.has_reason:
                    progress = chunks.progress
                    watchdog.allow(self._pause_max_seconds)
                if deltas:
                    return deltas
            return chunks.feed_end()
        except TimeoutError:
            return self._end_early(self._silence())
        except aiohttp.ClientError:
            return self._end_early(self._errors.cut_off())
        finally:
            watchdog.stop()

    def close(self) -> None:
        """Give the connection back when the response was read to its end; otherwise close it, so that the model stops."""
        self._watchdog.close()
        self._response.close()

    async def _read_completion(self) -> bytes:
        body = await read_at_most(self._content, _COMPLETION_BYTES_MAX)
        if len(body) == _COMPLETION_BYTES_MAX:
            raise self._errors.nonsense("an answer that is too long", body)
        return body

    @property
    def _pause_max_seconds(self) -> float:
        limit_seconds = self._limits.chunk_timeout_seconds
        return min(limit_seconds, _USAGE_TIMEOUT_SECONDS) if self._chunks.has_reason else limit_seconds

    def _end_reading(self) -> None:
        self._content.set_exception(TimeoutError())

    def _end_early(self, error: ModelError) -> list[ChatDelta]:
        """The rest will not come. When the model had already said why it ends, only its usage is missing."""
        if not self._chunks.has_reason:
            raise error
        return self._chunks.feed_end()

    def _silence(self) -> ModelError:
        if self._chunks.progress:
            return self._errors.silent(self._limits.chunk_timeout_seconds, has_begun=True)
        return self._errors.silent(self._limits.first_token_timeout_seconds, has_begun=False)

    async def _drain(self) -> None:
        if self._content.at_eof():
            return
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(_DRAIN_TIMEOUT_SECONDS):
                while await self._content.readany():
                    pass


class _Watchdog:
    """Calls `on_silence` when a read has waited too long.

    One timer serves a whole answer: it is not moved with every token, but looks, when it goes off, at when the last came.
    """

    def __init__(self, on_silence: Callable[[], None], deadline: float) -> None:
        self._on_silence = on_silence
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._limit_seconds = deadline - self._time()
        self._waiting_since: float | None = None
        self._timer = self._loop.call_at(deadline, self._look)

    def start(self) -> None:
        """A read begins to wait."""
        self._waiting_since = self._time()

    def stop(self) -> None:
        """Nobody waits: a slow reader of deltas is no silence of the model."""
        self._waiting_since = None

    def allow(self, seconds: float) -> None:
        """There was progress; the next may take this long."""
        self._waiting_since = self._time()
        if seconds == self._limit_seconds:
            return
        is_sooner = seconds < self._limit_seconds
        self._limit_seconds = seconds
        if is_sooner:
            self._timer.cancel()
            self._timer = self._loop.call_later(seconds, self._look)

    def close(self) -> None:
        """End the timer."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._time()
        since = now if self._waiting_since is None else self._waiting_since
        if since + self._limit_seconds > now:
            self._timer = self._loop.call_at(since + self._limit_seconds, self._look)
        else:
            self._on_silence()


async def read_at_most(content: aiohttp.StreamReader, bytes_max: int) -> bytes:
    """The body, or its beginning when it is longer."""
    parts: list[bytes] = []
    left = bytes_max
    while left > 0 and (part := await content.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
