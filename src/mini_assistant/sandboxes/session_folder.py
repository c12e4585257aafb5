"""The folder on the host's disk that a session of wasm or unsafe works in: made, measured and removed, whatever its code puts into it.

It has two parts: `data`, which is /mnt/data for the code, and `tmp`. A locked folder belongs to a session that lives.
"""

import contextlib
import fcntl
import os
import secrets
import stat
import time
from pathlib import Path

_PREFIX = "session-"
_PARTS = ("data", "tmp")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Deeper ones count as too many: while they are looked at, each level takes a descriptor.
_DEPTH_MAX = 256
# How much of its time the server spends on measuring a folder: one part in so many.
_MEASURING_SHARE = 20


class SessionFolder:
    """A new folder in `parent`, which is made too. Raises OSError. All methods block."""

    def __init__(self, parent: Path) -> None:
        self.path = parent / f"{_PREFIX}{secrets.token_hex(8)}"
        parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700)
        self._opened = os.open(self.path, _FOLDER_FLAGS)
        fcntl.flock(self._opened, fcntl.LOCK_EX)
        for part in _PARTS:
            os.mkdir(part, 0o700, dir_fd=self._opened)
        self._next_measuring_at = 0.0

    @property
    def data(self) -> Path:
        """What is /mnt/data for the code."""
        return self.path / "data"

    @property
    def temporary(self) -> Path:
        """Where its code can put what nobody else needs."""
        return self.path / "tmp"

    def open_data(self) -> int:
        """A descriptor of `data`."""
        return os.open("data", _FOLDER_FLAGS, dir_fd=self._opened)

    def is_over(self, bytes_max: int, entries_max: int) -> bool:
        """Whether it takes more than it may. A folder that takes long is looked at less often, and fine in between."""
        started = time.monotonic()
        if started < self._next_measuring_at:
            return False
        is_over = not _fits(self._opened, bytes_max, entries_max + len(_PARTS))
        ended = time.monotonic()
        self._next_measuring_at = ended + (ended - started) * _MEASURING_SHARE
        return is_over

    def remove(self) -> None:
        """Remove it with all that is in it. What the system will not remove is left over."""
        _remove(self.path)
        os.close(self._opened)


def _fits(folder: int, bytes_left: int, entries_left: int) -> bool:
    """Whether what is in a folder is no more than this. folder: a descriptor. What vanishes meanwhile takes nothing."""
    levels = [(os.dup(folder), os.listdir(folder))]
    try:
        while levels:
            parent, names = levels[-1]
            if not names:
                levels.pop()
                os.close(parent)
                continue
            with contextlib.suppress(OSError):
                name = names.pop()
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                entries_left -= 1
                bytes_left -= status.st_blocks * 512
                if stat.S_ISDIR(status.st_mode):
                    below = os.open(name, _FOLDER_FLAGS, dir_fd=parent)
                    levels.append((below, []))
                    levels[-1][1].extend(os.listdir(below))
            if bytes_left < 0 or entries_left < 0 or len(levels) > _DEPTH_MAX:
                return False
        return bytes_left >= 0
    finally:
        for opened, _ in levels:
            os.close(opened)


def remove_leftovers(parent: Path) -> None:
    """Remove the folders of sessions whose server was killed. Those of a living one are locked, and stay."""
    for path in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            opened = os.open(path, _FOLDER_FLAGS)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(opened)


def _remove(path: Path) -> None:
    """Remove a folder however deep it is: what lies deeper is moved up first, so that no path gets long."""
    with contextlib.suppress(OSError):
        folder = os.open(path, _FOLDER_FLAGS)
        try:
            while _has_removed_level(folder):
                pass
        finally:
            os.close(folder)
        path.rmdir()


def _has_removed_level(folder: int) -> bool:
    """Remove what is in a folder and in its folders, but for what is deeper: that is moved up. Returns whether something was."""
    is_left = False
    for name in os.listdir(folder):
        if not _is_folder(name, folder):
            os.unlink(name, dir_fd=folder)
            continue
        below = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
        try:
            for inner in os.listdir(below):
                if _is_folder(inner, below):
                    os.rename(inner, secrets.token_hex(16), src_dir_fd=below, dst_dir_fd=folder)
                    is_left = True
                else:
                    os.unlink(inner, dir_fd=below)
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=folder)
    return is_left


def _is_folder(name: str, parent: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
