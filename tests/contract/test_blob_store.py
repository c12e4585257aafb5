"""What every blob store behind `files/blobs/base.BlobStore` has to hold: bytes come back as they were, whole or not at all."""

import asyncio
import errno
import hashlib
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from mini_assistant.errors import BlobMissing, StoreUnavailable
from mini_assistant.files.blobs.base import BlobStore, BlobTooLarge
from mini_assistant.files.blobs.disk import DiskBlobStore
from mini_assistant.files.blobs.s3 import S3BlobStore
from mini_assistant.ids import new_blob_key
from tests.s3_server import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server

IMPLEMENTATIONS = ["disk", "s3"]
MEGABYTE = 1024 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "blobs"


class Opened(NamedTuple):
    """A new, empty store. place: how its check calls it. kept: the names of whatever it has left behind, finished or not."""

    store: BlobStore
    place: str
    kept: Callable[[], list[str]]


def opened_disk(folder: Path) -> Opened:
    return Opened(DiskBlobStore(folder), str(folder), lambda: [path.name for path in kept_files(folder)])


def opened_s3(server: S3Server, bucket: str) -> Opened:
    def kept() -> list[str]:
        return [key.removeprefix("some/prefix/") for key in server.keys(bucket) + server.uploads(bucket)]

    url = f"s3://{bucket}/some/prefix"
    store = S3BlobStore(url, endpoint_url=server.url, region="us-east-1", access_key_id=ACCESS_KEY_ID, secret_access_key=SECRET_ACCESS_KEY)
    return Opened(store, url, kept)


@pytest.fixture(params=IMPLEMENTATIONS)
def opened(request: pytest.FixtureRequest, folder: Path) -> Opened:
    if request.param == "s3":
        return opened_s3(request.getfixturevalue("s3"), request.getfixturevalue("s3_bucket"))
    return opened_disk(folder)


@pytest.fixture
async def blobs(opened: Opened) -> AsyncIterator[BlobStore]:
    yield opened.store
    await opened.store.close()


def kept_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def broken_after(pieces: Iterable[bytes], failure: BaseException) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    raise failure


async def written(blobs: BlobStore, *pieces: bytes) -> str:
    key = new_blob_key()
    await blobs.write(key, pieces_of(*pieces), bytes_max=100 * MEGABYTE)
    return key


async def all_of(blobs: BlobStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in blobs.read(key, start, end)])


@pytest.mark.parametrize(
    "sizes", [[], [0], [1], [MEGABYTE], [MEGABYTE - 1, 1, 1], [70_000] * 40, [3 * MEGABYTE + 7, 5], [MEGABYTE] * 13], ids=str
)
async def test_bytes_come_back_with_their_size_and_hashes(blobs: BlobStore, sizes: list[int]) -> None:
    pieces = [random.Random(size).randbytes(size) for size in sizes]
    whole = b"".join(pieces)
    key = new_blob_key()

    blob = await blobs.write(key, pieces_of(*pieces), bytes_max=len(whole))

    assert blob == (len(whole), hashlib.sha256(whole).hexdigest(), hashlib.md5(whole).hexdigest())
    assert await all_of(blobs, key) == whole


async def test_a_part_is_read(blobs: BlobStore) -> None:
    whole = random.Random(1).randbytes(2 * MEGABYTE)
    key = await written(blobs, whole)

    for start, end in [(0, 1), (5, 5), (7, 300_000), (MEGABYTE, None), (len(whole) - 1, None), (len(whole), None), (3, len(whole) + 9)]:
        assert await all_of(blobs, key, start, end) == whole[start:end]


async def test_nothing_is_kept_of_too_many_bytes(blobs: BlobStore, opened: Opened) -> None:
    for pieces in ([b"x" * 101], [b"x" * 100, b"y"], [b"x" * MEGABYTE] * 3):
        key = new_blob_key()
        with pytest.raises(BlobTooLarge):
            await blobs.write(key, pieces_of(*pieces), bytes_max=100)
        with pytest.raises(BlobMissing):
            await all_of(blobs, key)
    assert opened.kept() == []


async def test_nothing_is_kept_when_the_bytes_stop_coming(blobs: BlobStore, opened: Opened) -> None:
    for size in (10, 3 * MEGABYTE, 12 * MEGABYTE):
        with pytest.raises(ZeroDivisionError):
            await blobs.write(new_blob_key(), broken_after([b"x" * size], ZeroDivisionError()), bytes_max=100 * MEGABYTE)
    assert opened.kept() == []


async def test_nothing_is_kept_when_the_writer_is_cancelled(blobs: BlobStore, opened: Opened) -> None:
    began = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * MEGABYTE
            began.set()
            await asyncio.sleep(0)

    writing = asyncio.create_task(blobs.write(new_blob_key(), endless(), bytes_max=10**12))
    await began.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert opened.kept() == []


async def test_blobs_are_joined_in_the_order_that_is_asked_for(blobs: BlobStore) -> None:
    parts = {name: await written(blobs, name.encode() * 300_000) for name in "abc"}
    wanted = b"".join(name.encode() * 300_000 for name in "cab")
    key = new_blob_key()

    blob = await blobs.join(key, [parts[name] for name in "cab"])

    assert blob == (len(wanted), hashlib.sha256(wanted).hexdigest(), hashlib.md5(wanted).hexdigest())
    assert await all_of(blobs, key) == wanted
    assert await all_of(blobs, parts["b"]) == b"b" * 300_000


async def test_a_join_with_a_missing_part_keeps_nothing(blobs: BlobStore, opened: Opened) -> None:
    part = await written(blobs, b"a")
    key = new_blob_key()

    with pytest.raises(BlobMissing):
        await blobs.join(key, [part, new_blob_key()])

    assert opened.kept() == [part]


async def test_a_deleted_blob_is_missing_and_can_be_deleted_again(blobs: BlobStore) -> None:
    key = await written(blobs, b"x")
    await blobs.delete(key)
    await blobs.delete(key)

    with pytest.raises(BlobMissing):
        await all_of(blobs, key)


async def test_what_is_being_read_stays_readable(blobs: BlobStore) -> None:
    whole = random.Random(2).randbytes(MEGABYTE)
    key = await written(blobs, whole)
    reading = blobs.read(key)
    first = await anext(reading)
    await blobs.delete(key)

    assert first + b"".join([piece async for piece in reading]) == whole


async def test_many_are_written_and_read_at_a_time(blobs: BlobStore) -> None:
    wholes = [random.Random(number).randbytes(200_000 + number) for number in range(40)]
    keys = await asyncio.gather(*(written(blobs, whole[:77_777], whole[77_777:]) for whole in wholes))

    assert await asyncio.gather(*(all_of(blobs, key) for key in keys)) == wholes


async def test_the_check_says_where_it_is(blobs: BlobStore, opened: Opened) -> None:
    assert opened.place in await blobs.check()
    assert opened.kept() == []


async def test_a_disk_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file in the place of the folder")
    store = DiskBlobStore(tmp_path / "blobs")

    with pytest.raises(StoreUnavailable, match="cannot be used"):
        await store.check()
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        await store.write(new_blob_key(), pieces_of(b"x"), bytes_max=10)


async def test_a_disk_that_is_full_is_told_and_nothing_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = DiskBlobStore(folder)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnavailable, match="No space left on device"):
        await store.write(new_blob_key(), pieces_of(b"x" * 3 * MEGABYTE), bytes_max=10 * MEGABYTE)
    monkeypatch.undo()
    assert kept_files(folder) == []


async def test_the_rest_of_a_killed_writer_is_deleted_with_its_key(folder: Path) -> None:
    store = DiskBlobStore(folder)
    key = await written(store, b"x")
    place = next(iter(kept_files(folder)))
    place.rename(place.with_suffix(".part"))  # as a kill before the last step leaves it

    with pytest.raises(BlobMissing):
        await all_of(store, key)
    await store.delete(key)
    assert kept_files(folder) == []
