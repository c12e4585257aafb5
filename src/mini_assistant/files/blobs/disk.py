"""Bytes of files on the local disk."""

from pathlib import Path


class DiskBlobStore:
    """Blobs as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def close(self) -> None:
        pass
