"""The processes of a session of the sandbox `process`, from outside: starts them, puts limits on them, measures and ends them.

bubblewrap makes the namespaces and waits, before it does anything in them, until the limits of the session are set here. No limit is
set by a program inside.
"""

import asyncio
import contextlib
import json
import os
import resource
import secrets
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from mini_assistant.errors import SandboxUnavailable
from mini_assistant.sandboxes.agent_session import AGENT_PROGRAM
from mini_assistant.sandboxes.base import DATA_DIRECTORY, Outcome
from mini_assistant.sandboxes.bubblewrap import INNER_USER, Bubblewrap, Confinement, PythonRuntime, bubblewrap_options, starter_command
from mini_assistant.sandboxes.cgroups import CgroupParents, SessionCgroup
from mini_assistant.settings import Settings

PROCESSES_SPARE = 2
"""Processes that bubblewrap has for each session, one of them inside."""

START_TIMEOUT_SECONDS = 30.0
"""How long a session may take to start."""

_END_TIMEOUT_SECONDS = 3.0
_INFO_BYTES_MAX = 4096
_WORDS_BYTES_MAX = 4096
_TMP_BYTES_MAX = 256 * 1024 * 1024
_SHM_BYTES_MAX = 64 * 1024 * 1024
# What processes take beside what the code asks for: the kernel's own tables for them.
_MEMORY_SPARE_BYTES = 64 * 1024 * 1024
# Libraries reserve more addresses than they use.
_ADDRESS_SPACE_SPARE_BYTES = 8 * 1024**3
_OPEN_FILES_MAX = 256
_STACK_BYTES = 8 * 1024 * 1024
_NICENESS = 10
_OOM_SCORE = 900
# Users that no system gives to anybody: systemd documents the range as free. A session's user is one of them where the server is root.
_FREE_USERS = range(0x7000_0000, 0x7FFE_0000)
_SIGNS_OF_BLOCKED_NAMESPACES = ("namespace", "uid map", "proc on", "Operation not permitted", "Permission denied")
_BLOCKED_HINT = (
    "User namespaces may be forbidden here: in Docker by its seccomp profile (run with `--security-opt seccomp=unconfined --security-opt "
    "systempaths=unconfined`), on Ubuntu by `kernel.apparmor_restrict_unprivileged_userns=1`, elsewhere by `user.max_user_namespaces=0`."
)


@dataclass(frozen=True)
class Ground:
    """What all sessions stand on."""

    bubblewrap: Bubblewrap
    runtime: PythonRuntime
    filter: bytes
    becomes_user: bool


def is_to_become_user() -> bool:
    """Whether sessions need a user of their own: the files of root are open to root also where it has no rights.

    Raises SandboxUnavailable when root can have no other user.
    """
    if os.geteuid() != 0:
        return False
    users = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    if len(users) == 3 and users[2] == "1":  # a namespace of one user, which only looks like root
        if users[1] != "0":
            return False
        raise SandboxUnavailable("The sandbox process cannot leave root here: run the server as another user.")
    return True


class Pipes:
    """The pipes of a session that is being started, and small texts for bubblewrap. The guest's ends are closed here once it has them."""

    def __init__(self) -> None:
        self._ours = contextlib.ExitStack()
        self._theirs = contextlib.ExitStack()
        self.inherited: list[int] = []
        # What bubblewrap has said of itself so far.
        self.told = bytearray()
        self.requests, self.to_agent = self._pair(is_to_guest=True)
        self.answers, self.from_agent = self._pair(is_to_guest=False)
        self.log_end, self.logs = self._pair(is_to_guest=False)
        self.info, self.from_info = self._pair(is_to_guest=False)
        self.block, self.unblock = self._pair(is_to_guest=True)

    def descriptor_of(self, text: str | bytes) -> int:
        """A descriptor that the guest reads a text from."""
        descriptor = os.memfd_create("sandbox")
        self._give(descriptor)
        os.write(descriptor, text if isinstance(text, bytes) else text.encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def close_theirs(self) -> None:
        self._theirs.close()

    def close(self) -> None:
        self._theirs.close()
        self._ours.close()

    def hand_over(self) -> None:
        """The pipes to the agent belong to its session from now on."""
        self._ours.pop_all()
        os.close(self.from_info)
        os.close(self.unblock)

    def _give(self, descriptor: int) -> None:
        self.inherited.append(descriptor)
        self._theirs.callback(os.close, descriptor)

    def _pair(self, *, is_to_guest: bool) -> tuple[int, int]:
        """The guest's end of a pipe, and ours."""
        theirs, ours = os.pipe() if is_to_guest else reversed(os.pipe())
        self._give(theirs)
        self._ours.callback(os.close, ours)
        return theirs, ours


async def start_guest(ground: Ground, cgroups: CgroupParents | None, settings: Settings) -> tuple["Guest", Pipes]:
    """Start the processes of a session, and wait until the program inside is ready. Its pipes belong to the caller then.

    The processes wait for their limits before they do anything. Raises SandboxUnavailable, OSError, TimeoutError; nothing is left then.
    """
    pipes = Pipes()
    guest = None
    # Not to be given up half-way: killed at this point, the outer process of bubblewrap would leave the inner one behind for good.
    spawning = asyncio.create_task(_spawn(ground, pipes, settings))
    try:
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            process = await asyncio.shield(spawning)
            pipes.close_theirs()
            guest = Guest(process, await _inner_process(pipes), settings)
            guest.confine(cgroups, becomes_user=ground.becomes_user)
            os.write(pipes.unblock, b"1")
            # The first word of the agent: everything is in its place, and no code of the model was there yet.
            await _readable(pipes.from_agent)
            guest.open_folders(pipes.logs)
    except BaseException:
        await asyncio.shield(_give_up(spawning, guest, pipes))
        if guest is not None:
            guest.dispose()
        raise
    pipes.hand_over()
    return guest, pipes


async def _give_up(spawning: asyncio.Task[asyncio.subprocess.Process], guest: "Guest | None", pipes: Pipes) -> None:
    """End what has been started. The inner process first: the outer one ends with it, but not the other way round before both go on."""
    await asyncio.wait([spawning])
    if spawning.exception() is not None:
        pipes.close()
        return
    process = spawning.result()
    pipes.close_theirs()
    with contextlib.suppress(TimeoutError, SandboxUnavailable, ProcessLookupError):
        async with asyncio.timeout(_END_TIMEOUT_SECONDS):
            if guest is not None:
                guest.kill()
            else:
                os.kill(await _inner_process(pipes), signal.SIGKILL)
    pipes.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _END_TIMEOUT_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def _spawn(ground: Ground, pipes: Pipes, settings: Settings) -> asyncio.subprocess.Process:
    kept = (pipes.requests, pipes.answers)
    confinement = Confinement(
        becomes_user=ground.becomes_user,
        agent=AGENT_PROGRAM,
        seccomp=pipes.descriptor_of(ground.filter),
        block=pipes.block,
        info=pipes.info,
        kept=kept,
        data_bytes=settings.sandbox_disk_bytes_max,
        tmp_bytes=min(settings.sandbox_disk_bytes_max, _TMP_BYTES_MAX),
        shm_bytes=min(settings.sandbox_disk_bytes_max, _SHM_BYTES_MAX),
    )
    options = bubblewrap_options(ground.bubblewrap, ground.runtime, confinement, pipes.descriptor_of)
    command = starter_command(ground.runtime, confinement, [*map(str, kept), DATA_DIRECTORY])
    # Not as arguments, which code can read: they are full of the host's paths.
    options_file = pipes.descriptor_of("".join(f"{option}\0" for option in options))
    return await asyncio.create_subprocess_exec(
        *("bwrap", "--args", str(options_file), "--", *command),
        executable=ground.bubblewrap.path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipes.log_end,
        stderr=pipes.log_end,
        pass_fds=pipes.inherited,
        env={},
        cwd="/",
        start_new_session=True,
    )


async def _inner_process(pipes: Pipes) -> int:
    """The process id of the first process of the new namespace, which bubblewrap tells. May be asked again after it was cancelled."""
    while b"}" not in pipes.told and len(pipes.told) < _INFO_BYTES_MAX:
        await _readable(pipes.from_info)
        block = os.read(pipes.from_info, _INFO_BYTES_MAX)
        if not block:
            raise _start_failure(pipes.logs)
        pipes.told += block
    return int(json.loads(pipes.told)["child-pid"])


async def _readable(descriptor: int) -> None:
    """Wait until a pipe has something to read, or has ended."""
    loop = asyncio.get_running_loop()
    is_readable = loop.create_future()
    loop.add_reader(descriptor, lambda: is_readable.done() or is_readable.set_result(None))
    try:
        await is_readable
    finally:
        loop.remove_reader(descriptor)


def _start_failure(logs: int) -> SandboxUnavailable:
    os.set_blocking(logs, False)
    try:
        words = os.read(logs, _WORDS_BYTES_MAX).decode(errors="replace").strip()
    except BlockingIOError:
        words = ""
    is_blocked = words.startswith("bwrap:") and any(sign in words for sign in _SIGNS_OF_BLOCKED_NAMESPACES)
    return SandboxUnavailable(f"The sandbox process does not start. {words} {_BLOCKED_HINT if is_blocked else ''}".strip())


class Guest:
    """The processes of one session, from outside. inner: the id of the first one in its namespace, whose end is the end of all."""

    def __init__(self, process: asyncio.subprocess.Process, inner: int, settings: Settings) -> None:
        self.process = process
        self.data = -1
        self._inner = inner
        self._handle = os.pidfd_open(inner)
        self._settings = settings
        self._user: int | None = None
        self._cgroup: SessionCgroup | None = None
        self._folders: list[int] = []
        self._files_at_start = 0
        # `dispose` comes in a thread, and the watch at any time.
        self._disposing = threading.Lock()
        self._is_disposed = False

    def confine(self, cgroups: CgroupParents | None, *, becomes_user: bool) -> None:
        """Set the limits of processes that wait for them. Raises OSError."""
        settings = self._settings
        if cgroups is not None:
            in_memory = self._tmpfs_bytes_max + _MEMORY_SPARE_BYTES
            memory_bytes_max = settings.sandbox_memory_bytes_max + in_memory
            processes_max = settings.sandbox_processes_max + PROCESSES_SPARE
            self._cgroup = SessionCgroup(cgroups, memory_bytes_max=memory_bytes_max, processes_max=processes_max)
            self._cgroup.add(self.process.pid)
            self._cgroup.add(self._inner)
        for kind, value in _rlimits(settings).items():
            _, hard = resource.prlimit(self._inner, kind)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.prlimit(self._inner, kind, (value, value))
        os.setpriority(os.PRIO_PROCESS, self._inner, _NICENESS)
        Path(f"/proc/{self._inner}/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")
        if becomes_user:
            self._user = _free_user()
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{self._inner}/{name}").write_text(f"0 0 1\n{INNER_USER} {self._user} 1\n", encoding="ascii")

    def open_folders(self, logs: int) -> None:
        """Take hold of the folders that the code can write to. Raises SandboxUnavailable with the logs when the program has ended."""
        root = Path(f"/proc/{self._inner}/root")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            for name in (DATA_DIRECTORY, "/tmp", "/dev/shm"):  # noqa: S108 - of the sandbox
                self._folders.append(os.open(f"{root}{name}", flags))
        except OSError:
            raise _start_failure(logs) from None
        # What is at that place could by now belong to another process, if this one has ended: then it was not the sandbox's.
        if not self._is_alive():
            raise _start_failure(logs)
        self.data = os.dup(self._folders[0])
        if self._user is not None:
            os.fchown(self.data, self._user, self._user)
        self._files_at_start = self._files()

    def kill(self) -> None:
        """End all processes of the session; the one of bubblewrap that is outside ends when they have."""
        with self._disposing:
            if not self._is_disposed:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def over_limit_or_none(self) -> Outcome | None:
        """As `Launched.over_limit`."""
        with self._disposing:
            if self._is_disposed:
                return None
            if self._files() - self._files_at_start > self._settings.sandbox_files_max:
                return "disk_limit"
            return "memory" if self._is_over_memory() else None

    def dispose(self) -> None:
        """Drop what is left of it, after its processes have ended."""
        with self._disposing:
            if self._is_disposed:
                return
            self._is_disposed = True
            os.close(self._handle)
            for folder in self._folders:
                os.close(folder)
        if self._cgroup is not None:
            self._cgroup.kill()
            self._cgroup.remove()

    @property
    def _tmpfs_bytes_max(self) -> int:
        disk = self._settings.sandbox_disk_bytes_max
        return disk + min(disk, _TMP_BYTES_MAX) + min(disk, _SHM_BYTES_MAX)

    def _is_alive(self) -> bool:
        try:
            signal.pidfd_send_signal(self._handle, 0)
        except ProcessLookupError:
            return False
        return True

    def _files(self) -> int:
        """Files, folders and links in the folders that the code can write to."""
        return sum(found.f_files - found.f_ffree for found in map(os.fstatvfs, self._folders))

    def _is_over_memory(self) -> bool:
        bytes_max = self._settings.sandbox_memory_bytes_max
        if self._cgroup is None:
            # What processes share counts once for each here; only who looks like too much is looked at closely.
            processes = _processes_below(self._inner)
            return sum(map(_resident_bytes, processes)) > bytes_max and sum(map(_own_bytes, processes)) > bytes_max
        files = sum((found.f_blocks - found.f_bfree) * found.f_frsize for found in map(os.fstatvfs, self._folders))
        return self._cgroup.has_run_out_of_memory() or self._cgroup.memory_bytes() - files > bytes_max


def _rlimits(settings: Settings) -> dict[int, int]:
    """Limits of each process, for good: only root of the host could raise them again."""
    memory = settings.sandbox_memory_bytes_max
    return {
        # Where the host gives core dumps to a program, it does so whatever the limit, but for one: a limit of 1 keeps them from it.
        resource.RLIMIT_CORE: 1,
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_AS: memory + _ADDRESS_SPACE_SPARE_BYTES,
        # The folder is full before.
        resource.RLIMIT_FSIZE: settings.sandbox_disk_bytes_max + _MEMORY_SPARE_BYTES,
        resource.RLIMIT_NPROC: settings.sandbox_processes_max,
        resource.RLIMIT_NOFILE: _OPEN_FILES_MAX,
        resource.RLIMIT_STACK: _STACK_BYTES,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: _OPEN_FILES_MAX,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }


def _free_user() -> int:
    """A user, and group, of the host that has nothing there. Sessions do not share one where there are many."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()]
    last = max(int(first) + int(count) - 1 for first, _, count in ranges)
    # Where the server's own users are few: nobody, which is 65534 of 65536.
    return _FREE_USERS[secrets.randbelow(len(_FREE_USERS))] if last >= _FREE_USERS[-1] else last - 1


def _processes_below(process_id: int) -> list[int]:
    found: list[int] = []
    waiting = [process_id]
    while waiting:
        with contextlib.suppress(OSError):
            parent = waiting.pop()
            for thread in os.listdir(f"/proc/{parent}/task"):
                children = [int(word) for word in Path(f"/proc/{parent}/task/{thread}/children").read_text(encoding="ascii").split()]
                found += children
                waiting += children
    return found


def _resident_bytes(process_id: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process_id}/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return 0


def _own_bytes(process_id: int) -> int:
    """The memory of a process, with its part of what it shares."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0
