"""Brings the vectors of large stores from their segments to pgvector: rows first, then an index for each store alone, then what is new.

It runs on one connection, in one process at a time. What it is cut off in, it begins anew: rows of a batch come together with the mark
that says so, and half an index is dropped. Nothing that it does waits for a search or holds one up, nor adds and deletes.
"""

import logging
import re
from collections.abc import AsyncIterator
from typing import NamedTuple

import asyncpg
import numpy as np

from mini_assistant.vector_stores.indexes.pgvector_connections import Connection

log = logging.getLogger("mini_assistant.index")

DIMENSION_MAX = 4000
"""The longest half precision vectors that pgvector has indexes for."""

# What is read, and then becomes visible, at a time: segments until they have so many passages.
_BATCH_SEGMENTS_MAX = 256
_BATCH_PASSAGES_MAX = 4096
_BATCHES_MAX = 100_000
_GRAPH_EDGES = 16
_GRAPH_BREADTH = 100
# Memory of a build. A graph that does not fit is finished on disk, several times slower.
_BUILD_BYTES_MAX = 1024**3
_BUILD_BYTES_MIN = 64 * 1024**2
_GRAPH_BYTES_PER_PASSAGE = 600
# Its store, and the length of its vectors.
_INDEX_NAME = re.compile(r"passage_vectors_of_(\d+)_(\d+)")

_lock = "SELECT pg_try_advisory_lock(hashtext('mini_assistant.pgvector'))"
_unlock = "SELECT pg_advisory_unlock(hashtext('mini_assistant.pgvector'))"
# A store that was emptied may come back with vectors of another length.
_forget_emptied = """
    DELETE FROM indexed_stores x
    WHERE NOT EXISTS (SELECT FROM segments g WHERE g.vector_store_id = x.vector_store_id AND g.seq <= greatest(x.filled_seq, 0))
      AND (x.filled_seq > 0 OR NOT EXISTS (SELECT FROM segments g WHERE g.vector_store_id = x.vector_store_id))
"""
_select_newest_segment = "SELECT coalesce(max(seq), 0) FROM segments"
_add_large = """
    INSERT INTO indexed_stores (store_seq, vector_store_id, dimension, filled_seq, is_ready)
    SELECT v.seq, v.id, f.dimension, 0, false
    FROM (
        SELECT vector_store_id, sum(passage_count) AS passage_count, min(seq) AS first_seq FROM segments
        WHERE vector_store_id IN (SELECT vector_store_id FROM segments WHERE seq > $2)
        GROUP BY vector_store_id
    ) g
    JOIN vector_stores v ON v.id = g.vector_store_id
    JOIN LATERAL (SELECT octet_length(vectors) / (2 * passage_count) AS dimension FROM segments WHERE seq = g.first_seq) f ON true
    WHERE g.passage_count > $1 AND f.dimension BETWEEN 1 AND $3
    ON CONFLICT DO NOTHING
"""
_select_indexes = """
    SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = to_regclass('passage_vectors')
"""
_select_stores = "SELECT store_seq, vector_store_id, dimension, filled_seq, is_ready FROM indexed_stores ORDER BY is_ready DESC, store_seq"
_select_unfilled = """
    SELECT g.seq, g.passage_count, g.vectors
    FROM (
        SELECT seq, sum(passage_count) OVER (ORDER BY seq) - passage_count AS before
        FROM (SELECT seq, passage_count FROM segments WHERE vector_store_id = $1 AND seq > $2 ORDER BY seq LIMIT $3) k
    ) k
    JOIN segments g USING (seq) WHERE k.before < $4 ORDER BY g.seq
"""
_update_filled = "UPDATE indexed_stores SET filled_seq = $2 WHERE store_seq = $1"
_update_ready = "UPDATE indexed_stores SET is_ready = $2 WHERE store_seq = $1 AND is_ready <> $2"
_count_rows = "SELECT coalesce(sum(passage_count), 0) FROM segments WHERE vector_store_id = $1"
_set_build_memory = "SELECT set_config('maintenance_work_mem', $1, false), set_config('max_parallel_maintenance_workers', '0', false)"


class _Store(NamedTuple):
    store_seq: int
    vector_store_id: str
    dimension: int
    filled_seq: int
    is_ready: bool

    @property
    def index_name(self) -> str:
        return f"passage_vectors_of_{self.store_seq}_{self.dimension}"


async def keep_up(connection: Connection, *, exact_passages_max: int, since_seq: int) -> int | None:
    """Bring the rows and indexes of all large stores up to date; minutes for a store that has just become large.

    since_seq: stores that got no segment beyond it are not looked at for having become large. Returns the newest segment, or None when
    another process is at it; the driver's exceptions pass through.
    """
    if not await connection.fetchval(_lock):
        return None
    try:
        newest: int = await connection.fetchval(_select_newest_segment)
        await connection.execute(_forget_emptied)
        await connection.execute(_add_large, exact_passages_max, since_seq, DIMENSION_MAX)
        stores = [_Store(*row) for row in await connection.fetch(_select_stores)]
        indexed = await _drop_needless(connection, {store.index_name for store in stores})
        for store in stores:
            await _keep_up_store(connection, store, is_indexed=store.index_name in indexed)
        return newest
    finally:
        if not connection.is_closed():
            await connection.execute(_unlock)


async def _drop_needless(connection: Connection, wanted: set[str]) -> set[str]:
    """Drop the indexes that are half built or whose store is gone; returns those that are wanted and whole."""
    whole: set[str] = set()
    for name, is_valid in await connection.fetch(_select_indexes):
        if is_valid and name in wanted:
            whole.add(name)
        elif _INDEX_NAME.fullmatch(name):
            await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    return whole


async def _keep_up_store(connection: Connection, store: _Store, *, is_indexed: bool) -> None:
    if not is_indexed:
        await connection.execute(_update_ready, store.store_seq, False)
    filled_seq = await _fill(connection, store, store.filled_seq)
    if not is_indexed:
        await _build_index(connection, store)
        await _fill(connection, store, filled_seq)
    await connection.execute(_update_ready, store.store_seq, True)


async def _fill(connection: Connection, store: _Store, filled_seq: int) -> int:
    """Write rows for all segments beyond `filled_seq`; returns the last of them."""
    for _ in range(_BATCHES_MAX):
        rows = await connection.fetch(_select_unfilled, store.vector_store_id, filled_seq, _BATCH_SEGMENTS_MAX, _BATCH_PASSAGES_MAX)
        if not rows:
            break
        copied = b"".join([_rows_of(store, seq, count, vectors) for seq, count, vectors in rows])
        try:
            async with connection.transaction():
                # Not locked before: a file that is deleted would wait for its rows to be indexed. It fails the check at the end instead.
                await connection.copy_to_table(
                    "passage_vectors",
                    source=_pieces(copied),
                    columns=["segment_seq", "place", "store_seq", "embedding"],
                    format="binary",
                )
                await connection.execute(_update_filled, store.store_seq, rows[-1]["seq"])
        except asyncpg.ForeignKeyViolationError:
            continue  # one of them has gone; it is not read again
        filled_seq = rows[-1]["seq"]
    return filled_seq


_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
_COPY_FIELDS = (
    *(("columns", ">i2"), ("segment_seq_bytes", ">i4"), ("segment_seq", ">i8"), ("place_bytes", ">i4"), ("place", ">i4")),
    *(("store_seq_bytes", ">i4"), ("store_seq", ">i8"), ("embedding_bytes", ">i4"), ("dimension", ">i2"), ("nothing", ">i2")),
)
_PIECE_BYTES = 1 << 18


async def _pieces(rows: bytes) -> AsyncIterator[bytes]:
    yield _COPY_HEADER
    for start in range(0, len(rows), _PIECE_BYTES):
        yield rows[start : start + _PIECE_BYTES]
    yield _COPY_END


def _rows_of(store: _Store, segment_seq: int, count: int, vectors: bytes) -> bytes:
    """Rows of a segment as PostgreSQL's binary COPY reads them: the number of columns, then each with its length in bytes.

    A vector is its dimension, two bytes of nothing, and half precision numbers. Source: pgvector, halfvec_recv.
    """
    dimension = store.dimension
    rows = np.zeros(count, np.dtype([*_COPY_FIELDS, ("embedding", ">f2", (dimension,))]))
    rows["columns"] = 4
    rows["segment_seq_bytes"] = rows["store_seq_bytes"] = 8
    rows["place_bytes"] = 4
    rows["embedding_bytes"] = 4 + 2 * dimension
    rows["segment_seq"], rows["place"], rows["store_seq"] = segment_seq, np.arange(count), store.store_seq
    rows["dimension"] = dimension
    rows["embedding"] = np.frombuffer(vectors, "<f2").reshape(count, dimension)
    return rows.tobytes()


async def _build_index(connection: Connection, store: _Store) -> None:
    """Build the graph of one store. Others go on reading and writing meanwhile."""
    passage_count = int(await connection.fetchval(_count_rows, store.vector_store_id))
    size_bytes = passage_count * (2 * store.dimension + _GRAPH_BYTES_PER_PASSAGE)
    memory = min(_BUILD_BYTES_MAX, max(_BUILD_BYTES_MIN, size_bytes))
    await connection.fetch(_set_build_memory, f"{memory // 1024}kB")
    log.info("An index for the %d passages of %s is being built.", passage_count, store.vector_store_id)
    await connection.execute(
        f"CREATE INDEX CONCURRENTLY {store.index_name} ON passage_vectors "
        f"USING hnsw ((embedding::halfvec({store.dimension})) halfvec_ip_ops) "
        f"WITH (m = {_GRAPH_EDGES}, ef_construction = {_GRAPH_BREADTH}) WHERE store_seq = {store.store_seq}"
    )
    log.info("The index for %s is there.", store.vector_store_id)
