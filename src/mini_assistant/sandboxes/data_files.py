"""Reads and writes the files of a session, in a folder that hostile code changes at the same time.

All of it works below the descriptor of the folder, part by part, and follows no link: nothing that code leaves in the folder can make
the server touch a file elsewhere, wait for ever, or take more than it is told to. The functions of `list_files` and `usage` block, and
are called in threads.
"""

import asyncio
import contextlib
import os
import secrets
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterator
from typing import NamedTuple, TypeVar

from mini_assistant.errors import SandboxFileMissing, SandboxFull
from mini_assistant.sandboxes.base import FILE_NAME_BYTES_MAX, SandboxFile

_DEPTH_MAX = 32
_PIECE_BYTES = 256 * 1024
_UNFINISHED_PREFIX = ".unfinished-"
# Not to wait for whoever would open the other end of a FIFO.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

T = TypeVar("T")


class Usage(NamedTuple):
    """What a folder takes: bytes on its disk, and things of any kind in it. A lower bound once entries_max is reached."""

    size_bytes: int
    entries: int


class DataLimits(NamedTuple):
    """What the folder of a session may take."""

    bytes_max: int
    entries_max: int


def list_files(folder: int, entries_max: int) -> list[SandboxFile]:
    """The regular files below a folder, by name. folder: a descriptor. At most entries_max things are looked at."""
    files = [
        SandboxFile(name, status.st_size, _version(status))
        for name, status in _entries(folder, entries_max)
        if stat.S_ISREG(status.st_mode) and _parts_or_none(name) is not None and not name.startswith(_UNFINISHED_PREFIX)
    ]
    return sorted(files)


def usage(folder: int, entries_max: int) -> Usage:
    """What is in a folder. Something with two names in it counts once for each. At most entries_max things are looked at."""
    sizes = [status.st_blocks * 512 for _, status in _entries(folder, entries_max)]
    return Usage(sum(sizes), len(sizes))


async def read_file(folder: int, name: str, bytes_max: int) -> AsyncGenerator[bytes]:
    """The bytes of a regular file, at most so many. folder: a descriptor, which may be closed once the first piece is here.

    Raises SandboxFileMissing for anything else.
    """
    try:
        file = _open_to_read(folder, name)
    except (OSError, ValueError) as exc:
        raise SandboxFileMissing(f"There is no file {name!r} in the sandbox.") from exc
    try:
        left = bytes_max
        while left > 0 and (piece := await in_thread(lambda: os.read(file, _PIECE_BYTES))):
            yield piece[:left]
            left -= len(piece)
    except OSError as exc:
        raise SandboxFileMissing(f"The file {name!r} in the sandbox cannot be read: {exc.strerror or exc}.") from exc
    finally:
        os.close(file)


async def write_file(folder: int, name: str, pieces: AsyncIterable[bytes], limits: DataLimits) -> None:
    """Write a file in place of what has its name, with the folders in its path. folder: a descriptor, open until this ends.

    Raises SandboxFull when it does not fit or its name cannot be one; then nothing of it is left.
    """
    parts = _parts_or_none(name)
    if parts is None:
        raise SandboxFull(f"The sandbox can have no file of the name {name[:FILE_NAME_BYTES_MAX]!r}.")
    used = await in_thread(lambda: usage(folder, limits.entries_max + 1))
    if used.entries + len(parts) > limits.entries_max:
        raise SandboxFull(f"The sandbox has its {limits.entries_max} files and folders already.")
    unfinished = _UNFINISHED_PREFIX + secrets.token_hex(8)
    try:
        file = _create(folder, unfinished)
        try:
            await _fill(file, pieces, max(0, limits.bytes_max - used.size_bytes))
        finally:
            os.close(file)
        await in_thread(lambda: _move(folder, unfinished, parts))
    except OSError as exc:
        raise SandboxFull(f"{name!r} cannot be written in the sandbox: {exc.strerror or exc}.") from exc
    finally:
        with contextlib.suppress(OSError):
            os.unlink(unfinished, dir_fd=folder)


async def _fill(file: int, pieces: AsyncIterable[bytes], bytes_max: int) -> None:
    written = 0
    async for piece in pieces:
        written += len(piece)
        if written > bytes_max:
            raise SandboxFull(f"The file does not fit: the sandbox has {bytes_max} bytes free.")
        await in_thread(lambda piece=piece: _write_all(file, piece))


def _write_all(file: int, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[os.write(file, left) :]


def _create(folder: int, name: str) -> int:
    file = os.open(name, _WRITE_FLAGS, 0o644, dir_fd=folder)
    _give_to_owner_of(folder, file)
    return file


def _move(folder: int, unfinished: str, parts: list[str]) -> None:
    """Give a file its name. Code may have put something else in its place by now; that then gets the name, and is only read as any."""
    with _opened_folder(folder, parts[:-1], is_made=True) as parent:
        os.rename(unfinished, parts[-1], src_dir_fd=folder, dst_dir_fd=parent)


def _give_to_owner_of(folder: int, opened: int) -> None:
    """The code may run as another user than the server, and has to be able to change its files."""
    owner = os.fstat(folder)
    if owner.st_uid != os.geteuid():
        with contextlib.suppress(PermissionError):
            os.fchown(opened, owner.st_uid, owner.st_gid)


def _open_to_read(folder: int, name: str) -> int:
    """A descriptor of a regular file. Raises OSError or ValueError for anything else."""
    parts = _parts_or_none(name)
    if parts is None:
        raise ValueError(name)
    with _opened_folder(folder, parts[:-1]) as parent:
        # Opening a device can do something already; what comes in its place afterwards, no sandbox lets its code make.
        if not stat.S_ISREG(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode):
            raise ValueError(name)
        file = os.open(parts[-1], _READ_FLAGS, dir_fd=parent)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ValueError(name)
    return file


@contextlib.contextmanager
def _opened_folder(folder: int, parts: list[str], *, is_made: bool = False) -> Generator[int]:
    """A descriptor of a folder below, for as long as it is needed. Raises OSError when one of the parts is none."""
    opened = os.dup(folder)
    try:
        for part in parts:
            is_new = is_made and _make_folder(opened, part)
            below = os.open(part, _FOLDER_FLAGS, dir_fd=opened)
            if is_new:
                _give_to_owner_of(folder, below)
            os.close(opened)
            opened = below
        yield opened
    finally:
        os.close(opened)


def _make_folder(folder: int, name: str) -> bool:
    try:
        os.mkdir(name, 0o755, dir_fd=folder)
    except FileExistsError:
        return False
    return True


def _parts_or_none(name: str) -> list[str] | None:
    """The parts of a path below the folder; None when it is none."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return None
    parts = name.split("/")
    is_fine = b"\0" not in encoded and len(parts) <= _DEPTH_MAX and not {"", ".", ".."} & set(parts)
    return parts if is_fine and all(len(part) <= FILE_NAME_BYTES_MAX for part in encoded.split(b"/")) else None


def _entries(folder: int, entries_max: int) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below a folder with its path. What vanishes or cannot be opened meanwhile is left out."""
    left = entries_max
    waiting: list[tuple[str, ...]] = [()]
    while waiting and left > 0:
        parts = waiting.pop()
        with contextlib.suppress(OSError), _opened_folder(folder, list(parts)) as opened, os.scandir(opened) as entries:
            for entry in entries:
                left -= 1
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    yield "/".join((*parts, entry.name)), status
                    if stat.S_ISDIR(status.st_mode) and len(parts) + 1 < _DEPTH_MAX:
                        waiting.append((*parts, entry.name))
                if left <= 0:
                    break


def _version(status: os.stat_result) -> str:
    # The time of the change of status too: code can set the other one.
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"


async def in_thread(work: Callable[[], T]) -> T:
    """Returns when the thread has ended, also when the caller is cancelled: a descriptor must not be closed under its user."""
    job = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait([job])
        raise
