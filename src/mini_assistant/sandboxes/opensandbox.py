"""The sandbox `opensandbox`: a container for each session, made by an OpenSandbox server on Docker or Kubernetes.

A container without a network is asked for, and one that lives for minutes: it is kept alive while its session is open, so that nothing
stays behind when this server is killed.
"""

import asyncio
import logging
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import yarl

from mini_assistant.errors import ConfigError, SandboxUnavailable
from mini_assistant.sandboxes.base import Output, SandboxSession
from mini_assistant.sandboxes.opensandbox_http import (
    AnswerLate,
    Connections,
    Endpoint,
    EndpointRecord,
    RenewedExpiration,
    RequestRefused,
    SandboxRecord,
    checked_headers,
    checked_id,
    plain_words,
)
from mini_assistant.sandboxes.opensandbox_session import DOLLAR_VARIABLE, OpenSandboxSession
from mini_assistant.settings import Settings

_EXECD_PORT = 44772
_LIFE_SECONDS = 600
_RENEW_INTERVAL_SECONDS = 120.0
# An image may have to be fetched first.
_START_TIMEOUT_SECONDS = 300.0
_POLL_SECONDS = 0.2
_POLL_SECONDS_MAX = 2.0
_END_ATTEMPTS = 3
_CLOSE_TIMEOUT_SECONDS = 10.0
_KEY_HEADER = "OPEN-SANDBOX-API-KEY"
_PROXY_OPTION = "use_server_proxy"
# The script of the image that starts the interpreters has moved between versions of the image.
_ENTRYPOINT = [
    "/bin/sh",
    "-c",
    "for s in /opt/code-interpreter/code-interpreter.sh /opt/opensandbox/code-interpreter.sh; do "
    '[ -x "$s" ] && exec "$s"; done; echo "no code-interpreter.sh in this image" >&2; exit 127',
]
_STARTING = {"Pending", "Creating", "Starting", "Resuming"}
_REASONS = {401: "the key in `sandbox_token` is not accepted", 403: "the key in `sandbox_token` may not do this"}

_log = logging.getLogger(__name__)


class OpenSandboxService:
    """A `Sandbox`. `sandbox_url` may end with `?use_server_proxy=true` where only the server can reach its sandboxes.

    Raises ConfigError when `sandbox_url` is no address, or the token cannot be sent as a header.
    """

    name = "opensandbox"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = _server_url(settings.sandbox_url)
        self._scheme = url.scheme
        self._is_proxied = url.query.get(_PROXY_OPTION) == "true"
        self._address = str(url.with_user(None).with_query(None))
        key = settings.sandbox_token.strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("The setting sandbox_token has characters that no key has, such as a line break in the middle.")
        self._key_headers = {_KEY_HEADER: key} if key else {}
        self._connections = Connections()
        self._server = Endpoint(self._connections, "The OpenSandbox server", url.with_query(None), self._key_headers, reasons=_REASONS)
        self._leases: set[_Lease] = set()
        self._creating: set[asyncio.Task[_Lease]] = set()
        self._is_closed = False

    async def check(self) -> str:
        """As `Sandbox.check`."""
        session = await self.create_session()
        told: list[Output] = []
        try:
            execution = await session.execute("open('check.txt', 'w').write('1'); print(6 * 7)", told.append)
            names = [file.name for file in await session.list_files()]
        finally:
            await session.close()
        if execution.outcome != "ok" or "".join(getattr(output, "text", "") for output in told).strip() != "42":
            raise SandboxUnavailable(
                f"Code does not run in the sandboxes of {self._address}: {execution.outcome}. {execution.detail}".strip()
            )
        if names != ["check.txt"]:
            raise SandboxUnavailable(
                f"The sandboxes of {self._address} do not tell their files as expected. OpenSandbox 1.1 or later is needed."
            )
        return f"{self._address}, image {self._settings.sandbox_image}"

    async def create_session(self, *, is_warm: bool = False) -> SandboxSession:
        """As `Sandbox.create_session`."""
        if self._is_closed:
            raise SandboxUnavailable("The server is stopping.")
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                lease = await self._wanted_lease()
                try:
                    session = await self._new_session(lease)
                    if is_warm:
                        await session.warm_up()
                except BaseException:
                    await lease.end()
                    raise
        except TimeoutError:
            raise SandboxUnavailable(
                f"The OpenSandbox server did not have a sandbox ready within {_START_TIMEOUT_SECONDS:g} seconds.", retryable=True
            ) from None
        return session

    async def close(self) -> None:
        """As `Sandbox.close`."""
        self._is_closed = True
        if self._creating:
            await asyncio.wait(self._creating, timeout=_CLOSE_TIMEOUT_SECONDS)
        await asyncio.gather(*(lease.end() for lease in self._leases))
        await self._connections.close()

    async def _wanted_lease(self) -> "_Lease":
        """A new sandbox; one that comes after the caller was cancelled is deleted."""
        creating = asyncio.create_task(self._new_lease())
        self._creating.add(creating)
        creating.add_done_callback(self._creating.discard)
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            creating.add_done_callback(_end_unwanted)
            raise

    async def _new_lease(self) -> "_Lease":
        memory_mebibytes = math.ceil(self._settings.sandbox_memory_bytes_max / 1024**2)
        body: dict[str, Any] = {
            "image": {"uri": self._settings.sandbox_image},
            "entrypoint": _ENTRYPOINT,
            "timeout": _LIFE_SECONDS,
            "resourceLimits": {"cpu": "1", "memory": f"{memory_mebibytes}Mi"},
            "env": {DOLLAR_VARIABLE: "$"},
            "metadata": {"name": "mini-assistant"},
            "networkPolicy": {"defaultAction": "deny", "egress": []},
        }
        answer = await self._server.call("POST", "/sandboxes", body=body, timeout_seconds=_START_TIMEOUT_SECONDS)
        record = self._server.decoded(answer, SandboxRecord)
        lease = _Lease(self._server, checked_id(record.id, "a sandbox"), record.expires_at, self._leases)
        if self._is_closed:
            await lease.end()
            raise SandboxUnavailable("The server is stopping.")
        return lease

    async def _new_session(self, lease: "_Lease") -> OpenSandboxSession:
        await self._wait_until_running(lease.sandbox_id)
        execd = await self._execd(lease.sandbox_id)
        await _asked_until_it_answers(execd, "/ping", [])
        session = await OpenSandboxSession.start(execd, self._settings, lease.end)
        lease.session = session
        return session

    async def _wait_until_running(self, sandbox_id: str) -> None:
        pause_seconds = _POLL_SECONDS
        while True:
            record = self._server.decoded(await self._server.call("GET", f"/sandboxes/{sandbox_id}"), SandboxRecord)
            if record.status.state == "Running":
                return
            if record.status.state not in _STARTING:
                state, message = plain_words(record.status.state), plain_words(record.status.message or "")
                raise SandboxUnavailable(f"A sandbox of the OpenSandbox server did not start: {state}. {message}".strip())
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 1.5, _POLL_SECONDS_MAX)

    async def _execd(self, sandbox_id: str) -> Endpoint:
        """Where execd of a sandbox is reached."""
        path = f"/sandboxes/{sandbox_id}/endpoints/{_EXECD_PORT}"
        answer = await _asked_until_it_answers(self._server, path, [(_PROXY_OPTION, "true")] if self._is_proxied else [])
        record = self._server.decoded(answer, EndpointRecord)
        try:
            url = yarl.URL(f"{self._scheme}://{record.endpoint}")
        except ValueError as exc:
            raise SandboxUnavailable("The OpenSandbox server gave an address that is none.") from exc
        if not url.host or url.user is not None:
            raise SandboxUnavailable("The OpenSandbox server gave an address that is none.")
        # The key opens every sandbox of the server: it is for the server, and never goes into a sandbox.
        headers = checked_headers(record.headers) | (self._key_headers if self._is_proxied else {})
        return Endpoint(self._connections, "The sandbox", url, headers)


def _server_url(told: str) -> yarl.URL:
    """The address of the API, with the query of the setting."""
    try:
        url = yarl.URL(told)
    except ValueError as exc:
        raise ConfigError(f"The setting sandbox_url is no URL: {exc}. Example: http://127.0.0.1:8080") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("The setting sandbox_url has to name the OpenSandbox server. Example: http://127.0.0.1:8080")
    path = url.path.rstrip("/")
    return url.with_path(path if path.endswith("/v1") else f"{path}/v1", keep_query=True)


async def _asked_until_it_answers(endpoint: Endpoint, path: str, query: list[tuple[str, str]]) -> bytes:
    """The answer of something that is starting; the caller limits the time."""
    while True:
        try:
            return await endpoint.call("GET", path, query=query)
        except RequestRefused as exc:
            if exc.status not in (404, 502, 503, 504):
                raise
        except AnswerLate:
            pass
        except SandboxUnavailable as exc:
            if not exc.retryable:
                raise
        await asyncio.sleep(_POLL_SECONDS)


class _Lease:
    """A sandbox that is kept alive. expires_at: by the clock of the server, which is the only one that is asked; None for never."""

    def __init__(self, server: Endpoint, sandbox_id: str, expires_at: datetime | None, leases: "set[_Lease]") -> None:
        self.sandbox_id = sandbox_id
        self.session: OpenSandboxSession | None = None
        self._server = server
        self._leases = leases
        self._ending: asyncio.Task[None] | None = None
        self._renewing = asyncio.create_task(self._renew(expires_at)) if expires_at is not None else None
        leases.add(self)

    async def end(self) -> None:
        """Delete the sandbox. May be called twice; also when the caller is cancelled, it is deleted."""
        await asyncio.shield(self.begin_end())

    def begin_end(self) -> "asyncio.Task[None]":
        """Begin to delete it."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._delete())
        return self._ending

    async def _delete(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        for attempt in range(_END_ATTEMPTS):
            try:
                await self._server.call("DELETE", f"/sandboxes/{self.sandbox_id}")
            except RequestRefused as exc:
                if exc.status == 404:
                    break
                _log.warning("A sandbox could not be deleted. %s", exc.message)
            except SandboxUnavailable as exc:
                _log.warning("A sandbox could not be deleted. %s", exc.message)
            else:
                break
            await asyncio.sleep(_POLL_SECONDS * (attempt + 1))
        self._leases.discard(self)

    async def _renew(self, expires_at: datetime) -> None:
        loop = asyncio.get_running_loop()
        expires_at = expires_at if expires_at.tzinfo is not None else expires_at.replace(tzinfo=UTC)
        told_at = loop.time()
        while True:
            await asyncio.sleep(_RENEW_INTERVAL_SECONDS)
            wanted = expires_at + timedelta(seconds=loop.time() - told_at)
            try:
                answer = await self._server.call(
                    "POST", f"/sandboxes/{self.sandbox_id}/renew-expiration", body={"expiresAt": wanted.astimezone(UTC).isoformat()}
                )
                self._server.decoded(answer, RenewedExpiration)
            except RequestRefused as exc:
                _log.warning("The life of a sandbox could not be prolonged. %s", exc.message)
                if exc.status == 404:
                    if self.session is not None:
                        self.session.lose()
                    return
            except SandboxUnavailable as exc:
                _log.warning("The life of a sandbox could not be prolonged. %s", exc.message)


def _end_unwanted(creating: asyncio.Task[_Lease]) -> None:
    if not creating.cancelled() and creating.exception() is None:
        creating.result().begin_end()
