"""Confines the process that a session of wasm runs in, for the case that code gets out of WebAssembly: as far as the machine can.

bubblewrap gives it a file system with nothing but what it reads, and namespaces without network and other processes. wasm_landlock.py
runs in that, or alone where there are no user namespaces: Landlock for files, and a filter of system calls. Both need Linux.
"""

import asyncio
import base64
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.bubblewrap import Bubblewrap, find_bubblewrap
from mini_assistant.sandboxes.seccomp import seccomp_filter
from mini_assistant.sandboxes.wasm_landlock import landlock_version

ConfinementKind = Literal["bubblewrap", "landlock", "none"]
"""By what. landlock: with the filter of system calls, which is all that a kernel without Landlock is left with."""

_CONFINE_PROGRAM = Path(__file__).parent / "wasm_landlock.py"
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")
_PROBE_TIMEOUT_SECONDS = 20.0
_TMP_BYTES = 64 * 1024


class Opened(NamedTuple):
    """What the process needs. python: of an environment, which is read with its library. reads, writes: files and folders."""

    python: Path
    reads: Sequence[Path]
    writes: Sequence[Path]


class Confinement(NamedTuple):
    """How processes are confined. bubblewrap: None where it is not used."""

    kind: ConfinementKind
    bubblewrap: Bubblewrap | None = None

    @property
    def description(self) -> str:
        """For people."""
        landlock = f"Landlock {landlock_version()}" if landlock_version() else "no Landlock"
        if self.bubblewrap is not None:
            return f"its process in {self.bubblewrap.version} with {landlock} and a filter of system calls"
        if self.kind == "landlock":
            return f"its process with {landlock} and a filter of system calls, but without namespaces"
        return "its process not confined any further on this system"


async def find_confinement(kind: ConfinementKind | None, opened: Opened) -> Confinement:
    """One of this kind; None for the best that works here. Raises SandboxUnavailable when it does not work."""
    if kind is not None:
        return Confinement(kind, await find_bubblewrap() if kind == "bubblewrap" else None)
    if sys.platform != "linux":
        return Confinement("none")
    try:
        best = Confinement("bubblewrap", await find_bubblewrap())
    except SandboxUnavailable:
        return Confinement("landlock")
    return best if await _works(best, opened) else Confinement("landlock")


async def _works(confinement: Confinement, opened: Opened) -> bool:
    process = await asyncio.create_subprocess_exec(
        *confined_command(confinement, opened, ["-c", ""]),
        env={},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_SECONDS):
            return await process.wait() == 0
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def confined_command(confinement: Confinement, opened: Opened, arguments: Sequence[str]) -> list[str]:
    """The command that runs Python with these arguments, confined. Raises SandboxUnavailable when no filter is known for the machine."""
    python = [str(opened.python), "-I"]
    if confinement.kind == "none":
        return [*python, *arguments]
    environment, base = opened.python.parent.parent, opened.python.resolve().parent.parent
    reads = [*_SYSTEM, *map(str, (environment, base, _CONFINE_PROGRAM, *opened.reads))]
    writes = [str(path) for path in opened.writes]
    order = {
        "reads": [*reads, "/proc/self"],
        "writes": writes,
        "filter": base64.b64encode(seccomp_filter(platform.machine())).decode("ascii"),
        # In the namespaces the parent is bubblewrap, which ends with this process, and ends all in them.
        "parent": 0 if confinement.bubblewrap is not None else os.getpid(),
    }
    command = [*python, "-S", str(_CONFINE_PROGRAM), json.dumps(order), *python, *arguments]
    if confinement.bubblewrap is None:
        return command
    return [confinement.bubblewrap.path, *_bubblewrap_options(confinement.bubblewrap, reads, writes), *command]


def _bubblewrap_options(bubblewrap: Bubblewrap, reads: Sequence[str], writes: Sequence[str]) -> list[str]:
    return [
        *("--unshare-all", "--unshare-user", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--cap-drop", "ALL"),
        *("--die-with-parent", "--new-session", "--clearenv"),
        *(["--disable-userns"] if bubblewrap.can_disable_userns else []),
        # First of all: what is bound may lie below it.
        *("--size", str(_TMP_BYTES), "--tmpfs", "/tmp"),  # noqa: S108 - inside of the sandbox
        *(word for path in reads for word in ("--ro-bind-try", path, path)),
        *(word for path in writes for word in ("--bind", path, path)),
        *("--proc", "/proc", "--remount-ro", "/proc", "--remount-ro", "/"),
    ]
