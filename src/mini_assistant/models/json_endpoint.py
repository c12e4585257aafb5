"""Asks an endpoint that answers one JSON document with another, as those of embeddings and of re-ranking do."""

import asyncio
from typing import Any

import aiohttp
import msgspec

from mini_assistant.errors import ModelError
from mini_assistant.models.chat_answer import read_at_most
from mini_assistant.models.endpoint_session import EndpointSession, pause_before_retry
from mini_assistant.models.provider_errors import ProviderErrors
from mini_assistant.models.provider_limits import ProviderLimits

_ANSWER_BYTES_MAX = 32 * 1024 * 1024
_ERROR_BODY_BYTES_MAX = 64 * 1024


class JsonEndpoint:
    """One address. limits: `first_token_timeout_seconds` is the time of a whole answer.

    Raises ConfigError when `url` is no URL, or the key cannot be sent as a header.
    """

    def __init__(self, name: str, url: str, *, api_key: str, limits: ProviderLimits) -> None:
        self._limits = limits
        self._session = EndpointSession(name, url, api_key=api_key, connect_timeout_seconds=limits.connect_timeout_seconds)

    @property
    def errors(self) -> ProviderErrors:
        """Its failures in words."""
        return self._session.errors

    @property
    def public_address(self) -> str:
        """The address without what may be secret in it."""
        return self._session.public_address

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        """The answer to `body`, after as many attempts as the limits allow. path: added to the address; may be empty.

        Raises ModelError.
        """
        encoded = msgspec.json.encode(body)
        attempt = 0
        while True:
            try:
                return await self._attempt(path, encoded)
            except ModelError as error:
                pause_seconds = pause_before_retry(error, attempt, self._limits.retry_pause_seconds)
                if pause_seconds is None or attempt >= self._limits.retries_max:
                    raise
            attempt += 1
            await asyncio.sleep(pause_seconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _attempt(self, path: str, body: bytes) -> bytes:
        limit_seconds = self._limits.first_token_timeout_seconds
        try:
            async with (
                asyncio.timeout(limit_seconds),
                self._session.client().post(self._session.url(path), data=body, allow_redirects=False) as response,
            ):
                return await self._answer(response)
        except TimeoutError as exc:
            if isinstance(exc, aiohttp.ServerTimeoutError):
                raise self._session.connection_error(exc) from exc
            raise self.errors.silent(limit_seconds, has_begun=False) from None
        except (aiohttp.ClientError, ValueError) as exc:
            raise self._session.connection_error(exc) from exc

    async def _answer(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise self.errors.refused(response.status, response.headers, await read_at_most(response.content, _ERROR_BODY_BYTES_MAX))
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise self.errors.nonsense("a compressed answer, which was not asked for")
        answer = await read_at_most(response.content, _ANSWER_BYTES_MAX)
        if len(answer) == _ANSWER_BYTES_MAX:
            raise self.errors.nonsense("an answer that is too long")
        return answer
