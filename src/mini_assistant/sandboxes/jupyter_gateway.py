"""The HTTP side of a Jupyter Kernel Gateway or Jupyter Server: where its addresses are, and the life of a kernel on one of them.

Whatever answers there may be in the hands of hostile code: answers are bounded in size and time, and nothing is followed elsewhere.
"""

import asyncio
import ipaddress
import re
import socket
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

import aiohttp
import msgspec
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from mini_assistant.errors import ConfigError, SandboxUnavailable

_CONNECT_TIMEOUT_SECONDS = 10.0
# A kernel that starts imports its packages from a cold disk.
_ANSWER_TIMEOUT_SECONDS = 30.0
_ANSWER_BYTES_MAX = 1024 * 1024
_HEARTBEAT_SECONDS = 30.0
_ADDRESSES_MAX = 200
_KERNEL_ID = re.compile(r"[0-9A-Za-z-]{1,64}")

T = TypeVar("T", bound=msgspec.Struct)


class Address(NamedTuple):
    """One place where a gateway may be. ip: one of those that the name in the URL stands for."""

    url: yarl.URL
    ip: str


class _KernelSpecs(msgspec.Struct):
    default: str


class _Kernel(msgspec.Struct):
    id: str


def gateway_urls(setting: str) -> list[yarl.URL]:
    """The URLs in `sandbox_url`. Raises ConfigError when there is none, or one is no URL of HTTP."""
    urls: list[yarl.URL] = []
    for text in filter(None, (part.strip() for part in setting.split(","))):
        try:
            url = yarl.URL(text)
        except ValueError as exc:
            raise ConfigError(f"'sandbox_url' has what is no URL: {exc}. Example: http://127.0.0.1:8888") from exc
        if url.scheme not in ("http", "https") or not url.host or url.user or url.query_string:
            raise ConfigError("'sandbox_url' must be like http://127.0.0.1:8888, with the token in 'sandbox_token'; several with commas.")
        urls.append(url)
    if not urls:
        raise ConfigError("sandbox = jupyter needs sandbox_url, such as http://127.0.0.1:8888.")
    return urls


async def addresses_of(url: yarl.URL) -> list[Address]:
    """Every address that the name in a URL stands for now; empty when it has none. Raises SandboxUnavailable when that is unknown."""
    assert url.host is not None
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        if exc.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            return []
        raise SandboxUnavailable(f"The name {url.host} cannot be looked up: {exc.strerror}.", retryable=True) from exc
    except TimeoutError:
        raise SandboxUnavailable(f"The name {url.host} cannot be looked up in time.", retryable=True) from None
    # A gateway with addresses of both kinds must not be taken for two.
    families = {entry[0] for entry in found}
    family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    return [Address(url, ip) for ip in sorted({str(entry[4][0]) for entry in found if entry[0] == family})[:_ADDRESSES_MAX]]


class Gateway:
    """One gateway. Every method raises SandboxUnavailable when it does not answer as it should; no message has the token in it."""

    def __init__(self, address: Address, token: str) -> None:
        self._address = address
        headers = {"Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"token {token}"
        self._client = aiohttp.ClientSession(
            # What the name stands for may change while a kernel lives, and that is on this address only.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4, resolver=_Pinned(address.ip)),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_SECONDS, connect=_CONNECT_TIMEOUT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            middlewares=(_refuse_redirect,),
        )

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        return str(self._address.url)

    async def ask(self) -> None:
        """Whether it is there: raises SandboxUnavailable when it is not."""
        await self._asked("GET", "api/kernelspecs")

    async def start_kernel(self) -> str | None:
        """Start a kernel of the default kind and return its id; None when the gateway takes no more kernels."""
        specs = _decoded(await self._asked("GET", "api/kernelspecs"), _KernelSpecs)
        status, body = await self._answer("POST", "api/kernels", {"name": specs.default})
        # The token has just been accepted, so this is the limit of kernels.
        if status == HTTPStatus.FORBIDDEN:
            return None
        kernel_id = _decoded(self._checked(status, body), _Kernel).id
        if _KERNEL_ID.fullmatch(kernel_id) is None:
            raise SandboxUnavailable("The gateway gave a kernel an id that is none.")
        return kernel_id

    async def interrupt_kernel(self, kernel_id: str) -> None:
        """Send the kernel an interrupt, as of Ctrl-C."""
        await self._asked("POST", f"api/kernels/{kernel_id}/interrupt")

    async def restart_kernel(self, kernel_id: str) -> None:
        """Kill the interpreter of a kernel, and start another one under its id."""
        await self._asked("POST", f"api/kernels/{kernel_id}/restart")

    async def delete_kernel(self, kernel_id: str) -> None:
        """End a kernel; one that is gone already is fine, and so is a gateway that ends with it and says no more."""
        try:
            status, body = await self._answer("DELETE", f"api/kernels/{kernel_id}")
        except SandboxUnavailable as exc:
            if isinstance(exc.__cause__, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
                return
            raise
        if status != HTTPStatus.NOT_FOUND:
            self._checked(status, body)

    async def open_channels(self, kernel_id: str, session_id: str, message_bytes_max: int) -> aiohttp.ClientWebSocketResponse:
        """A connection to the channels of a kernel. A longer message closes it."""
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_SECONDS):
                return await self._client.ws_connect(
                    self._url(f"api/kernels/{kernel_id}/channels").with_query(session_id=session_id),
                    heartbeat=_HEARTBEAT_SECONDS,
                    max_msg_size=message_bytes_max,
                )
        except aiohttp.WSServerHandshakeError as exc:
            raise SandboxUnavailable(f"The gateway answered {exc.status} to the connection to a kernel.", retryable=True) from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise self._unreachable(exc) from exc

    async def close(self) -> None:
        """Close the connections; kernels stay."""
        await self._client.close()

    async def _asked(self, method: str, path: str) -> bytes:
        return self._checked(*await self._answer(method, path))

    def _checked(self, status: int, body: bytes) -> bytes:
        """The body of a good answer."""
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise SandboxUnavailable(f"The gateway at {self.name} answered {status}: it does not accept sandbox_token.")
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise SandboxUnavailable(f"The gateway at {self.name} answered {status}.", retryable=status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        return body

    async def _answer(self, method: str, path: str, content: dict[str, Any] | None = None) -> tuple[int, bytes]:
        try:
            async with self._client.request(method, self._url(path), json=content) as response:
                body = b""
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > _ANSWER_BYTES_MAX:
                        raise SandboxUnavailable(f"The gateway at {self.name} gave an answer that is too long.")
                return response.status, body
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise self._unreachable(exc) from exc

    def _url(self, path: str) -> yarl.URL:
        return self._address.url.joinpath(path)

    def _unreachable(self, exc: Exception) -> SandboxUnavailable:
        if isinstance(exc, TimeoutError):
            reason = "it did not answer in time"
        elif isinstance(exc, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
            reason = "its certificate is not accepted"
        elif isinstance(exc, aiohttp.ClientConnectorError):
            reason = exc.os_error.strerror or "the connection failed"
        elif isinstance(exc, aiohttp.ClientConnectionError | OSError):
            reason = "the connection was closed"
        else:
            reason = "it does not speak HTTP as expected"
        return SandboxUnavailable(f"The gateway at {self.name} cannot be used: {reason}.", retryable=True)


class _Pinned(AbstractResolver):
    """Knows one address, for every name."""

    def __init__(self, ip: str) -> None:
        self._ip = ip
        self._family = socket.AF_INET if ipaddress.ip_address(ip.partition("%")[0]).version == 4 else socket.AF_INET6

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        flags = socket.AI_NUMERICHOST
        return [ResolveResult(hostname=host, host=self._ip, port=port, family=self._family, proto=socket.IPPROTO_TCP, flags=flags)]

    async def close(self) -> None:
        """Nothing is held open."""


async def _refuse_redirect(request: aiohttp.ClientRequest, ask: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """A gateway must not send the server to an address that only the server can reach."""
    response = await ask(request)
    if HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
        response.close()
        raise aiohttp.ClientPayloadError("a redirect")
    return response


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise SandboxUnavailable("What answers is no Jupyter Kernel Gateway or Jupyter Server.") from exc
