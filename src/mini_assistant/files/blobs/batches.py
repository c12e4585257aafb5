"""What every blob store does with the bytes of a new blob: counts and bounds them, collects them to batches, and hashes those."""

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence

from mini_assistant.files.blobs.base import BlobTooLarge, WrittenBlob

# While one batch is hashed and written, the next one is collected: a write takes twice this much memory.
_BATCH_BYTES = 1024 * 1024


async def batches_of(pieces: AsyncIterable[bytes], bytes_max: int) -> AsyncGenerator[bytearray]:
    """The bytes of all pieces in batches of a megabyte or more, but for the last one, which may be empty.

    Raises BlobTooLarge before it gives a byte too many, and whatever `pieces` raises.
    """
    size_bytes = 0
    batch = bytearray()
    async for piece in pieces:
        size_bytes += len(piece)
        if size_bytes > bytes_max:
            raise BlobTooLarge
        batch += piece
        if len(batch) >= _BATCH_BYTES:
            yield batch
            batch = bytearray()
    yield batch


async def joined(read: Callable[[str], AsyncGenerator[bytes]], parts: Sequence[str]) -> AsyncGenerator[bytes]:
    """The bytes of blobs one after another. read: gives those of one, by its key."""
    for part in parts:
        async with contextlib.aclosing(read(part)) as pieces:
            async for piece in pieces:
                yield piece


class BlobHashes:
    """Size and hashes of a blob while it is written. At most one thread at a time works on it."""

    def __init__(self) -> None:
        self._size_bytes = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def add(self, batch: bytearray) -> None:
        """Take the next batch. Milliseconds of CPU: call it in a thread."""
        self._size_bytes += len(batch)
        self._sha256.update(batch)
        self._md5.update(batch)

    def written(self) -> WrittenBlob:
        """What all batches up to now are together."""
        return WrittenBlob(self._size_bytes, self._sha256.hexdigest(), self._md5.hexdigest())
