"""One attempt: code that tries something, and a judge of the host that says whether it got it.

An attempt runs twice. In a sandbox the judge must see nothing. In a plain process below a stand-in for the server, where nothing holds it,
the same code must be seen to succeed: a judge that sees nothing there is blind. The stand-in keeps the real one out of harm's way.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import pytest

from mini_assistant.sandboxes.base import Execution, Image, Logs, Output, Sandbox, SandboxSession
from tests.attacks.targets import VARIABLE, Targets, descendants, reap

CONTROL_SECONDS_MAX = 30


class Seen(NamedTuple):
    """What came out of an attempt. is_server_dead: of a control, whether the stand-in for the server was ended."""

    logs: str
    is_server_dead: bool = False


Judge = Callable[[Targets, Seen], bool]
"""Says whether an attempt succeeded."""


class Attempt(NamedTuple):
    """code: may use what `PRELUDE` defines. control: other code for the control, where the real one would do too much.

    needs_root: only root can do it even without a sandbox, so that the control is skipped for others.
    may_be_absent: the kernel of a machine may not have it at all; a control that finds so is skipped.
    """

    name: str
    code: str
    judge: Judge
    needs_root: bool = False
    may_be_absent: bool = False
    control: str = ""


# Every attempt begins with this. On WebAssembly there is no `ctypes`; what needs it raises NameError there, and so is held.
PRELUDE = r"""
import errno, json, os, platform, signal, socket, struct, sys, time
try:
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.shmat.restype = ctypes.c_void_p
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
except Exception:
    pass

X86_64 = dict(mount=165, umount2=166, pivot_root=155, chroot=161, unshare=272, setns=308, clone=56, clone3=435, ptrace=101,
    process_vm_readv=310, process_vm_writev=311, pidfd_open=434, pidfd_getfd=438, pidfd_send_signal=424, rt_sigqueueinfo=129, tgkill=234,
    kcmp=312, add_key=248, request_key=249, keyctl=250, bpf=321, perf_event_open=298, userfaultfd=323, io_uring_setup=425,
    init_module=175, finit_module=313, delete_module=176, kexec_load=246, reboot=169, swapon=167, swapoff=168, sethostname=170,
    setdomainname=171, settimeofday=164, acct=163, syslog=103, quotactl=179, open_by_handle_at=304, name_to_handle_at=303,
    fanotify_init=300, mq_open=240, setuid=105, personality=135, open_tree=428, move_mount=429, fsopen=430, mount_setattr=442,
    iopl=172, vhangup=153, nfsservctl=180, lookup_dcookie=212, move_pages=279, migrate_pages=256, memfd_secret=447, seccomp=317)
AARCH64 = dict(mount=40, umount2=39, pivot_root=41, chroot=51, unshare=97, setns=268, clone=220, clone3=435, ptrace=117,
    process_vm_readv=270, process_vm_writev=271, pidfd_open=434, pidfd_getfd=438, pidfd_send_signal=424, rt_sigqueueinfo=138, tgkill=131,
    kcmp=272, add_key=217, request_key=218, keyctl=219, bpf=280, perf_event_open=241, userfaultfd=282, io_uring_setup=425,
    init_module=105, finit_module=273, delete_module=106, kexec_load=104, reboot=142, swapon=224, swapoff=225, sethostname=161,
    setdomainname=162, settimeofday=170, acct=89, syslog=116, quotactl=60, open_by_handle_at=265, name_to_handle_at=264,
    fanotify_init=262, mq_open=180, setuid=146, personality=92, open_tree=428, move_mount=429, fsopen=430, mount_setattr=442,
    iopl=-1, vhangup=58, nfsservctl=42, lookup_dcookie=18, move_pages=239, migrate_pages=238, memfd_secret=447, seccomp=277)
NUMBERS = {"x86_64": X86_64, "aarch64": AARCH64}.get(platform.machine(), {})

def call(name, *arguments):
    # A system call by its name; raises OSError.
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result

def gained():
    # Told backwards, so that a traceback which shows this code is not taken for it.
    print("gained " + T["mark"][::-1], flush=True)

def absent():
    print("absent " + T["mark"][::-1], flush=True)

REFUSED = (errno.EPERM, errno.EACCES)

def permitted(name, *arguments):
    # A call whose arguments are wrong on purpose: it changes nothing, and its error tells whether it would have been allowed.
    try:
        call(name, *arguments)
    except OSError as exc:
        if exc.errno == errno.ENOSYS:
            absent()
            raise
        if exc.errno in REFUSED:
            raise
    gained()

def opens(path, flags):
    # Only opened, never read or written. An empty file that covers one of /proc is none of it.
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        absent()
        raise
    is_covered = path.startswith('/proc/') and os.fstat(fd).st_dev != os.lstat('/proc/self').st_dev
    os.close(fd)
    is_covered or gained()

def in_child(function):
    # In a process with one thread, which some calls ask for.
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as exc:
            print(repr(exc), flush=True)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

def show(data):
    print(data.decode("latin-1") if isinstance(data, bytes) else data, flush=True)
"""


def cell(text: str) -> str:
    """Lines of an attempt, without the indentation that they have in a table."""
    return textwrap.dedent(text.strip("\n")).rstrip() + "\n"


def with_prelude(code: str, facts: dict[str, object]) -> str:
    """The whole of what runs."""
    return f"{PRELUDE}\nimport json\nT = json.loads({json.dumps(facts)!r})\n{code}"


# ---- judges ------------------------------------------------------------------------------------------------------------------------


def leaked(targets: Targets, seen: Seen) -> bool:
    """The token came out."""
    return targets.token in seen.logs


def gained(targets: Targets, seen: Seen) -> bool:
    """The code was let do what it tried, which only itself can tell."""
    return f"gained {targets.mark[::-1]}" in seen.logs


def changed(targets: Targets, _: Seen) -> bool:
    """The secret file, or the folder that it lies in, is not what it was."""
    return targets.is_folder_changed


def reached(targets: Targets, _: Seen) -> bool:
    """Something of the test was connected to, or got a packet."""
    return targets.connections > 0


def killed(targets: Targets, _: Seen) -> bool:
    """The planted process has ended."""
    return targets.is_victim_dead


def victim_changed(targets: Targets, _: Seen) -> bool:
    """The planted process is not as it was."""
    return targets.is_victim_changed


def typed(targets: Targets, _: Seen) -> bool:
    """Something reached the planted terminal."""
    return targets.is_typed


def server_died(_: Targets, seen: Seen) -> bool:
    """The parent of the code has ended. That the real one lives is seen by the test going on."""
    return seen.is_server_dead


def is_absent(targets: Targets, seen: Seen) -> bool:
    """The code found that this machine does not have what it tries."""
    return f"absent {targets.mark[::-1]}" in seen.logs


def untouched(targets: Targets) -> list[str]:
    """What is not as it should be after any attempt, whatever its judge looks at; empty when all is well."""
    quiet = Seen("")
    judges = {"secret": changed, "victim killed": killed, "network": reached, "terminal": typed}
    harm = [name for name, judge in judges.items() if judge(targets, quiet)]
    return harm if "victim killed" in harm else harm + ["victim"] * targets.is_victim_changed


# ---- with a sandbox ----------------------------------------------------------------------------------------------------------------


class Heard:
    """What a session put out in one call."""

    def __init__(self, execution: Execution, outputs: list[Output]) -> None:
        self.execution = execution
        self.logs = "".join(output.text for output in outputs if isinstance(output, Logs))
        self.images = [output.data for output in outputs if isinstance(output, Image)]


async def run(session: SandboxSession, code: str) -> Heard:
    """Run code in a session and keep what it puts out."""
    outputs: list[Output] = []
    return Heard(await session.execute(code, outputs.append), outputs)


async def assert_next_session_works(sandbox: Sandbox) -> None:
    """A fresh session calculates."""
    session = await sandbox.create_session()
    try:
        heard = await run(session, "1 + 1")
    finally:
        await session.close()
    assert (heard.execution.outcome, heard.logs.strip()) == ("ok", "2")


async def wait_until_ended(pids: set[int], seconds: float = 5.0) -> set[int]:
    """Those of these processes that are still there after a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # of processes that are not the own children nothing can be waited for
            while pids := pids & descendants():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    return pids


async def attempt_in(sandbox: Sandbox, attempt: Attempt, targets: Targets) -> None:
    """Run an attempt in a fresh session. The judge must see nothing, no target may be harmed, and nothing of the session may be left."""
    before = descendants()
    session = await sandbox.create_session()
    try:
        heard = await run(session, with_prelude(attempt.code, targets.facts([1, os.getpid()])))
    finally:
        of_session = descendants() - before
        await session.close()
    left = await wait_until_ended(of_session)
    reap(left)

    assert not attempt.judge(targets, Seen(heard.logs)), heard.logs[-2000:]
    assert not leaked(targets, Seen(heard.logs))
    assert untouched(targets) == []
    assert left == set(), "processes of the session are left"
    await assert_next_session_works(sandbox)


# ---- without one -------------------------------------------------------------------------------------------------------------------

# Starts the code as the server starts a session, but holds it by nothing. What it knows of the token stands in its environment.
_STAND_IN = """
import os, subprocess, sys
code = sys.stdin.read().replace('"SERVER"', str(os.getpid()))
attack = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, close_fds=False)
attack.wait()
"""


def run_without_sandbox(code: str, targets: Targets) -> Seen:
    """Run code in a plain process, and end all that it has started."""
    before = descendants()
    targets.inherit()
    facts = targets.facts(["SERVER"]) | {"root": str(targets.folder.parent)}  # pyright: ignore[reportArgumentType]
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _STAND_IN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {VARIABLE: targets.token},
        cwd=targets.folder.parent,
        start_new_session=True,
        close_fds=False,
    )
    try:
        logs, _ = server.communicate(with_prelude(code, facts).encode(), timeout=CONTROL_SECONDS_MAX)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        reap(descendants() - before)
    return Seen(logs.decode("utf-8", "replace"), is_server_dead=server.returncode < 0)


def assert_judge_sees_success(attempt: Attempt, targets: Targets) -> None:
    """Run an attempt with nothing that holds it. Skips what this user or this machine cannot do at all."""
    if attempt.needs_root and os.geteuid() != 0:
        pytest.skip("only root can do this")

    seen = run_without_sandbox(attempt.control or attempt.code, targets)

    is_seen = attempt.judge(targets, seen)
    if not is_seen and attempt.may_be_absent and is_absent(targets, seen):
        pytest.skip("this machine has nothing of the kind")
    assert is_seen, seen.logs[-2000:]
