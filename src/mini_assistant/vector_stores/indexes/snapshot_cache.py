"""Snapshots of recently searched stores, in a limited amount of memory."""

from collections import OrderedDict

from mini_assistant.metrics import INDEX_CACHE_BYTES
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.indexes.snapshot import Snapshot


class SnapshotCache:
    """The snapshots that were used last. Used in the event loop only."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._snapshots: OrderedDict[StoreScope, Snapshot] = OrderedDict()
        self.size_bytes = 0

    def get_or_none(self, scope: StoreScope) -> Snapshot | None:
        """The newest known snapshot of a store, which is now the one that is dropped last."""
        if scope not in self._snapshots:
            return None
        self._snapshots.move_to_end(scope)
        return self._snapshots[scope]

    def put(self, scope: StoreScope, snapshot: Snapshot) -> None:
        """Keep a snapshot instead of the store's older one. One that is larger than all of the memory is not kept."""
        self.drop(scope)
        if snapshot.size_bytes > self._bytes_max:
            return
        self._snapshots[scope] = snapshot
        self._grow(snapshot.size_bytes)
        while self.size_bytes > self._bytes_max:
            _, dropped = self._snapshots.popitem(last=False)
            self._grow(-dropped.size_bytes)

    def drop(self, scope: StoreScope) -> None:
        """Forget a store; nothing happens when it is not known."""
        dropped = self._snapshots.pop(scope, None)
        if dropped is not None:
            self._grow(-dropped.size_bytes)

    def clear(self) -> None:
        """Forget everything."""
        self._snapshots.clear()
        self._grow(-self.size_bytes)

    def _grow(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        INDEX_CACHE_BYTES.inc(size_bytes)  # the process may have several caches
