"""The sandbox `process`: Python under bubblewrap, in namespaces of its own, with a filter for system calls and limits by the kernel.

All that keeps code inside is set from outside and cannot be undone by it; the program inside, guest/agent.py, protects nothing. Where a
part of the isolation cannot be had there is no session: `check` tries what code must not be able to do.
"""

import asyncio
import platform
import sys

import msgspec

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.agent_session import AgentSession, Launched
from mini_assistant.sandboxes.base import Logs, Output
from mini_assistant.sandboxes.bubblewrap import find_bubblewrap, python_runtime
from mini_assistant.sandboxes.cgroups import cgroup_parents_or_none
from mini_assistant.sandboxes.environments import prepared_python_or_none
from mini_assistant.sandboxes.process_guest import START_TIMEOUT_SECONDS, Ground, Guest, Pipes, is_to_become_user, start_guest
from mini_assistant.sandboxes.process_probe import Found, holes, probe_code
from mini_assistant.sandboxes.seccomp import seccomp_filter
from mini_assistant.settings import Settings

_WATCH_SECONDS = 1.0


class ProcessSandbox:
    """A `Sandbox`. Looks for what it needs when the first session is asked for."""

    name = "process"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cgroups = cgroup_parents_or_none()
        self._ground: Ground | None = None
        self._sessions: dict[Guest, AgentSession] = {}
        self._watching: asyncio.Task[None] | None = None
        self._is_closed = False

    async def check(self) -> str:
        """As `Sandbox.check`."""
        session = await self.create_session()
        try:
            said: list[Output] = []
            execution = await session.execute(probe_code(self._settings), said.append)
            text = "".join(output.text for output in said if isinstance(output, Logs))
        finally:
            await session.close()
        try:
            found = msgspec.json.decode(text.strip().encode(), type=Found)
        except msgspec.DecodeError:
            raise SandboxUnavailable(f"The sandbox process does not work. {execution.detail} {text[-500:]}".strip()) from None
        open_holes = list(holes(found, self._settings))
        if open_holes:
            raise SandboxUnavailable(f"The sandbox process is not tight here: {'; '.join(open_holes)}.")
        assert self._ground is not None
        limits = "rlimits only" if self._cgroups is None else f"rlimits and cgroups (version {self._cgroups.version})"
        return f"{self._ground.bubblewrap.version}, Python {found.python}, seccomp, limits by {limits}"

    async def create_session(self, *, is_warm: bool = False) -> AgentSession:
        """As `Sandbox.create_session`."""
        self._raise_if_closed()
        if self._ground is None:
            self._ground = await _find_ground(self._settings)
        guest, pipes = await self._start(self._ground)
        session = self._sessions[guest] = AgentSession(self._launched(guest, pipes), self._settings)
        await session.start(START_TIMEOUT_SECONDS)
        if is_warm:
            await session.warm()
        if self._is_closed:
            await session.close()
        self._raise_if_closed()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        return session

    async def close(self) -> None:
        """As `Sandbox.close`."""
        self._is_closed = True
        await asyncio.gather(*(session.close() for session in list(self._sessions.values())))
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    def _raise_if_closed(self) -> None:
        if self._is_closed:
            raise SandboxUnavailable("The server is stopping.")

    async def _start(self, ground: Ground) -> tuple[Guest, Pipes]:
        try:
            return await start_guest(ground, self._cgroups, self._settings)
        except TimeoutError:
            raise SandboxUnavailable("The sandbox process did not start in time.") from None
        except OSError as exc:
            raise SandboxUnavailable(f"The sandbox process cannot be started: {exc.strerror or exc}.") from exc

    def _launched(self, guest: Guest, pipes: Pipes) -> Launched:
        def dispose() -> None:
            self._sessions.pop(guest, None)
            guest.dispose()

        return Launched(
            process=guest.process,
            requests=pipes.to_agent,
            answers=pipes.from_agent,
            logs=pipes.logs,
            data=guest.data,
            can_interrupt=True,
            kill=guest.kill,
            over_limit=guest.over_limit_or_none,
            dispose=dispose,
        )

    async def _watch(self) -> None:
        """Look after what goes on between the calls: programs that code has left behind take room too."""
        while self._sessions:
            await asyncio.sleep(_WATCH_SECONDS)
            for guest in list(self._sessions):
                if guest.over_limit_or_none() is not None:
                    guest.kill()


async def _find_ground(settings: Settings) -> Ground:
    """Raises SandboxUnavailable with what is missing."""
    if sys.platform != "linux":
        raise SandboxUnavailable("The sandbox process needs Linux.")
    program = seccomp_filter(platform.machine())
    python = prepared_python_or_none(settings.sandbox_environments)
    if python is None:
        raise SandboxUnavailable(
            f"The sandbox process has no Python environment in {settings.sandbox_environments}: run `mini-assistant sandbox prepare`."
        )
    return Ground(await find_bubblewrap(), python_runtime(python.parent.parent), program, is_to_become_user())
