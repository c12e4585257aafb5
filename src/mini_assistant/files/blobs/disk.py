"""Bytes of files on the local disk: one file a blob, in folders by the first two characters of the key.

A blob is written beside its place and moved there when it is whole and on disk, so a name in its place always stands for all bytes.
The disk is only touched in threads; pieces are collected, so that a thread is not woken for each packet.
"""

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from mini_assistant.errors import BlobMissing, StoreUnavailable
from mini_assistant.files.blobs.base import WrittenBlob
from mini_assistant.files.blobs.batches import BlobHashes, batches_of, joined

_READ_BYTES = 256 * 1024


class DiskBlobStore:
    """Blobs as files in a folder, which is made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def write(self, key: str, pieces: AsyncIterable[bytes], *, bytes_max: int) -> WrittenBlob:
        writing = _Writing(self._place(key))
        try:
            async with contextlib.aclosing(batches_of(pieces, bytes_max)) as batches:
                async for batch in batches:
                    await writing.add(batch)
            return await writing.finish()
        except OSError as exc:
            raise StoreUnavailable(f"{self._folder} cannot be written: {exc.strerror or exc}.") from exc
        finally:
            await writing.close()

    async def join(self, key: str, parts: Sequence[str]) -> WrittenBlob:
        return await self.write(key, joined(self.read, parts), bytes_max=sys.maxsize)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        reading = _Reading(self._place(key), start)
        left = sys.maxsize if end is None else end - start
        try:
            while left > 0 and (piece := await _in_thread(reading.read, min(_READ_BYTES, left))):
                left -= len(piece)
                yield piece
        except FileNotFoundError as exc:
            raise BlobMissing(f"The bytes of {key} are not in {self._folder} any more.") from exc
        except OSError as exc:
            raise StoreUnavailable(f"{self._folder} cannot be read: {exc.strerror or exc}.") from exc
        finally:
            reading.close()

    async def delete(self, key: str) -> None:
        place = self._place(key)
        try:
            await asyncio.to_thread(_unlink, place, _unfinished(place))
        except OSError as exc:
            raise StoreUnavailable(f"A file in {self._folder} cannot be deleted: {exc.strerror or exc}.") from exc

    async def check(self) -> str:
        try:
            free_bytes = await asyncio.to_thread(_check, self._folder)
        except OSError as exc:
            raise StoreUnavailable(f"{self._folder} cannot be used: {exc.strerror or exc}.") from exc
        return f"{self._folder}, {free_bytes / 1e9:.1f} GB free"

    async def close(self) -> None:
        """Nothing is held open."""

    def _place(self, key: str) -> Path:
        assert key.isalnum(), key
        return self._folder / key[:2] / key


class _Writing:
    """A blob while it arrives. At most one thread at a time works on it."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._file: BinaryIO | None = None
        self._hashes = BlobHashes()
        self._job: asyncio.Future[None] | None = None
        self._is_finished = False

    async def add(self, batch: bytearray) -> None:
        """Returns when a thread has begun with it, so that the next one can be collected meanwhile."""
        if self._job is not None:
            await asyncio.shield(self._job)
        self._job = asyncio.get_running_loop().run_in_executor(None, self._write, batch)

    def _write(self, batch: bytearray) -> None:
        if self._file is None:
            _make_folder(self._place.parent)
            self._file = open(_unfinished(self._place), "wb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._hashes.add(batch)
        rest = memoryview(batch)
        while rest:
            rest = rest[self._file.write(rest) :]

    async def finish(self) -> WrittenBlob:
        """Put the blob into its place, for good. At least one batch has been added."""
        assert self._job is not None
        await asyncio.shield(self._job)
        self._job = asyncio.get_running_loop().run_in_executor(None, self._move)
        await asyncio.shield(self._job)
        self._is_finished = True
        return self._hashes.written()

    def _move(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()
        _unfinished(self._place).rename(self._place)
        _sync_folder(self._place.parent)

    async def close(self) -> None:
        """Wait for the thread, also when the writer has been cancelled, and drop what is not finished."""
        if self._job is not None:
            await asyncio.wait([self._job])
            with contextlib.suppress(asyncio.CancelledError):
                self._job.exception()  # looked at: the writer may have failed before for another reason
        if not self._is_finished and self._file is not None:
            self._file.close()
            await asyncio.to_thread(_unlink, self._place, _unfinished(self._place))


def _unfinished(place: Path) -> Path:
    return place.with_suffix(".part")


class _Reading:
    """A blob while it is read; opened by the first read."""

    def __init__(self, place: Path, start: int) -> None:
        self._place = place
        self._start = start
        self._file: BinaryIO | None = None

    def read(self, size_bytes: int) -> bytes:
        if self._file is None:
            self._file = self._place.open("rb", buffering=0)
            self._file.seek(self._start)
        return self._file.read(size_bytes)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


async def _in_thread(read: Callable[[int], bytes], size_bytes: int) -> bytes:
    """Returns when the thread has ended, also when the caller is cancelled: a file must not be closed under its reader."""
    job = asyncio.get_running_loop().run_in_executor(None, read, size_bytes)
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait([job])
        raise


def _make_folder(folder: Path) -> None:
    """With the folders above it, all of them for good."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink(*places: Path) -> None:
    for place in places:
        place.unlink(missing_ok=True)


def _check(folder: Path) -> int:
    """Write and drop a small file; returns the free bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"check-{os.getpid()}"
    try:
        probe.write_bytes(b"1")
    finally:
        probe.unlink(missing_ok=True)
    return shutil.disk_usage(folder).free
