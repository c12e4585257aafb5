"""The seam to the bytes of files. Rows say which blobs there are; a blob that no row names is deleted by the sweeper."""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import NamedTuple, Protocol


class WrittenBlob(NamedTuple):
    """What was written. sha256, md5: lower-case hex of all bytes."""

    size_bytes: int
    sha256: str
    md5: str


class BlobTooLarge(Exception):
    """More bytes came than were allowed. Nothing is kept."""


class BlobStore(Protocol):
    """Bytes by key. Keys are made by the server (`new_blob_key`), never by clients. Memory stays flat whatever the size."""

    async def write(self, key: str, pieces: AsyncIterable[bytes], *, bytes_max: int) -> WrittenBlob:
        """Keep a new blob; it would survive a power cut when this returns. Nothing is kept when `pieces` raises.

        Raises BlobTooLarge and StoreUnavailable (a full disk).
        """
        ...

    async def join(self, key: str, parts: Sequence[str]) -> WrittenBlob:
        """Keep a new blob made of other blobs in this order; those stay. Raises BlobMissing and StoreUnavailable."""
        ...

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `end`, not included; None for all. Raises BlobMissing."""
        ...

    async def delete(self, key: str) -> None:
        """Drop a blob; one that is gone already is no error."""
        ...

    async def check(self) -> str:
        """One line about the store. Raises StoreUnavailable with the reason when it cannot be used."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
