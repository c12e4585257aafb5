"""Sessions on Jupyter Kernel Gateways or Jupyter Servers: one kernel is a session, and a gateway has one session at a time.

The container of the gateway is the sandbox: its limits of memory, disk, processes and network are those of its container. A session has
it for itself, and nothing of a session meets the next one, where gateways take one kernel and end with it, as those in
`deploy/kubernetes` do; `check` says whether they do.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.base import Logs, Output
from mini_assistant.sandboxes.jupyter_gateway import Address, Gateway, addresses_of, gateway_urls
from mini_assistant.sandboxes.jupyter_session import FolderNotEmpty, JupyterSession
from mini_assistant.settings import Settings

# How long a gateway that ended with its session takes to come back, or another one in its place.
_FREE_TIMEOUT_SECONDS = 30.0
_FREE_PAUSE_SECONDS = 0.5
_END_TIMEOUT_SECONDS = 5.0
_END_PAUSE_SECONDS = 0.25

_log = logging.getLogger(__name__)


class JupyterSandbox:
    """A `Sandbox`. Raises ConfigError when `sandbox_url` is missing or no URL."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._urls = gateway_urls(settings.sandbox_url)
        # None while the session is being started.
        self._taken: dict[Address, JupyterSession | None] = {}

    @property
    def name(self) -> str:
        return "jupyter"

    async def check(self) -> str:
        count = len(await self._addresses())
        session, address = await self._claimed(is_warm=False)
        outputs: list[Output] = []
        try:
            execution = await session.execute("print(6 * 7)", outputs.append)
            takes_more = await self._takes_more(address)
        finally:
            await session.close()
        if execution.outcome != "ok" or "".join(output.text for output in outputs if isinstance(output, Logs)) != "42\n":
            raise SandboxUnavailable(f"A kernel of the gateway at {address.url} runs no Python, or says something else than it should.")
        places = f"{count} gateway{'s' if count != 1 else ''} at {', '.join(str(url) for url in self._urls)}"
        if not takes_more and await self._has_ended(address):
            return f"{places}, each for one session, and it ends with it"
        warning = "but a gateway lives on after its session, and what code leaves behind there meets the next session"
        _log.warning("sandbox = jupyter: %s. deploy/kubernetes has gateways that end with their session.", warning)
        return f"{places}, {warning}"

    async def create_session(self, *, is_warm: bool = False) -> JupyterSession:
        give_up_at = asyncio.get_running_loop().time() + _FREE_TIMEOUT_SECONDS
        while True:
            try:
                session, _ = await self._claimed(is_warm=is_warm)
                return session
            except SandboxUnavailable as exc:
                if not exc.retryable or asyncio.get_running_loop().time() > give_up_at:
                    raise
            await asyncio.sleep(_FREE_PAUSE_SECONDS)

    async def close(self) -> None:
        sessions = [session for session in self._taken.values() if session is not None]
        await asyncio.gather(*(session.close() for session in sessions))

    async def _addresses(self) -> list[Address]:
        found = [address for url in self._urls for address in await addresses_of(url)]
        if not found:
            raise SandboxUnavailable("No gateway is ready: the name in sandbox_url has no address.", retryable=True)
        return found

    async def _claimed(self, *, is_warm: bool) -> tuple[JupyterSession, Address]:
        """A session on a gateway that has none. Raises SandboxUnavailable."""
        addresses = await self._addresses()
        failure = SandboxUnavailable(f"Every gateway is in use ({len(addresses)}).", retryable=True)
        # Servers that share the gateways would otherwise all begin with the same one.
        for address in random.sample(addresses, len(addresses)):
            if address in self._taken:
                continue
            self._taken[address] = None
            try:
                session = await self._started(address, is_warm=is_warm)
            except FolderNotEmpty as exc:
                failure = SandboxUnavailable(exc.message, retryable=True)
            except SandboxUnavailable as exc:
                if not exc.retryable:
                    raise
                failure = exc
            else:
                if session is not None:
                    return session, address
            finally:
                if self._taken.get(address) is None:
                    self._free(address)
        raise failure

    async def _started(self, address: Address, *, is_warm: bool) -> JupyterSession | None:
        """A session on this gateway; None when it takes no more kernels."""
        gateway = Gateway(address, self._settings.sandbox_token)
        try:
            kernel_id = await gateway.start_kernel()
        except BaseException:
            await gateway.close()
            raise
        if kernel_id is None:
            await gateway.close()
            return None
        session = JupyterSession(gateway, kernel_id, self._settings, lambda: self._free(address))
        try:
            await session.start(is_warm=is_warm)
        except BaseException:
            await session.close()
            raise
        self._taken[address] = session
        return session

    def _free(self, address: Address) -> None:
        self._taken.pop(address, None)

    async def _takes_more(self, address: Address) -> bool:
        """Whether a gateway starts a kernel beside the one it has."""
        async with _opened(address, self._settings.sandbox_token) as gateway:
            kernel_id = await gateway.start_kernel()
            if kernel_id is not None:
                await gateway.delete_kernel(kernel_id)
        return kernel_id is not None

    async def _has_ended(self, address: Address) -> bool:
        """Whether a gateway goes away, some time after its kernel."""
        give_up_at = asyncio.get_running_loop().time() + _END_TIMEOUT_SECONDS
        async with _opened(address, self._settings.sandbox_token) as gateway:
            while asyncio.get_running_loop().time() < give_up_at:
                try:
                    await gateway.ask()
                except SandboxUnavailable:
                    return True
                await asyncio.sleep(_END_PAUSE_SECONDS)
        return False


@contextlib.asynccontextmanager
async def _opened(address: Address, token: str) -> AsyncGenerator[Gateway]:
    gateway = Gateway(address, token)
    try:
        yield gateway
    finally:
        await gateway.close()
