"""The embedded index."""

from mini_assistant.db.base import Database


class SegmentIndex:
    """A `PassageIndex` on segment rows."""

    def __init__(self, db: Database, *, cache_bytes_max: int) -> None:
        self._db = db

    async def close(self) -> None:
        pass
