"""Control groups for the sessions of the sandbox `process`: memory and processes of a session as a whole, where this server may set them.

Knows both versions of them. Looks only below the group that the server itself is in, or one that was handed to it; makes a folder for each
session there, and removes those that a killed server has left.
"""

import contextlib
import os
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

_CONTROLLERS = ("memory", "pids")
_NAME = re.compile(r"mini-assistant-(\d+)-(\d+)-[0-9a-f]+")
_MEMINFO_LINES_MAX = 200
# Folders of groups that are to be dropped, and were busy so far.
_BUSY: set[Path] = set()


class CgroupParents(NamedTuple):
    """Where the groups of sessions are made. version: 1 or 2. The folder is the same for both controllers in version 2."""

    version: int
    memory: Path
    pids: Path


class SessionCgroup:
    """The group of one session."""

    def __init__(self, parents: CgroupParents, *, memory_bytes_max: int, processes_max: int) -> None:
        """Make it. Raises OSError; then nothing of it is left."""
        name = f"mini-assistant-{os.getpid()}-{_start_of_or_none(os.getpid())}-{secrets.token_hex(4)}"
        self._version = parents.version
        self._memory = parents.memory / name
        self._pids = parents.pids / name
        try:
            for folder in self._folders:
                folder.mkdir()
            limits = {1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), 2: ("memory.max", "memory.swap.max")}
            memory, swap = limits[self._version]
            (self._memory / memory).write_text(str(memory_bytes_max))
            if (self._memory / swap).exists():  # what may be swapped out: nothing more
                (self._memory / swap).write_text("0" if self._version == 2 else str(memory_bytes_max))
            (self._pids / "pids.max").write_text(str(processes_max))
        except OSError:
            self.remove()
            raise

    @property
    def _folders(self) -> list[Path]:
        return list({self._memory, self._pids})

    def add(self, process_id: int) -> None:
        """Put a process in, with what it will start. Raises OSError."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(process_id))

    def memory_bytes(self) -> int:
        """Memory of its processes and of files that lie in memory, without what can be dropped at any time. 0 when it is gone."""
        # Version 1 says of its own group only what is not `total_`, and there is none below.
        names = {1: ("rss", "shmem"), 2: ("anon", "shmem")}[self._version]
        found = _numbers(self._memory / "memory.stat")
        return sum(found.get(name, 0) for name in names)

    def has_run_out_of_memory(self) -> bool:
        """Whether the system has ended one of its processes for its memory."""
        name = {1: "memory.oom_control", 2: "memory.events"}[self._version]
        return _numbers(self._memory / name).get("oom_kill", 0) > 0

    def kill(self) -> None:
        """End all its processes."""
        for folder in self._folders:
            _kill(folder)

    def remove(self) -> None:
        """Drop the group. One whose last process is not quite gone yet stays until the next is dropped, or until the next start."""
        _BUSY.update(self._folders)
        for folder in list(_BUSY):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                continue
            _BUSY.discard(folder)


def cgroup_parents_or_none() -> CgroupParents | None:
    """Where this server may make groups for memory and processes; None when it may nowhere. Removes what killed servers have left there."""
    for parents in _candidates():
        if not _is_usable(parents):
            continue
        for folder in {parents.memory, parents.pids}:
            _remove_leftovers(folder)
        return parents
    return None


def _candidates() -> Iterator[CgroupParents]:
    own = _own_folders()
    if "" in own:
        place = own[""]
        yield CgroupParents(2, place.folder, place.folder)
        if place.folder != place.top and _is_delegated(place.folder.parent):
            yield CgroupParents(2, place.folder.parent, place.folder.parent)
    if "memory" in own and "pids" in own:
        yield CgroupParents(1, own["memory"].folder, own["pids"].folder)


class _Place(NamedTuple):
    """The folder of a group, and where its hierarchy is mounted."""

    folder: Path
    top: Path

    @classmethod
    def of(cls, mounted_at: str, mounted_group: str, group: str) -> Self | None:
        """None when the group is not below what is mounted."""
        relative = os.path.relpath(group, mounted_group)
        return None if relative.startswith("..") else cls(Path(mounted_at) / relative, Path(mounted_at))


def _own_folders() -> dict[str, _Place]:
    """The groups of this process by controller, as far as they can be seen; that of version 2 by the empty name."""
    found: dict[str, _Place] = {}
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    own = {controller: group for _, names, group in (line.split(":", 2) for line in groups) for controller in names.split(",")}
    for line in mounts:
        before, _, after = line.partition(" - ")
        _, _, _, mounted_group, mounted_at, *_ = before.split()
        kind, _, options = after.split(" ", 2)
        controllers = {"cgroup2": [""], "cgroup": options.split(",")}.get(kind, [])
        for controller in controllers:
            place = _Place.of(mounted_at, mounted_group, own[controller]) if controller in own else None
            if place is not None:
                found[controller] = place
    return found


def _is_delegated(folder: Path) -> bool:
    """Whether a group that the server is not in was handed to it: it belongs to its user, or systemd has marked it so."""
    try:
        if folder.stat().st_uid == os.geteuid() != 0:
            return True
        return os.getxattr(folder, "trusted.delegate" if os.geteuid() == 0 else "user.delegate") == b"1"
    except OSError:
        return False


def _is_usable(parents: CgroupParents) -> bool:
    """Whether a group can be made, with its limits."""
    try:
        if parents.version == 2 and not _hands_down_controllers(parents.memory):
            return False
        cgroup = SessionCgroup(parents, memory_bytes_max=64 * 1024 * 1024, processes_max=16)
    except OSError:
        return False
    cgroup.remove()
    return True


def _hands_down_controllers(folder: Path) -> bool:
    """Whether groups below one of version 2 get the controllers. Raises OSError when it has them and may not hand them down."""
    missing = set(_CONTROLLERS) - set((folder / "cgroup.subtree_control").read_text().split())
    if not missing:
        return True
    if not missing <= set((folder / "cgroup.controllers").read_text().split()):
        return False
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in missing))
    return True


def _remove_leftovers(folder: Path) -> None:
    """End and remove the groups of servers that are not there any more."""
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            match = _NAME.fullmatch(entry.name)
            if match is None or _start_of_or_none(int(match[1])) == int(match[2]):
                continue
            _kill(entry)
            with contextlib.suppress(OSError):
                entry.rmdir()


def _kill(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / "cgroup.kill").write_text("1")  # version 2, since Linux 5.14
        return
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(line), signal.SIGKILL)


def _start_of_or_none(process_id: int) -> int | None:
    """When a process started, in ticks since the machine did; None when there is none of this id."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[19])


def _numbers(file: Path) -> dict[str, int]:
    """The lines of a file of names and numbers; empty when it is gone."""
    try:
        lines = file.read_text().splitlines()[:_MEMINFO_LINES_MAX]
    except OSError:
        return {}
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
