"""Runs code in CPython for WASI, which wasmtime runs in a process of its own for each session: the interpreter itself cannot reach the
host, and needs nothing of the system for that.

Every session begins with numpy, pandas and matplotlib loaded. Code has no threads, no programs to start, no sockets and no signals.
"""

import asyncio
import contextlib
import os
import signal
import weakref

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.agent_session import AGENT_PROGRAM, AgentSession, Launched
from mini_assistant.sandboxes.base import Logs, Outcome, Output
from mini_assistant.sandboxes.session_folder import SessionFolder, remove_leftovers
from mini_assistant.sandboxes.wasm_confinement import Confinement, ConfinementKind, Opened, confined_command, find_confinement
from mini_assistant.sandboxes.wasm_prepare import HOST_PROGRAM, PreparedWasm, host_order, prepared_wasm
from mini_assistant.settings import Settings

_START_TIMEOUT_SECONDS = 60.0
# More than the guest can address, it cannot be given.
_MEMORY_BYTES_MAX = 4 * 1024**3
# Files that the server puts into a session come on top of what the guest writes.
_BEYOND = 3
_PROBE = """
import os, socket, sys
def is_open(path):
    try:
        open(path).close()
    except OSError:
        return False
    return True
assert not is_open({secret!r}) and not is_open("/etc/passwd") and not is_open("/proc/self/environ"), "files of the host"
assert sorted(os.listdir("/mnt/data")) == [], "files of others"
try:
    socket.socket()
except Exception:
    pass
else:
    raise AssertionError("sockets")
import numpy, pandas, matplotlib
print("CPython", sys.version.split()[0], "for WASI")
"""


class WasmSandbox:
    """A `Sandbox` in WebAssembly. confined_by: what its processes are confined by; None for the best that there is."""

    name = "wasm"

    def __init__(self, settings: Settings, *, confined_by: ConfinementKind | None = None) -> None:
        self._settings = settings
        self._folder = settings.data_dir.absolute() / "sandboxes"
        self._confined_by: ConfinementKind | None = confined_by
        self._confinement: Confinement | None = None
        self._sessions = weakref.WeakSet[AgentSession]()
        self._is_closed = False
        remove_leftovers(self._folder)

    async def check(self) -> str:
        """As `Sandbox.check`."""
        session = await self.create_session()
        said: list[Output] = []
        try:
            execution = await session.execute(_PROBE.format(secret=str(HOST_PROGRAM)), said.append)
        finally:
            await session.close()
        text = "".join(output.text for output in said if isinstance(output, Logs)).strip()
        if execution.outcome != "ok":
            raise SandboxUnavailable(f"The sandbox wasm does not keep what it promises. {execution.detail} {text}".strip())
        assert self._confinement is not None
        return f"{text} on wasmtime, {self._confinement.description}"

    async def create_session(self, *, is_warm: bool = False) -> AgentSession:
        """As `Sandbox.create_session`; all of them are warm."""
        if self._is_closed:
            raise SandboxUnavailable("The server is stopping.")
        prepared = await asyncio.to_thread(prepared_wasm, self._settings.sandbox_environments.absolute())
        session = AgentSession(await self._launch(prepared), self._settings)
        await session.start(_START_TIMEOUT_SECONDS)
        self._sessions.add(session)
        if self._is_closed:
            await session.close()
        return session

    async def close(self) -> None:
        """As `Sandbox.close`."""
        self._is_closed = True
        while self._sessions:
            await self._sessions.pop().close()

    async def _launch(self, prepared: PreparedWasm) -> Launched:
        try:
            folder = await asyncio.to_thread(SessionFolder, self._folder)
        except OSError as exc:
            raise SandboxUnavailable(f"{self._folder} cannot be used: {exc.strerror or exc}.") from exc
        try:
            opened = Opened(prepared.python, [HOST_PROGRAM, AGENT_PROGRAM], [folder.data, folder.temporary])
            if self._confinement is None:
                self._confinement = await find_confinement(self._confined_by, opened)
            return await self._start(prepared, folder, opened, self._confinement)
        except BaseException as exc:
            await asyncio.to_thread(folder.remove)
            if isinstance(exc, OSError):
                raise SandboxUnavailable(f"The sandbox wasm cannot be started: {exc.strerror or exc}.") from exc
            raise

    async def _start(self, prepared: PreparedWasm, folder: SessionFolder, opened: Opened, confinement: Confinement) -> Launched:
        settings = self._settings
        with contextlib.ExitStack() as here, contextlib.ExitStack() as on_failure:
            (requests, to_agent), (from_agent, answers), (logs, log_end) = [os.pipe() for _ in range(3)]
            for descriptor in (requests, answers, log_end):
                here.callback(os.close, descriptor)
            for descriptor in (to_agent, from_agent, logs):
                on_failure.callback(os.close, descriptor)
            data = folder.open_data()
            on_failure.callback(os.close, data)
            order = host_order(
                prepared,
                (folder.data, folder.temporary),
                program=str(AGENT_PROGRAM),
                memory_bytes_max=min(settings.sandbox_memory_bytes_max, _MEMORY_BYTES_MAX),
                disk_bytes_max=settings.sandbox_disk_bytes_max,
                files_max=settings.sandbox_files_max,
                requests=requests,
                answers=answers,
            )
            process = await asyncio.create_subprocess_exec(
                *confined_command(confinement, opened, [str(HOST_PROGRAM), "run", order]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_end,
                stderr=log_end,
                pass_fds=(requests, answers),
                env={},
                start_new_session=True,
            )
            on_failure.pop_all()
        return Launched(
            process=process,
            requests=to_agent,
            answers=from_agent,
            logs=logs,
            data=data,
            can_interrupt=False,
            kill=lambda: _kill_group(process.pid),
            over_limit=lambda: _over_limit(folder, settings),
            dispose=folder.remove,
        )


def _over_limit(folder: SessionFolder, settings: Settings) -> Outcome | None:
    """The host program keeps the limits to the byte; beyond this, code has got past it."""
    is_over = folder.is_over(_BEYOND * settings.sandbox_disk_bytes_max, _BEYOND * settings.sandbox_files_max)
    return "disk_limit" if is_over else None


def _kill_group(process_id: int) -> None:
    """The process with what holds it; what bubblewrap started ends with it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, signal.SIGKILL)
