"""A provider that speaks OpenAI's chat completions over HTTP: the hosted API, vLLM, Ollama, llama.cpp, LiteLLM and others.

A thin client of our own, because every token passes through here: one read from the socket is one list of deltas, with
no task, timer or typed wrapper per token. Attempts are repeated only until the first delta has been given out.
"""

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, Sequence

import aiohttp

from mini_assistant.errors import ModelError
from mini_assistant.models.base import Capabilities, ChatDelta, ChatRequest, ListedModel
from mini_assistant.models.chat_answer import ChatAnswer, read_at_most
from mini_assistant.models.chat_request import encode_chat_request
from mini_assistant.models.endpoint_session import EndpointSession, pause_before_retry
from mini_assistant.models.fair_slots import FairSlots
from mini_assistant.models.model_list import LIST_BYTES_MAX, decode_list
from mini_assistant.models.provider_limits import ProviderLimits
from mini_assistant.tracing import traceparent_or_none

_ERROR_BODY_BYTES_MAX = 64 * 1024
_SENT_AT_ONCE_BYTES_MAX = 512 * 1024


class OpenAICompatible:
    """A `ChatProvider` at `base_url`, to which `/chat/completions` is added; a query in it is kept. api_key: empty sends none.

    proxy: the HTTP proxy that leads there; None for the direct way.
    Raises ConfigError when `base_url` or `proxy` is no URL, or the key cannot be sent as a header.
    """

    def __init__(
        self, name: str, base_url: str, *, api_key: str = "", limits: ProviderLimits | None = None, proxy: str | None = None
    ) -> None:
        self._name = name
        self._limits = limits or ProviderLimits()
        seconds = self._limits.connect_timeout_seconds
        self._session = EndpointSession(name, base_url, api_key=api_key, connect_timeout_seconds=seconds, proxy=proxy)
        self._errors = self._session.errors
        slots = self._limits.concurrency_max
        self._slots = None if slots is None else FairSlots(slots)

    async def stream(self, request: ChatRequest, capabilities: Capabilities) -> AsyncGenerator[list[ChatDelta], None]:
        """As `ChatProvider.stream`."""
        body = encode_chat_request(request, capabilities)
        # A slot is kept during the pauses between attempts: who asks everybody to wait would refuse the next one as well.
        async with contextlib.nullcontext() if self._slots is None else self._slots.held(request.owner):
            answer, deltas = await self._begin(body)
            try:
                while deltas:
                    yield deltas
                    deltas = await answer.read()
            finally:
                answer.close()

    async def check(self) -> str:
        """As `ChatProvider.check`. An endpoint without a list of models counts as there."""
        response, body = await self._get_models(_ERROR_BODY_BYTES_MAX)
        if response.status >= 300 and response.status not in (404, 405):
            raise self._session.refused(response, body)
        return f"The provider '{self._name}' answers at {self._session.public_address}."

    async def list_models(self) -> Sequence[ListedModel]:
        """As `ChatProvider.list_models`."""
        response, body = await self._get_models(LIST_BYTES_MAX)
        if response.status in (404, 405):
            raise self._errors.nonsense(f"no list of models (HTTP {response.status})", body)
        if response.status != 200:
            raise self._session.refused(response, body)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise self._errors.nonsense("a compressed answer, which was not asked for")
        if len(body) == LIST_BYTES_MAX:
            raise self._errors.nonsense("a list of models that is too long")
        return decode_list(body, self._name, self._errors)

    async def close(self) -> None:
        """As `ChatProvider.close`."""
        await self._session.close()

    async def _get_models(self, bytes_max: int) -> tuple[aiohttp.ClientResponse, bytes]:
        """The answer to `GET /models`, and its body or its beginning. Raises ModelError when there is none in time."""
        limit_seconds = self._limits.connect_timeout_seconds
        try:
            async with (
                asyncio.timeout(limit_seconds),
                self._session.client().get(self._session.url("models"), allow_redirects=False) as response,
            ):
                return response, await read_at_most(response.content, bytes_max)
        except TimeoutError:
            raise self._errors.unreachable(f"no answer within {limit_seconds:g} seconds") from None
        except (aiohttp.ClientError, ValueError) as exc:
            raise self._session.connection_error(exc) from exc

    async def _begin(self, body: bytes) -> tuple[ChatAnswer, list[ChatDelta]]:
        """Ask until an answer has begun; give out the answer and its first deltas."""
        attempt = 0
        while True:
            try:
                return await self._attempt(body)
            except ModelError as error:
                pause_seconds = pause_before_retry(error, attempt, self._limits.retry_pause_seconds)
                if pause_seconds is None or attempt >= self._limits.retries_max:
                    raise
            attempt += 1
            await asyncio.sleep(pause_seconds)

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
        # Images make it large: as a file it is sent in pieces, which costs small ones more than they are worth.
        data = body if len(body) <= _SENT_AT_ONCE_BYTES_MAX else io.BytesIO(body)
        url, traceparent = self._session.url("chat/completions"), traceparent_or_none()
        headers = None if traceparent is None else {"traceparent": traceparent}
        try:
            response = await self._session.client().post(url, data=data, headers=headers, allow_redirects=False)
            try:
                await self._check_holds_answer(response)
            except BaseException:
                response.close()
                raise
        except (aiohttp.ClientError, ValueError) as exc:
            raise self._session.connection_error(exc) from exc
        return response

    async def _check_holds_answer(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise self._session.refused(response, await read_at_most(response.content, _ERROR_BODY_BYTES_MAX))
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise self._errors.nonsense("a compressed answer, which was not asked for")
        # Servers that forget the type do stream; a type that is given is believed.
        if "Content-Type" in response.headers and response.content_type not in ("text/event-stream", "application/json"):
            body = await read_at_most(response.content, _ERROR_BODY_BYTES_MAX)
            raise self._errors.nonsense(f"{response.content_type} instead of an answer; check base_url", body)
