"""A file system of a few megabytes, in memory and in a mount namespace of its own, that a test can really fill.

A process of this machine waits in the namespace and keeps it alive; servers enter it by `nsenter`, and come and go. The test itself stays
outside and reaches the files through that process: `/proc/<its id>/root`.
"""

import contextlib
import errno
import functools
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

from tests.server_process import ServerProcess, WorkerProcess, _address_in, _line_with  # pyright: ignore[reportPrivateUsage]

_PIECE_BYTES = 64 * 1024
# Root may mount in a plain namespace. Everybody else needs to be the root of a user namespace first, but keeps the name that he has.
_NAMESPACES = ["--mount"] if os.geteuid() == 0 else ["--user", "--mount"]
_UNSHARE = ["unshare", *_NAMESPACES, *([] if os.geteuid() == 0 else ["--map-current-user", "--keep-caps"])]
_NSENTER = ["nsenter", *_NAMESPACES, *([] if os.geteuid() == 0 else ["--preserve-credentials"])]
_HOLD = 'mount -t tmpfs -o size="$1",mode=755 small-disk "$2" && shift 2 && exec "$@"'


class SmallDisk:
    """A disk of `size_bytes` at `folder`, as processes started with `enter` see it. `inside` is the same for those outside."""

    def __init__(self, folder: Path, size_bytes: int, user: str | None = None) -> None:
        """user: who else reaches `inside`, None for nobody; only root can say."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        waiting = ["sh", "-c", "echo mounted; exec cat"]  # until its input ends, which it does with the process of the tests too
        if user is not None:
            waiting = ["setpriv", f"--reuid={pwd.getpwnam(user).pw_uid}", *waiting]  # the group stays, as with `Popen(user=…)`
        command = [*_UNSHARE, "sh", "-c", _HOLD, "sh", str(size_bytes), str(folder), *waiting]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "mounted\n":
            raise OSError(f"no file system can be mounted: {self._holder.communicate(timeout=10)[1].strip()}")
        self.enter = [*_NSENTER, f"--target={self._holder.pid}"]
        self.inside = Path(f"/proc/{self._holder.pid}/root{folder}")
        self._fillers = 0

    def close(self) -> None:
        """Let it go. Processes that are still in it keep it for themselves."""
        self._holder.communicate(timeout=10)

    @property
    def free_bytes(self) -> int:
        """What can still be written."""
        found = os.statvfs(self.inside)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> int:
        """Take all that is free, but for `leave_bytes`; returns how much that was."""
        self._fillers += 1
        written = 0
        with open(self.inside / f"filler-{self._fillers}", "wb", buffering=0) as filler:
            try:
                while (size := min(self.free_bytes - leave_bytes, _PIECE_BYTES)) > 0:
                    written += filler.write(b"\0" * size)
            except OSError as exc:
                if exc.errno != errno.ENOSPC:  # somebody else was faster
                    raise
        return written

    def free(self) -> None:
        """Give back what `fill` took."""
        for filler in self.inside.glob("filler-*"):
            filler.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int, user: str | None = None) -> Generator[SmallDisk]:
    """A disk for as long as the context lasts."""
    disk = SmallDisk(folder, size_bytes, user)
    try:
        yield disk
    finally:
        disk.close()


@functools.cache
def why_no_small_disk() -> str:
    """The reason why this machine cannot have one; empty when it can."""
    if sys.platform != "linux":
        return "a small file system needs the namespaces of Linux"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder), 1024 * 1024) as disk:
                (disk.inside / "probe").write_bytes(b"1")
                subprocess.run([*disk.enter, "cat", disk.folder / "probe"], check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError) as exc:
            return f"no small file system can be had here: {exc}"
    return ""


class SmallDiskServer(ServerProcess):
    """A server that sees a small disk. What it says of its failures is kept."""

    def __init__(self, disk: SmallDisk, data_dir: Path, environment: Mapping[str, str], errors: Path) -> None:
        super().__init__(data_dir, environment)
        self._disk, self._errors = disk, errors

    def start(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "MINI_ASSISTANT_"))}
        command = [*self._disk.enter, sys.executable, *self.arguments, "--data-dir", str(self.data_dir)]
        with self._errors.open("w", encoding="utf-8") as errors:
            environment = {**inherited, **self.environment}
            self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        self.address = ""
        try:
            self.address = _address_in(_line_with(self._process, " is ready"))
        finally:
            if not self.address:
                self._process.communicate(timeout=10)

    @property
    def errors(self) -> str:
        """What it has said on its standard error since its last start."""
        return self._errors.read_text(encoding="utf-8")


class SmallDiskWorker(SmallDiskServer):
    """A worker that sees a small disk."""

    arguments = WorkerProcess.arguments
