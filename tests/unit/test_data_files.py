"""Files of a session while hostile code changes them: what is read is what lies in the folder, and nothing else is touched."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mini_assistant.errors import SandboxFileMissing, SandboxFull
from mini_assistant.sandboxes import data_files
from mini_assistant.sandboxes.data_files import DataLimits, Usage, list_files, usage

LIMITS = DataLimits(bytes_max=1_000_000, entries_max=20)
SECRET = b"a secret of the host"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(data: Path) -> Iterator[int]:
    descriptor = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is none of the code's business."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    return folder


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def content_of(folder: int, name: str, bytes_max: int = 10**9) -> bytes:
    return b"".join([piece async for piece in data_files.read_file(folder, name, bytes_max)])


def names_in(folder: int) -> list[str]:
    return [file.name for file in list_files(folder, 1000)]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_only_regular_files_are_listed(data: Path, folder: int, outside: Path) -> None:
    (data / "b").write_bytes(b"12")
    (data / "a").mkdir()
    (data / "a" / "c").write_bytes(b"")
    (data / "link").symlink_to(outside / "secret")
    (data / "folder-link").symlink_to(outside)
    os.mkfifo(data / "fifo")
    Path(os.fsdecode(os.fsencode(data) + b"/\xff")).write_bytes(b"")

    assert [(file.name, file.size_bytes) for file in list_files(folder, 1000)] == [("a/c", 0), ("b", 2)]


def test_a_version_changes_with_the_bytes_also_when_the_time_is_set_back(data: Path, folder: int) -> None:
    file = data / "a"
    file.write_bytes(b"one")
    before = file.stat()
    (first,) = list_files(folder, 1000)
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of files may be a coarse one
        file.write_bytes(b"two")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    (second,) = list_files(folder, 1000)

    assert first.version != second.version


def test_looking_is_bounded(data: Path, folder: int) -> None:
    for number in range(50):
        (data / str(number)).write_bytes(b"1")
    deep = data
    for _ in range(60):
        deep = deep / "d"
        deep.mkdir()
    (deep / "too-deep").write_bytes(b"1")

    assert len(list_files(folder, 10)) <= 10
    assert usage(folder, 10).entries == 10
    assert "too-deep" not in " ".join(names_in(folder))


def test_usage_counts_what_lies_on_the_disk(data: Path, folder: int) -> None:
    assert usage(folder, 100) == Usage(0, 0)
    with (data / "sparse").open("wb") as file:
        file.truncate(10**9)
    (data / "real").write_bytes(b"x" * 100_000)

    used = usage(folder, 100)
    assert used.entries == 2
    assert 100_000 <= used.size_bytes < 10**6


@pytest.mark.parametrize(
    "name", ["link", "folder-link/secret", "fifo", "folder", "../outside/secret", "", ".", "..", "a//b", "/", "x\0", "\ud800"]
)
async def test_nothing_but_a_file_is_read(data: Path, folder: int, outside: Path, name: str) -> None:
    (data / "link").symlink_to(outside / "secret")
    (data / "folder-link").symlink_to(outside)
    (data / "folder").mkdir()
    os.mkfifo(data / "fifo")
    before = open_descriptors()

    with pytest.raises(SandboxFileMissing):
        await asyncio.wait_for(content_of(folder, name), 10)
    assert open_descriptors() == before


async def test_no_more_is_read_than_asked_for(data: Path, folder: int) -> None:
    with (data / "sparse").open("wb") as file:
        file.truncate(10**12)

    assert await content_of(folder, "sparse", bytes_max=600_000) == b"\0" * 600_000


async def test_a_link_in_the_place_of_a_file_is_never_followed(data: Path, folder: int, outside: Path) -> None:
    """Code that swaps a file, a folder and links all the time: each read gives the file or nothing, and each list its size."""
    (data / "own").write_bytes(b"own")
    (data / "real").mkdir()
    (data / "real" / "secret").write_bytes(b"own")
    is_over = threading.Event()

    def swap() -> None:
        turn = 0
        while not is_over.is_set():
            turn += 1
            for place, target in ((data / "file", outside / "secret"), (data / "folder", outside)):
                new = data / "new"
                if turn % 2:
                    new.symlink_to(target)
                else:
                    new.symlink_to(data / ("own" if place.name == "file" else "real"))
                os.replace(new, place)
            place = data / "file"
            place.unlink()
            os.link(data / "own", place)

    swapping = threading.Thread(target=swap)
    swapping.start()
    read: set[bytes] = set()
    try:
        for _ in range(300):
            for name in ("file", "folder/secret"):
                try:
                    read.add(await content_of(folder, name))
                except SandboxFileMissing:
                    read.add(b"missing")
            assert all(file.size_bytes < len(SECRET) for file in list_files(folder, 100))
    finally:
        is_over.set()
        swapping.join()

    assert SECRET not in read
    assert read <= {b"own", b"missing"}


async def test_a_file_is_written_with_its_folders(data: Path, folder: int) -> None:
    before = open_descriptors()
    await data_files.write_file(folder, "a/b/c.txt", pieces_of(b"one", b"two"), LIMITS)
    await data_files.write_file(folder, "a/b/c.txt", pieces_of(b"three"), LIMITS)

    assert (data / "a" / "b" / "c.txt").read_bytes() == b"three"
    assert names_in(folder) == ["a/b/c.txt"]
    assert open_descriptors() == before


async def test_links_are_replaced_and_not_written_through(data: Path, folder: int, outside: Path) -> None:
    (data / "link").symlink_to(outside / "secret")
    (data / "folder").symlink_to(outside)

    await data_files.write_file(folder, "link", pieces_of(b"new"), LIMITS)
    with pytest.raises(SandboxFull):
        await data_files.write_file(folder, "folder/new", pieces_of(b"new"), LIMITS)

    assert (outside / "secret").read_bytes() == SECRET
    assert os.listdir(outside) == ["secret"]
    assert not (data / "link").is_symlink()
    assert names_in(folder) == ["link"]


async def test_a_link_put_in_the_place_of_an_unfinished_file_is_not_followed(data: Path, folder: int, outside: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        (unfinished,) = os.listdir(data)
        (data / unfinished).unlink()
        (data / unfinished).symlink_to(outside / "secret")
        yield b"two"

    await data_files.write_file(folder, "a", pieces(), LIMITS)

    assert (outside / "secret").read_bytes() == SECRET
    with pytest.raises(SandboxFileMissing):
        await content_of(folder, "a")


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128, "", "..", "a/../b", "/a", "a\0", "\ud800", "/".join("d" * 40)])
async def test_what_can_be_no_name_is_refused(folder: int, name: str) -> None:
    with pytest.raises(SandboxFull):
        await data_files.write_file(folder, name, pieces_of(b"1"), LIMITS)
    assert names_in(folder) == []


async def test_what_does_not_fit_leaves_nothing(data: Path, folder: int) -> None:
    await data_files.write_file(folder, "first", pieces_of(b"x" * 600_000), LIMITS)
    with pytest.raises(SandboxFull):
        await data_files.write_file(folder, "second", pieces_of(b"x" * 300_000, b"x" * 300_000), LIMITS)
    for number in range(LIMITS.entries_max - 1):
        await data_files.write_file(folder, str(number), pieces_of(b""), LIMITS)
    with pytest.raises(SandboxFull):
        await data_files.write_file(folder, "one more", pieces_of(b""), LIMITS)

    assert len(os.listdir(data)) == LIMITS.entries_max


async def test_a_writer_that_is_cancelled_leaves_nothing(data: Path, folder: int) -> None:
    began = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        began.set()
        await asyncio.Event().wait()

    before = open_descriptors()
    writing = asyncio.create_task(data_files.write_file(folder, "a", endless(), LIMITS))
    await began.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing

    assert os.listdir(data) == []
    assert open_descriptors() == before
