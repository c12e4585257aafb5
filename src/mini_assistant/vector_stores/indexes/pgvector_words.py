"""Snapshots of large stores for the words alone: their vectors stay in PostgreSQL.

They are built, kept and shared as those of the embedded index are; in place of its vector each passage has a single zero.
"""

import asyncio
from collections.abc import Iterable

import numpy as np
import sqlalchemy as sa

from mini_assistant.db.base import Query
from mini_assistant.db.tables import segments
from mini_assistant.errors import StoreUnavailable
from mini_assistant.vector_stores.indexes.base import Hit, StoreScope
from mini_assistant.vector_stores.indexes.postings import POSTINGS_PASSAGES_MAX, decode_postings
from mini_assistant.vector_stores.indexes.scan import Found
from mini_assistant.vector_stores.indexes.segments import SegmentIndex, read_groups
from mini_assistant.vector_stores.indexes.snapshot import Block, SegmentKey, Snapshot, block_of, encode_vectors, merge_blocks

_select_postings = Query(
    sa.select(segments.c.seq, segments.c.analyzer, segments.c.postings)
    .where(
        segments.c.vector_store_id == sa.bindparam("vector_store_id"), segments.c.seq.between(sa.bindparam("first"), sa.bindparam("last"))
    )
    .order_by(segments.c.seq)
)


class WordSnapshots(SegmentIndex):
    """What the embedded index keeps of a store, without its vectors."""

    async def current(self, scope: StoreScope) -> Snapshot | None:
        """The store as of now or later; None when there is no such store. Raises StoreUnavailable."""
        return await self._current(scope)

    async def with_passages(self, found: list[Found]) -> list[Hit]:
        """Hits with their texts, in their order. A passage that has gone since it was found is left out."""
        return await self._with_passages(found)

    async def _load(self, scope: StoreScope, keys: list[SegmentKey]) -> list[Block]:
        loaded: list[Block] = []
        for group in read_groups(keys):
            rows = await self._db.read(_select_postings(vector_store_id=scope.vector_store_id, first=group[0].seq, last=group[-1].seq))
            loaded += await asyncio.to_thread(_blocks_of, rows, {key.seq: key for key in group})
        return await asyncio.to_thread(_merged, loaded)


def _blocks_of(rows: Iterable[tuple[int, int, bytes]], keys: dict[int, SegmentKey]) -> list[Block]:
    blocks: list[Block] = []
    for seq, analyzer, postings in rows:
        if seq in keys:
            no_vectors = encode_vectors(np.zeros(keys[seq].passage_count, np.float32))
            try:
                blocks.append(block_of(keys[seq], no_vectors, decode_postings(postings), analyzer))
            except ValueError as exc:
                raise StoreUnavailable(f"The segment {seq} of the index is damaged: {exc}.") from exc
    return blocks


def _merged(blocks: list[Block]) -> list[Block]:
    """The same passages in blocks that are as large as they can be."""
    merged: list[Block] = []
    waiting: list[Block] = []
    size = 0
    for block in blocks:
        if waiting and (size + block.passage_count > POSTINGS_PASSAGES_MAX or block.analyzer != waiting[0].analyzer):
            merged.append(merge_blocks(waiting))
            waiting, size = [], 0
        waiting.append(block)
        size += block.passage_count
    return [*merged, merge_blocks(waiting)] if waiting else merged
