"""What every client of a model endpoint shares: its address and key, its connections, its pauses, and the words for a broken connection."""

import random

import aiohttp
import yarl

from mini_assistant.errors import ConfigError, ModelError
from mini_assistant.models.provider_errors import ProviderErrors

_RETRY_PAUSE_MAX_SECONDS = 8.0
_RETRY_AFTER_MAX_SECONDS = 30.0
# A shorter value in the query of an address is a version or a flag.
_QUERY_SECRET_CHARACTERS_MIN = 12


def public_address(url: yarl.URL | str) -> str:
    """An absolute address without what may be secret in it: user, password and query. Words in its place when it is no URL."""
    try:
        return str(yarl.URL(url).with_user(None).with_query(None).with_fragment(None))
    except ValueError:
        return "an address that is no URL"


class EndpointSession:
    """The connections to one endpoint. api_key: empty sends none. proxy: the HTTP proxy that leads there; None for the direct way.

    Raises ConfigError when `base_url` or `proxy` is no URL, or the key cannot be sent as a header.
    """

    def __init__(self, name: str, base_url: str, *, api_key: str, connect_timeout_seconds: float, proxy: str | None = None) -> None:
        self._base_url = _parsed(base_url, f"The base_url of the provider '{name}' is no URL. Example: http://127.0.0.1:8080/v1")
        example = "http://127.0.0.1:3128 or http://user:password@127.0.0.1:3128"
        self._proxy = None if proxy is None else _parsed(proxy, f"The proxy of the provider '{name}' is no URL. Examples: {example}")
        self._api_key = api_key.strip()
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ConfigError(f"The key of the provider '{name}' has characters that no key has, such as a line break in the middle.")
        if self._api_key and self._base_url.user is not None:
            raise ConfigError(f"The provider '{name}' has a key and a user in its base_url, but only one of them can be sent.")
        self._connect_timeout_seconds = connect_timeout_seconds
        self._session: aiohttp.ClientSession | None = None
        self.errors = ProviderErrors(name, self._api_key, *_secrets_in(self._base_url), *_secrets_in(self._proxy))

    @property
    def public_address(self) -> str:
        """The address without what may be secret in it."""
        return public_address(self._base_url)

    def url(self, path: str) -> yarl.URL:
        """The address with `path` added to it, and the query kept. path: empty for the address itself."""
        return self._base_url.joinpath(path).with_query(self._base_url.query) if path else self._base_url

    def client(self) -> aiohttp.ClientSession:
        """The client; made on first use, because it belongs to the loop in which it is made."""
        if self._session is None:
            # A compressed answer is neither asked for nor unpacked: a small one could unpack to any size.
            headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
            if self._api_key and self._proxy is None:
                headers["Authorization"] = f"Bearer {self._api_key}"
            self._session = aiohttp.ClientSession(
                # Many servers close a connection that was idle for 5 seconds; one that is reused just then would cost a retry.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                proxy=self._proxy,
                # The headers of the client itself would be sent to the proxy, too, which would see the key that a tunnel hides.
                middlewares=() if self._proxy is None else (self._add_key,),
            )
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def refused(self, response: aiohttp.ClientResponse, body: bytes) -> ModelError:
        """An HTTP answer that is no success, of the endpoint or of the proxy before it."""
        if response.status == 407 and self._proxy is not None:
            return self._proxy_refused(self._proxy, 407)
        return self.errors.refused(response.status, response.headers, body)

    def connection_error(self, exc: Exception) -> ModelError:
        """An error of the client in words."""
        errors = self.errors
        if isinstance(exc, aiohttp.ClientProxyConnectionError) and self._proxy is not None:
            reason = exc.os_error.strerror or "the connection failed"
            return errors.unreachable(f"its proxy {public_address(self._proxy)}: {reason}")
        if isinstance(exc, aiohttp.ClientHttpProxyError) and self._proxy is not None:
            return self._proxy_refused(self._proxy, exc.status)
        if isinstance(exc, aiohttp.ServerTimeoutError):
            return errors.unreachable(f"no connection within {self._connect_timeout_seconds:g} seconds")
        if isinstance(exc, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
            return errors.unreachable("its certificate is not accepted", retryable=False)
        if isinstance(exc, aiohttp.ClientConnectorError):
            return errors.unreachable(exc.os_error.strerror or "the connection failed")
        if isinstance(exc, aiohttp.ServerDisconnectedError):
            # Mostly a kept connection that the server closed just then, as llama.cpp does: a new one will do, and at once.
            return errors.unreachable("the connection was closed", after=0.0)
        if isinstance(exc, aiohttp.ClientConnectionError):
            return errors.unreachable("the connection was closed")
        if isinstance(exc, aiohttp.InvalidURL):
            return errors.unreachable("base_url is not valid", retryable=False)
        return errors.unreachable("it does not speak HTTP as expected", retryable=False)

    async def _add_key(self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return await send(request)

    def _proxy_refused(self, proxy: yarl.URL, status: int) -> ModelError:
        reason = "wants another user and password" if status == 407 else f"refuses to connect (HTTP {status})"
        return self.errors.unreachable(f"its proxy {public_address(proxy)} {reason}", retryable=status >= 500)


def _parsed(url: str, problem: str) -> yarl.URL:
    try:
        parsed = yarl.URL(url)
    except ValueError:
        parsed = None
    if parsed is None or not parsed.host:
        raise ConfigError(problem)  # without the reason, which may quote a password
    return parsed


def _secrets_in(url: yarl.URL | None) -> list[str]:
    """What of an address may be a secret, as it is meant and as it is written."""
    if url is None:
        return []
    values = [value for value in url.query.values() if len(value) >= _QUERY_SECRET_CHARACTERS_MIN]
    return [secret for secret in (url.password, url.raw_password, *values) if secret]


def pause_before_retry(error: ModelError, attempt: int, first_pause_seconds: float) -> float | None:
    """How long to wait before the next attempt; None when there should be none. attempt: 0 after the first."""
    if not error.retryable:
        return None
    if error.retry_after_seconds is not None:
        # Coming back earlier than asked for would only be refused again.
        return error.retry_after_seconds if error.retry_after_seconds <= _RETRY_AFTER_MAX_SECONDS else None
    pause_seconds = min(first_pause_seconds * 2**attempt, _RETRY_PAUSE_MAX_SECONDS)
    return pause_seconds * random.uniform(0.75, 1.25)  # noqa: S311  no secret: it only spreads the attempts
