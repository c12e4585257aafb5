"""Attempts on processes of the host: to look into one, to change it, to signal it, and to find the server's environment."""

import contextlib
import os
import subprocess
import sys

import pytest

from mini_assistant.sandboxes.base import Sandbox
from tests.attacks.attempts import (
    Attempt,
    assert_judge_sees_success,
    assert_next_session_works,
    attempt_in,
    cell,
    gained,
    killed,
    leaked,
    run,
    server_died,
    typed,
    untouched,
    victim_changed,
    with_prelude,
)
from tests.attacks.targets import Targets, descendants

LOOKING = [
    Attempt("variable of the server", "show(repr(dict(os.environ)))", leaked),
    Attempt(
        "variable of the server by the C library",
        cell("""
            libc.getenv.restype = ctypes.c_char_p
            show(libc.getenv(T['variable'].encode()))
        """),
        leaked,
    ),
    Attempt("environment that this process was started with", "show(open('/proc/self/environ', 'rb').read())", leaked),
    Attempt(
        "environments of process 1 and of the server",
        cell("""
            for pid in T['server_pids']:
                try:
                    show(open(f'/proc/{pid}/environ', 'rb').read())
                except OSError as exc:
                    print(exc)
        """),
        leaked,
    ),
    Attempt(
        "environments of all processes",
        cell("""
            for pid in filter(str.isdigit, os.listdir('/proc')):
                try:
                    show(open(f'/proc/{pid}/environ', 'rb').read())
                except OSError as exc:
                    print(exc)
        """),
        leaked,
        control="show(open(f\"/proc/{T['victim']}/environ\", 'rb').read())",
    ),
    Attempt(
        "own memory below the stack, where the environment lies",
        cell("""
            lines = open('/proc/self/maps').read().splitlines()
            start, end = [int(x, 16) for x in [l for l in lines if '[stack]' in l][0].split()[0].split('-')]
            memory = open('/proc/self/mem', 'rb')
            memory.seek(start)
            show(memory.read(end - start))
        """),
        leaked,
    ),
    Attempt("arguments", "show(open(f\"/proc/{T['victim']}/cmdline\", 'rb').read())", leaked),
    Attempt(
        "arguments of all processes",
        cell("""
            for pid in filter(str.isdigit, os.listdir('/proc')):
                try:
                    show(open(f'/proc/{pid}/cmdline', 'rb').read())
                except OSError as exc:
                    print(exc)
        """),
        leaked,
        control="show(open(f\"/proc/{T['victim']}/cmdline\", 'rb').read())",
    ),
    Attempt(
        "list of processes",
        cell("""
            import subprocess
            show(subprocess.run(['ps', 'axww'], capture_output=True).stdout)
            os.path.exists(f"/proc/{T['victim']}/stat") and '600' and show(open(f"/proc/{T['victim']}/cmdline").read())
        """),
        leaked,
        control="show(open(f\"/proc/{T['victim']}/cmdline\").read())",
    ),
    Attempt(
        "memory by /proc",
        cell("""
            memory = open(f"/proc/{T['victim']}/mem", 'rb', buffering=0)
            memory.seek(T['victim_secret'])
            show(memory.read(64))
        """),
        leaked,
        needs_root=True,
    ),
    Attempt(
        "memory by process_vm_readv",
        cell("""
            b = ctypes.create_string_buffer(64)
            local = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 64)
            remote = (ctypes.c_uint64 * 2)(T['victim_secret'], 64)
            call('process_vm_readv', T['victim'], local, 1, remote, 1, 0)
            show(b.raw)
        """),
        leaked,
        needs_root=True,
    ),
    Attempt(
        "memory by ptrace",
        cell("""
            assert libc.ptrace(16, T['victim'], None, None) == 0, ctypes.get_errno()
            os.waitpid(T['victim'], 0x40000000)
            words = []
            for i in range(0, 40, 8):
                words.append(struct.pack('q', libc.ptrace(2, T['victim'], T['victim_secret'] + i, None)))
            libc.ptrace(17, T['victim'], None, None)
            show(b''.join(words))
        """),
        leaked,
        needs_root=True,
    ),
    Attempt("open file by /proc", "show(open(f\"/proc/{T['victim']}/fd/{T['victim_fd']}\").read())", leaked, needs_root=True),
    Attempt(
        "open file by pidfd_getfd",
        cell("""
            fd = call('pidfd_getfd', call('pidfd_open', T['victim'], 0), T['victim_fd'], 0)
            show(os.pread(fd, 99, 0))
        """),
        leaked,
        needs_root=True,
    ),
    Attempt("its working folder", "show(open(f\"/proc/{T['victim']}/cwd/secret.txt\").read())", leaked, needs_root=True),
    Attempt("its root", "show(open(f\"/proc/{T['victim']}/root\" + T['secret']).read())", leaked, needs_root=True),
    Attempt(
        "its map of memory",
        cell("""
            assert open(f"/proc/{T['victim']}/maps").read().count('\\n') > 5
            int(open(f"/proc/{T['victim']}/maps").read().split('-')[0], 16) and T['victim'] != os.getpid() and gained()
        """),
        gained,
        needs_root=True,
    ),
    Attempt(
        "compared with the own by kcmp",
        "call('kcmp', os.getpid(), T['victim'], 0, 0, 0) >= 0 and gained()",
        gained,
        needs_root=True,
        may_be_absent=True,
    ),
    Attempt(
        "its namespaces joined",
        "in_child(lambda: (call('setns', os.open(f\"/proc/{T['victim']}/ns/net\", os.O_RDONLY), 0), gained()))",
        gained,
        needs_root=True,
    ),
    Attempt(
        "namespaces of process 1 and of the server joined",
        cell("""
            def join():
                for pid in T['server_pids']:
                    try:
                        call('setns', os.open(f'/proc/{pid}/ns/mnt', os.O_RDONLY), 0)
                        show(open(T['secret']).read())
                    except OSError as exc:
                        print(exc)
            in_child(join)
        """),
        leaked,
        needs_root=True,
    ),
]

HARMING = [
    Attempt("killed", "os.kill(T['victim'], signal.SIGKILL)", killed),
    Attempt("its group killed", "os.killpg(T['victim'], signal.SIGTERM)", killed),
    Attempt("killed as a thread", "call('tgkill', T['victim'], T['victim'], 9)", killed),
    Attempt("killed by pidfd", "signal.pidfd_send_signal(os.pidfd_open(T['victim']), signal.SIGKILL)", killed),
    Attempt(
        "killed by a queued signal",
        "call('rt_sigqueueinfo', T['victim'], 9, ctypes.create_string_buffer(struct.pack('iii', 9, 0, -1), 128))",
        killed,
    ),
    Attempt(
        "killed by a file that signals its owner",
        cell("""
            import fcntl
            a, b = socket.socketpair()
            fcntl.fcntl(a, fcntl.F_SETOWN, T['victim'])
            fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            b.send(b'x')
        """),
        killed,
    ),
    Attempt(
        "parent killed",
        cell("""
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1)
    """),
        server_died,
    ),
    Attempt("group killed", "os.killpg(0, signal.SIGKILL)", server_died),
    Attempt(
        "its memory written",
        cell("""
            memory = open(f"/proc/{T['victim']}/mem", 'wb', buffering=0)
            memory.seek(T['victim_memory'])
            memory.write(b'changed')
        """),
        victim_changed,
        needs_root=True,
    ),
    Attempt(
        "its memory written by process_vm_writev",
        cell("""
            b = ctypes.create_string_buffer(b'changed')
            local = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 7)
            remote = (ctypes.c_uint64 * 2)(T['victim_memory'], 7)
            call('process_vm_writev', T['victim'], local, 1, remote, 1, 0)
        """),
        victim_changed,
        needs_root=True,
    ),
    Attempt(
        "its limits",
        cell("""
            import resource
            resource.prlimit(T['victim'], resource.RLIMIT_NOFILE, (7, 7))
        """),
        victim_changed,
        needs_root=True,
    ),
    Attempt("its priority", "os.setpriority(os.PRIO_PROCESS, T['victim'], 19)", victim_changed),
    Attempt("its scheduling", "os.sched_setscheduler(T['victim'], os.SCHED_IDLE, os.sched_param(0))", victim_changed),
    Attempt("chosen to be killed when memory is short", "open(f\"/proc/{T['victim']}/oom_score_adj\", 'w').write('999')", victim_changed),
    Attempt("terminal written to", "os.write(os.open(T['pty'], os.O_WRONLY | os.O_NOCTTY), b'typed')", typed),
    Attempt(
        "typed into a terminal",
        cell("""
            import fcntl, termios
            terminal = os.open(T['pty'], os.O_RDWR | os.O_NOCTTY)
            for c in b'id\\n':
                fcntl.ioctl(terminal, termios.TIOCSTI, bytes([c]))
        """),
        typed,
        needs_root=True,
    ),
]


@pytest.mark.parametrize("attempt", LOOKING + HARMING, ids=lambda attempt: attempt.name)
async def test_a_sandbox_holds(sandbox: Sandbox, attempt: Attempt, targets: Targets) -> None:
    await attempt_in(sandbox, attempt, targets)


@pytest.mark.parametrize("attempt", LOOKING + HARMING, ids=lambda attempt: attempt.name)
def test_without_a_sandbox_it_succeeds(attempt: Attempt, targets: Targets) -> None:
    assert_judge_sees_success(attempt, targets)


KILL_ALL = "os.kill(-1, signal.SIGKILL)"

# A first process with processes of its own, of which one is the victim: all that the code beside it can kill.
_IN_A_NAMESPACE = """
import ctypes, os, subprocess, sys
new_users_and_processes = 0x30000000
if ctypes.CDLL(None).unshare(new_users_and_processes) != 0:
    sys.exit("refused")
if os.fork():
    os.wait()
else:
    victim = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
    subprocess.run([sys.executable, "-I", "-S", "-c", sys.argv[1]])
    print("ended by", victim.wait(5), flush=True)
"""


async def test_all_that_can_be_seen_is_killed(sandbox: Sandbox, targets: Targets) -> None:
    before = descendants()
    session = await sandbox.create_session()
    # On WebAssembly there are no signals. Elsewhere this would end every process of the machine if the session saw them.
    if sandbox.name == "process":
        apart = set()
        for pid in descendants() - before:
            with contextlib.suppress(OSError):
                apart.add(os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid"))
        assert True in apart, "the code sees the processes of the host"
    await run(session, with_prelude(KILL_ALL, targets.facts([])))
    await session.close()

    assert untouched(targets) == []
    await assert_next_session_works(sandbox)


def test_all_is_killed_in_a_namespace_of_its_own(targets: Targets) -> None:
    code = with_prelude(KILL_ALL, targets.facts([]))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _IN_A_NAMESPACE, code], capture_output=True, text=True, timeout=20)

    if "refused" in done.stderr:
        pytest.skip("this machine gives no namespaces")
    assert done.stdout == "ended by -9\n"
