"""A provider that speaks OpenAI's chat completions over HTTP: the hosted API, vLLM, Ollama, llama.cpp, LiteLLM and others.

A thin client of our own, because every token passes through here: one read from the socket is one list of deltas, with
no task, timer or typed wrapper per token. Attempts are repeated only until the first delta has been given out.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator

import aiohttp
import yarl

from mini_assistant.errors import ConfigError, ModelError
from mini_assistant.models.base import Capabilities, ChatDelta, ChatRequest
from mini_assistant.models.chat_answer import ChatAnswer, read_at_most
from mini_assistant.models.chat_request import encode_chat_request
from mini_assistant.models.provider_errors import ProviderErrors
from mini_assistant.models.provider_limits import ProviderLimits

_RETRY_PAUSE_MAX_SECONDS = 8.0
_RETRY_AFTER_MAX_SECONDS = 30.0
_ERROR_BODY_BYTES_MAX = 64 * 1024


class OpenAICompatible:
    """A `ChatProvider` at `base_url`, to which `/chat/completions` is added; a query in it is kept. api_key: empty sends none.

    Raises ConfigError when `base_url` is no URL, or the key cannot be sent as a header.
    """

    def __init__(self, name: str, base_url: str, *, api_key: str = "", limits: ProviderLimits | None = None) -> None:
        self._name = name
        try:
            self._base_url = yarl.URL(base_url)
        except ValueError as exc:
            raise ConfigError(f"The base_url of the provider '{name}' is no URL: {exc}. Example: http://127.0.0.1:8080/v1") from exc
        self._api_key = api_key.strip()
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ConfigError(f"The key of the provider '{name}' has characters that no key has, such as a line break in the middle.")
        self._limits = limits or ProviderLimits()
        self._errors = ProviderErrors(name, self._api_key)
        slots = self._limits.concurrency_max
        self._slots = contextlib.nullcontext() if slots is None else asyncio.Semaphore(slots)
        self._session: aiohttp.ClientSession | None = None

    async def stream(self, request: ChatRequest, capabilities: Capabilities) -> AsyncGenerator[list[ChatDelta], None]:
        """As `ChatProvider.stream`."""
        body = encode_chat_request(request, capabilities)
        async with self._slots:
            answer, deltas = await self._begin(body)
            try:
                while deltas:
                    yield deltas
                    deltas = await answer.read()
            finally:
                answer.close()

    async def check(self) -> str:
        """As `ChatProvider.check`. An endpoint without a list of models counts as there."""
        limit_seconds = self._limits.connect_timeout_seconds
        try:
            async with (
                asyncio.timeout(limit_seconds),
                self._client().get(self._url("models"), allow_redirects=False) as response,
            ):
                body = await read_at_most(response.content, _ERROR_BODY_BYTES_MAX)
        except TimeoutError:
            raise self._errors.unreachable(f"no answer within {limit_seconds:g} seconds") from None
        except (aiohttp.ClientError, ValueError) as exc:
            raise self._connection_error(exc) from exc
        if response.status >= 300 and response.status not in (404, 405):
            raise self._errors.refused(response.status, response.headers, body)
        return f"The provider '{self._name}' answers at {self._base_url.with_user(None).with_query(None)}."

    async def close(self) -> None:
        """As `ChatProvider.close`."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _begin(self, body: bytes) -> tuple[ChatAnswer, list[ChatDelta]]:
        """Ask until an answer has begun; give out the answer and its first deltas."""
        attempt = 0
        while True:
            try:
                return await self._attempt(body)
            except ModelError as error:
                pause_seconds = self._pause_before_retry(error, attempt)
                if pause_seconds is None or attempt >= self._limits.retries_max:
                    raise
            attempt += 1
            await asyncio.sleep(pause_seconds)

    def _pause_before_retry(self, error: ModelError, attempt: int) -> float | None:
        """How long to wait before the next attempt; None when there should be none."""
        if not error.retryable:
            return None
        if error.retry_after_seconds is not None:
            # Coming back earlier than asked for would only be refused again.
            return error.retry_after_seconds if error.retry_after_seconds <= _RETRY_AFTER_MAX_SECONDS else None
        pause_seconds = min(self._limits.retry_pause_seconds * 2**attempt, _RETRY_PAUSE_MAX_SECONDS)
        return pause_seconds * random.uniform(0.75, 1.25)  # noqa: S311  no secret: it only spreads the attempts

    async def _attempt(self, body: bytes) -> tuple[ChatAnswer, list[ChatDelta]]:
        limit_seconds = self._limits.first_token_timeout_seconds
        deadline = asyncio.get_running_loop().time() + limit_seconds
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._post(body)
        except TimeoutError:
            raise self._errors.silent(limit_seconds, has_begun=False) from None
        answer = ChatAnswer(response, self._errors, self._limits, deadline)
        try:
            return answer, await answer.read()
        except BaseException:
            answer.close()
            raise

    async def _post(self, body: bytes) -> aiohttp.ClientResponse:
        """Send the request; give out the response when it is one that can hold an answer."""
        try:
            response = await self._client().post(self._url("chat/completions"), data=body, allow_redirects=False)
            try:
                await self._check_holds_answer(response)
            except BaseException:
                response.close()
                raise
        except (aiohttp.ClientError, ValueError) as exc:
            raise self._connection_error(exc) from exc
        return response

    async def _check_holds_answer(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            body = await read_at_most(response.content, _ERROR_BODY_BYTES_MAX)
            raise self._errors.refused(response.status, response.headers, body)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise self._errors.nonsense("a compressed answer, which was not asked for")
        # Servers that forget the type do stream; a type that is given is believed.
        if "Content-Type" in response.headers and response.content_type not in ("text/event-stream", "application/json"):
            body = await read_at_most(response.content, _ERROR_BODY_BYTES_MAX)
            raise self._errors.nonsense(f"{response.content_type} instead of an answer; check base_url", body)

    def _url(self, path: str) -> yarl.URL:
        return self._base_url.joinpath(path).with_query(self._base_url.query)

    def _client(self) -> aiohttp.ClientSession:
        # Made on first use, because a session belongs to the loop in which it is made.
        if self._session is None:
            # A compressed answer is neither asked for nor unpacked: a small one could unpack to any size.
            headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
            if self._api_key:
                headers["Authorization"] = f"Bearer {self._api_key}"
            self._session = aiohttp.ClientSession(
                # Many servers close a connection that was idle for 5 seconds; one that is reused just then would cost a retry.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, connect=self._limits.connect_timeout_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    def _connection_error(self, exc: Exception) -> ModelError:
        if isinstance(exc, aiohttp.ServerTimeoutError):
            return self._errors.unreachable(f"no connection within {self._limits.connect_timeout_seconds:g} seconds")
        if isinstance(exc, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
            return self._errors.unreachable("its certificate is not accepted", retryable=False)
        if isinstance(exc, aiohttp.ClientConnectorError):
            return self._errors.unreachable(exc.os_error.strerror or "the connection failed")
        if isinstance(exc, aiohttp.ClientConnectionError):
            return self._errors.unreachable("the connection was closed")
        if isinstance(exc, aiohttp.InvalidURL):
            return self._errors.unreachable("base_url is not valid", retryable=False)
        return self._errors.unreachable("it does not speak HTTP as expected", retryable=False)
