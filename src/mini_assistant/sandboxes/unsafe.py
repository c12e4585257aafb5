"""Runs code in a plain process with all the rights of the server: for trying things out where nothing better works, and only when it
is asked for by its name.

Its limits are no protection; they keep honest code from filling the machine. Code finds its files in a folder of the data directory,
and `/mnt/data` in the code and its output is exchanged for that folder and back.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from weakref import WeakSet

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.agent_session import AGENT_PROGRAM, MATPLOTLIB_BACKEND, AgentSession, Launched
from mini_assistant.sandboxes.base import DATA_DIRECTORY, Execution, Image, Logs, Output
from mini_assistant.sandboxes.session_folder import SessionFolder, remove_leftovers
from mini_assistant.settings import Settings

_START_TIMEOUT_SECONDS = 30.0
# Ends with the server, whatever ends that: set before the agent is there, which does not know of it.
_BOOTSTRAP = """
import ctypes, os, resource, signal, sys
parent, file_bytes_max, memory_bytes_max = map(int, sys.argv[1:4])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
for kind, value in ((resource.RLIMIT_FSIZE, file_bytes_max), (resource.RLIMIT_AS, memory_bytes_max), (resource.RLIMIT_CORE, 0)):
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):
        pass
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-I", *sys.argv[4:]])
"""
# Libraries reserve more addresses than they use.
_ADDRESS_SPACE_SPARE_BYTES = 1024**3

_log = logging.getLogger(__name__)


class UnsafeSandbox:
    """A `Sandbox` that protects nothing."""

    name = "unsafe"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.data_dir.absolute() / "sandboxes"
        self._sessions: WeakSet[AgentSession] = WeakSet()  # one that is open is held by the loop, which reads from it
        self._is_closed = False
        remove_leftovers(self._folder)
        prepared = settings.sandbox_environments / "process" / "bin" / "python"
        self._python = str(prepared if prepared.exists() else sys.executable)

    async def check(self) -> str:
        """As `Sandbox.check`."""
        session = await self.create_session()
        try:
            said: list[Output] = []
            execution = await session.execute("1 + 1", said.append)
        finally:
            await session.close()
        if execution.outcome != "ok" or said != [Logs("2\n")]:
            raise SandboxUnavailable(f"Python does not work in the sandbox unsafe. {execution.detail}".strip())
        return f"{self._python} without any isolation: code can do all that the server can"

    async def create_session(self, *, is_warm: bool = False) -> "UnsafeSession":
        """As `Sandbox.create_session`."""
        if self._is_closed:
            raise SandboxUnavailable("The server is stopping.")
        try:
            folder = await asyncio.to_thread(SessionFolder, self._folder)
        except OSError as exc:
            raise SandboxUnavailable(f"A folder for the sandbox unsafe cannot be made: {exc.strerror or exc}.") from exc
        try:
            session = UnsafeSession(await self._launch(folder), self._settings, str(folder.data))
        except BaseException as exc:
            await asyncio.to_thread(folder.remove)
            if isinstance(exc, OSError):
                raise SandboxUnavailable(f"Python cannot be started in the sandbox unsafe: {exc.strerror or exc}.") from exc
            raise
        self._sessions.add(session)
        await session.start(_START_TIMEOUT_SECONDS)
        if is_warm:
            await session.warm()
        return session

    async def close(self) -> None:
        """As `Sandbox.close`."""
        self._is_closed = True
        for session in list(self._sessions):
            await session.close()

    async def _launch(self, folder: SessionFolder) -> Launched:
        with contextlib.ExitStack() as here, contextlib.ExitStack() as on_failure:
            ends = [os.pipe() for _ in range(3)]
            (requests, to_agent), (from_agent, answers), (logs, log_end) = ends
            for descriptor in (requests, answers, log_end):
                here.callback(os.close, descriptor)
            for descriptor in (to_agent, from_agent, logs):
                on_failure.callback(os.close, descriptor)
            data = folder.open_data()
            on_failure.callback(os.close, data)
            process = await asyncio.create_subprocess_exec(
                self._python,
                *("-I", "-c", _BOOTSTRAP, str(os.getpid()), str(self._settings.sandbox_disk_bytes_max)),
                str(self._settings.sandbox_memory_bytes_max + _ADDRESS_SPACE_SPARE_BYTES),
                *(str(AGENT_PROGRAM), str(requests), str(answers), str(folder.data)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_end,
                stderr=log_end,
                pass_fds=(requests, answers),
                env=_environment(folder),
                cwd=folder.data,
                start_new_session=True,
            )
            on_failure.pop_all()
        bytes_max, files_max = self._settings.sandbox_disk_bytes_max, self._settings.sandbox_files_max
        return Launched(
            process=process,
            requests=to_agent,
            answers=from_agent,
            logs=logs,
            data=data,
            can_interrupt=True,
            kill=lambda: _kill_group(process.pid),
            over_limit=lambda: "disk_limit" if folder.is_over(bytes_max, files_max) else None,
            dispose=folder.remove,
        )


def _environment(folder: SessionFolder) -> dict[str, str]:
    """All of it: the server's own has secrets in it."""
    threads = str(os.cpu_count() or 1)
    return {
        "PATH": os.defpath,
        "HOME": str(folder.temporary),
        "TMPDIR": str(folder.temporary),
        "LANG": "C.UTF-8",
        "MPLBACKEND": MATPLOTLIB_BACKEND,
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
    }


def _kill_group(process_id: int) -> None:
    """The agent with all that has stayed in its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, signal.SIGKILL)


class UnsafeSession(AgentSession):
    """A `SandboxSession` whose folder is called something else than the code believes."""

    def __init__(self, launched: Launched, settings: Settings, folder: str) -> None:
        super().__init__(launched, settings)
        self._folder = folder

    async def execute(self, code: str, on_output: Callable[[Output], None]) -> Execution:
        """As `SandboxSession.execute`."""
        logs = _Renamed(self._folder, DATA_DIRECTORY, on_output)
        execution = await super().execute(code.replace(DATA_DIRECTORY, self._folder), logs.add)
        logs.flush()
        return execution


class _Renamed:
    """Exchanges a text in logs, also where it lies across two pieces."""

    def __init__(self, old: str, new: str, on_output: Callable[[Output], None]) -> None:
        self._old = old
        self._new = new
        self._on_output = on_output
        self._held = ""

    def add(self, output: Output) -> None:
        if isinstance(output, Image):
            self.flush()
            self._on_output(output)
            return
        text = (self._held + output.text).replace(self._old, self._new)
        # The end may be the beginning of it.
        held = next((count for count in range(len(self._old) - 1, 0, -1) if text.endswith(self._old[:count])), 0)
        self._held = text[len(text) - held :]
        self._tell(text[: len(text) - held])

    def flush(self) -> None:
        held, self._held = self._held, ""
        self._tell(held)

    def _tell(self, text: str) -> None:
        if text:
            self._on_output(Logs(text))
