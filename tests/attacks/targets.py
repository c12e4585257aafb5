"""What attacks aim at: things of the test itself that stand for what a host has, each with a random token in it.

Nothing here belongs to the host, so that an attack that succeeds does no harm. Tokens are never told to the code that attacks; it is told
where they are. Judges ask the targets, not the code.
"""

import contextlib
import ctypes
import fcntl
import os
import platform
import resource
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

VARIABLE = "MINI_ASSISTANT_ATTACK_TARGET"
"""Name of the variable of the server's environment that holds the token."""

UNTOUCHED = b"untouched " * 4

# Has the token in its arguments, its environment, its memory and a file without a name, and a piece of memory that may not change.
_VICTIM = f"""
import ctypes, os, sys, tempfile, time
secret = ctypes.create_string_buffer(sys.argv[1].encode())
untouched = ctypes.create_string_buffer({UNTOUCHED!r})
file = tempfile.TemporaryFile(dir=sys.argv[2])
file.write(sys.argv[1].encode())
file.flush()
print(ctypes.addressof(secret), ctypes.addressof(untouched), file.fileno(), flush=True)
time.sleep(600)
"""

_SYSCALLS = {
    "x86_64": {"mq_open": 240, "mq_unlink": 241, "add_key": 248, "keyctl": 250},
    "aarch64": {"mq_open": 180, "mq_unlink": 181, "add_key": 217, "keyctl": 219},
}.get(platform.machine(), {})
_JOIN_SESSION_KEYRING, _INVALIDATE, _SESSION_KEYRING = 1, 21, -3
_IPC_PRIVATE, _IPC_RMID = 0, 0

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]


class Targets:
    """All targets of a test. Made in `folder`; `close` ends and removes what lies elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(16)
        self.mark = secrets.token_hex(16)
        self.folder = folder / "host"
        self.folder.mkdir()
        self.secret = self.folder / "secret.txt"
        self.secret.write_text(self.token)
        self.secret.chmod(0o600)
        self.more_shm_ids: list[int] = []
        """Shared memory of controls, which is removed at the end."""
        self._open: list[socket.socket | int] = []
        self._listen()
        self._start_victim()
        self._plant_in_the_kernel()
        self.folder_fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        self.secret_fd = os.open(self.secret, os.O_RDWR)
        self.pty, self._pty_inside = os.openpty()
        _make_raw(self._pty_inside)
        self.pty_path = os.ttyname(self._pty_inside)
        self._open += [self.folder_fd, self.secret_fd, self.pty, self._pty_inside]

    def __enter__(self) -> Self:
        os.environ[VARIABLE] = self.token
        return self

    def __exit__(self, *_: object) -> None:
        os.environ.pop(VARIABLE, None)
        self.victim.kill()
        self.victim.communicate()
        for thing in self._open:
            os.close(thing) if isinstance(thing, int) else thing.close()
        self._giver_thread.join(5)
        for number in (self.shm_id, *self.more_shm_ids):
            libc.shmctl(number, _IPC_RMID, None)
        if self.queue_fd >= 0:
            os.close(self.queue_fd)
            libc.syscall(_SYSCALLS["mq_unlink"], self.queue_name.encode())
        if self.key_id > 0:
            libc.syscall(_SYSCALLS["keyctl"], _INVALIDATE, self.key_id)

    def inherit(self) -> None:
        """Let child processes that do not close them inherit the open folder and file, as a careless server would."""
        for descriptor in (self.folder_fd, self.secret_fd):
            os.set_inheritable(descriptor, True)

    def facts(self, server_pids: list[int]) -> dict[str, object]:
        """What code that attacks is told."""
        return {
            "mark": self.mark,
            "root": "/",
            "folder": str(self.folder),
            "secret": str(self.secret),
            "victim": self.victim.pid,
            "victim_secret": self.victim_secret,
            "victim_memory": self.victim_memory,
            "victim_fd": self.victim_fd,
            "server_pids": server_pids,
            "variable": VARIABLE,
            "tcp": self.tcp.getsockname()[1],
            "tcp6": self.tcp6.getsockname()[1] if self.tcp6 else 0,
            "udp": self.udp.getsockname()[1],
            "unix": str(self.unix.getsockname()),
            "abstract": self.abstract_name,
            "giver": self.giver_name,
            "shm": self.shm_id,
            "queue": self.queue_name,
            "key": self.key_name,
            "pty": self.pty_path,
            "hostname": socket.gethostname(),
        }

    # ---- sockets ----

    def _listen(self) -> None:
        self.abstract_name = f"mini-assistant-{secrets.token_hex(8)}"
        self.giver_name = f"mini-assistant-{secrets.token_hex(8)}"
        self.tcp = self._listener(socket.AF_INET, ("127.0.0.1", 0))
        self.tcp6 = self._listener(socket.AF_INET6, ("::1", 0)) if _has_ipv6() else None
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp.setblocking(False)
        self._open.append(self.udp)
        # A path of a socket may have about 100 bytes; the folders of tests are longer.
        with _in_folder(self.folder):
            self.unix = self._listener(socket.AF_UNIX, "s")
        self.unix_path = self.folder / "s"
        self.abstract = self._listener(socket.AF_UNIX, "\0" + self.abstract_name)
        giver = self._listener(socket.AF_UNIX, "\0" + self.giver_name)
        giver.setblocking(True)
        self._giver_thread = threading.Thread(target=self._give, args=[giver], daemon=True)
        self._giver_thread.start()

    def _listener(self, family: socket.AddressFamily, address: object) -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.bind(address)
        listener.listen(8)
        listener.setblocking(False)
        self._open.append(listener)
        return listener

    def _give(self, listener: socket.socket) -> None:
        """Hand the open secret to whoever connects."""
        while True:
            ready, _, _ = select.select([listener], [], [], 0.2) if listener.fileno() >= 0 else ([], [], [])
            if listener.fileno() < 0:
                return
            if ready:
                with contextlib.suppress(OSError):
                    taker, _ = listener.accept()
                    with taker, self.secret.open("rb") as file:
                        socket.send_fds(taker, [b"x"], [file.fileno()])

    @property
    def connections(self) -> int:
        """Connections and packets that came since the last look."""
        count = 0
        for listener in (self.tcp, self.tcp6, self.unix, self.abstract):
            if listener is None:
                continue
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    count += 1
        with contextlib.suppress(BlockingIOError):
            while self.udp.recv(65536):
                count += 1
        return count

    # ---- a process ----

    def _start_victim(self) -> None:
        self.victim = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _VICTIM, self.token, str(self.folder)],
            stdout=subprocess.PIPE,
            env={VARIABLE: self.token},
            cwd=self.folder,
            start_new_session=True,
        )
        assert self.victim.stdout is not None
        self.victim_secret, self.victim_memory, self.victim_fd = map(int, self.victim.stdout.readline().split())
        self._victim_state = self._look_at_victim()

    @property
    def is_victim_dead(self) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.victim.wait(0.2)
        return self.victim.returncode is not None

    @property
    def is_victim_changed(self) -> bool:
        """Its limits, priority, CPUs, rating or memory are not what they were."""
        return self._look_at_victim() != self._victim_state

    def _look_at_victim(self) -> tuple[object, ...]:
        pid = self.victim.pid
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(self.victim_memory)
            untouched = memory.read(len(UNTOUCHED))
        return (
            resource.prlimit(pid, resource.RLIMIT_NOFILE),
            os.getpriority(os.PRIO_PROCESS, pid),
            os.sched_getaffinity(pid),
            os.sched_getscheduler(pid),
            Path(f"/proc/{pid}/oom_score_adj").read_text(),
            untouched,
        )

    # ---- things that the kernel keeps by number or name ----

    def _plant_in_the_kernel(self) -> None:
        token = self.token.encode()
        self.shm_id = libc.shmget(_IPC_PRIVATE, 4096, 0o666)
        place = libc.shmat(self.shm_id, None, 0)
        ctypes.memmove(place, token, len(token))
        libc.shmdt(place)
        self.queue_name, self.key_name = f"mini-{secrets.token_hex(8)}", f"mini-{secrets.token_hex(8)}"
        self.queue_fd = self.key_id = -1
        if _SYSCALLS:
            self.queue_fd = libc.syscall(_SYSCALLS["mq_open"], self.queue_name.encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
            # A keyring of its own, which children inherit: keys of the user who runs the tests are left alone.
            libc.syscall(_SYSCALLS["keyctl"], _JOIN_SESSION_KEYRING, None)
            self.key_id = libc.syscall(_SYSCALLS["add_key"], b"user", self.key_name.encode(), token, len(token), _SESSION_KEYRING)

    @property
    def is_typed(self) -> bool:
        """Whether something was written to the terminal, or typed into it."""
        written, _, _ = select.select([self.pty], [], [], 0)
        typed = fcntl.ioctl(self._pty_inside, termios.FIONREAD, struct.pack("i", 0))
        return bool(written) or struct.unpack("i", typed)[0] > 0

    # ---- files ----

    @property
    def is_folder_changed(self) -> bool:
        """Whether the secret or the names beside it are not what they were."""
        names = {path.name for path in self.folder.iterdir()}
        if names != {"secret.txt", "s"}:
            return True
        status = self.secret.lstat()
        return self.secret.read_text() != self.token or status.st_nlink != 1 or status.st_mode & 0o777 != 0o600


def _make_raw(terminal: int) -> None:
    attributes = termios.tcgetattr(terminal)
    attributes[1] &= ~termios.OPOST
    attributes[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    earlier = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(earlier)


def descendants(pid: int | None = None) -> set[int]:
    """Process ids of all children, grandchildren and so on of this process, as the host sees them; those that have ended are left out.

    Together with `adopting_orphans` nothing that a test has started can hide from it.
    """
    return {process for process in _all_descendants(pid) if _is_running(process)}


def _all_descendants(pid: int | None = None) -> set[int]:
    """As `descendants`, with those that have ended and whose parent has not asked how."""
    found: set[int] = set()
    waiting = [os.getpid() if pid is None else pid]
    while waiting:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for children in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    new = {int(child) for child in children.read_text().split()} - found
                    found |= new
                    waiting += new
    return found


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """In this time be the parent of every descendant whose own parent ends, in the place of the host's first process."""
    pr_set_child_subreaper = 36
    before = _all_descendants()
    libc.prctl(pr_set_child_subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(pr_set_child_subreaper, 0, 0, 0, 0)
        reap(_all_descendants() - before)  # what has ended, and what a control has left: other tests count the children of this process


def reap(pids: set[int]) -> None:
    """Kill these processes, which a test has left."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
