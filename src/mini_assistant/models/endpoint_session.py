"""What every client of a model endpoint shares: its address and key, its connections, its pauses, and the words for a broken connection."""

import random

import aiohttp
import yarl

from mini_assistant.errors import ConfigError, ModelError
from mini_assistant.models.provider_errors import ProviderErrors

_RETRY_PAUSE_MAX_SECONDS = 8.0
_RETRY_AFTER_MAX_SECONDS = 30.0


class EndpointSession:
    """The connections to one endpoint. api_key: empty sends none.

    Raises ConfigError when `base_url` is no URL, or the key cannot be sent as a header.
    """

    def __init__(self, name: str, base_url: str, *, api_key: str, connect_timeout_seconds: float) -> None:
        try:
            self._base_url = yarl.URL(base_url)
        except ValueError as exc:
            raise ConfigError(f"The base_url of the provider '{name}' is no URL: {exc}. Example: http://127.0.0.1:8080/v1") from exc
        self._api_key = api_key.strip()
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ConfigError(f"The key of the provider '{name}' has characters that no key has, such as a line break in the middle.")
        self._connect_timeout_seconds = connect_timeout_seconds
        self._session: aiohttp.ClientSession | None = None
        self.errors = ProviderErrors(name, self._api_key)

    @property
    def public_address(self) -> str:
        """The address without what may be secret in it."""
        return str(self._base_url.with_user(None).with_query(None))

    def url(self, path: str) -> yarl.URL:
        """The address with `path` added to it, and the query kept. path: empty for the address itself."""
        return self._base_url.joinpath(path).with_query(self._base_url.query) if path else self._base_url

    def client(self) -> aiohttp.ClientSession:
        """The client; made on first use, because it belongs to the loop in which it is made."""
        if self._session is None:
            # A compressed answer is neither asked for nor unpacked: a small one could unpack to any size.
            headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
            if self._api_key:
                headers["Authorization"] = f"Bearer {self._api_key}"
            self._session = aiohttp.ClientSession(
                # Many servers close a connection that was idle for 5 seconds; one that is reused just then would cost a retry.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def connection_error(self, exc: Exception) -> ModelError:
        """An error of the client in words."""
        errors = self.errors
        if isinstance(exc, aiohttp.ServerTimeoutError):
            return errors.unreachable(f"no connection within {self._connect_timeout_seconds:g} seconds")
        if isinstance(exc, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
            return errors.unreachable("its certificate is not accepted", retryable=False)
        if isinstance(exc, aiohttp.ClientConnectorError):
            return errors.unreachable(exc.os_error.strerror or "the connection failed")
        if isinstance(exc, aiohttp.ClientConnectionError):
            return errors.unreachable("the connection was closed")
        if isinstance(exc, aiohttp.InvalidURL):
            return errors.unreachable("base_url is not valid", retryable=False)
        return errors.unreachable("it does not speak HTTP as expected", retryable=False)


def pause_before_retry(error: ModelError, attempt: int, first_pause_seconds: float) -> float | None:
    """How long to wait before the next attempt; None when there should be none. attempt: 0 after the first."""
    if not error.retryable:
        return None
    if error.retry_after_seconds is not None:
        # Coming back earlier than asked for would only be refused again.
        return error.retry_after_seconds if error.retry_after_seconds <= _RETRY_AFTER_MAX_SECONDS else None
    pause_seconds = min(first_pause_seconds * 2**attempt, _RETRY_PAUSE_MAX_SECONDS)
    return pause_seconds * random.uniform(0.75, 1.25)  # noqa: S311  no secret: it only spreads the attempts
