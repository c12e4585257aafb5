"""The index for large stores in PostgreSQL: nearest passages by pgvector, words by postings in memory, scores as the exact index has them.

Passages are added and removed as segments, exactly as the embedded index does it, and small stores are searched by it. `maintain` copies
the vectors of stores that have become large to a table with an HNSW index for each of them; from then on their vectors take no memory
here. Segments that it has not come to yet are read with each search, so that every search sees every commit.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from mini_assistant.db.base import Bound, Database, Query
from mini_assistant.db.tables import segments, vector_stores
from mini_assistant.errors import BackendError
from mini_assistant.models.embeddings.base import Vectors
from mini_assistant.vector_stores.indexes.base import Hit, IndexQuery, Passage, StoreScope
from mini_assistant.vector_stores.indexes.fusion import Places
from mini_assistant.vector_stores.indexes.pgvector_connections import Connection, Connections
from mini_assistant.vector_stores.indexes.pgvector_recall import Recall, Unfilled, found_by, gather, missed_places, recall_of
from mini_assistant.vector_stores.indexes.pgvector_upkeep import keep_up
from mini_assistant.vector_stores.indexes.pgvector_words import WordSnapshots
from mini_assistant.vector_stores.indexes.scan import Found
from mini_assistant.vector_stores.indexes.segments import SegmentIndex

# What each search may read beside the table; a store with more of it is searched in memory until `maintain` has caught up.
_UNFILLED_PASSAGES_MAX = 10_000
_ATTEMPTS_MAX = 5

_indexed_stores = sa.table(
    "indexed_stores",
    *[sa.column(name, sa.BigInteger) for name in ("store_seq", "dimension", "filled_seq")],
    sa.column("vector_store_id", sa.Text),
    sa.column("is_ready", sa.Boolean),
)
_select_indexed = Query(
    sa.select(_indexed_stores.c.store_seq, _indexed_stores.c.dimension, _indexed_stores.c.filled_seq)
    .join_from(_indexed_stores, vector_stores, vector_stores.c.id == _indexed_stores.c.vector_store_id)
    .where(
        vector_stores.c.id == sa.bindparam("vector_store_id"),
        vector_stores.c.project_id == sa.bindparam("project_id"),
        _indexed_stores.c.is_ready,
        sa.func.coalesce(vector_stores.c.dimension, _indexed_stores.c.dimension) == _indexed_stores.c.dimension,
    )
)
_count_indexed = Query(sa.select(sa.func.count()).select_from(_indexed_stores).where(_indexed_stores.c.is_ready))
_select_vectors = Query(
    sa.select(segments.c.seq, segments.c.vectors).where(
        segments.c.vector_store_id == sa.bindparam("vector_store_id"), segments.c.seq > sa.bindparam("after", type_=sa.BigInteger)
    )
)
_make_tables = "SELECT make_passage_vectors()"
_select_version = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"

_SCANNED = """
    WITH allowed AS MATERIALIZED (SELECT segment_seq, place, {product} AS distance FROM passage_vectors WHERE {allowed}),
    nearest AS MATERIALIZED (SELECT segment_seq, place, distance FROM allowed ORDER BY distance LIMIT $5)
"""
_FOLLOWED = """
    WITH nearest AS MATERIALIZED (
        SELECT segment_seq, place, {product} AS distance FROM passage_vectors WHERE {allowed} ORDER BY {product} LIMIT $5
    )
"""
_NEAREST = "SELECT segment_seq, place, -distance FROM nearest UNION ALL"
_ASKED = """
    SELECT segment_seq, place, -({product})
    FROM unnest($2::bigint[], $3::integer[]) AS asked (segment_seq, place) JOIN passage_vectors USING (segment_seq, place)
"""


class _IndexedStore(NamedTuple):
    store_seq: int
    dimension: int
    filled_seq: int


class PgvectorIndex:
    """A `PassageIndex` on segment rows, with pgvector for the stores that are too large for memory."""

    def __init__(self, db: Database, url: str, *, exact_passages_max: int, cache_bytes_max: int, wait_seconds: float) -> None:
        """url: that of the database behind `db`. exact_passages_max: passages of a store that is searched in memory alone.

        cache_bytes_max: memory for what is kept of stores; small and large ones get one half each. wait_seconds: the longest wait for a
        connection.
        """
        self._db = db
        self._exact = SegmentIndex(db, cache_bytes_max=cache_bytes_max // 2)
        self._words = WordSnapshots(db, cache_bytes_max=cache_bytes_max // 2)
        self._connections = Connections(url, wait_seconds=wait_seconds)
        self._exact_passages_max = exact_passages_max
        self._has_pgvector = False
        # The newest segments at the last calls of `maintain`. A transaction may commit a smaller one after a larger has been seen.
        self._seen = (0, 0)

    @property
    def cached_bytes(self) -> int:
        """Memory that the kept snapshots take."""
        return self._exact.cached_bytes + self._words.cached_bytes

    async def open(self) -> None:
        """Connect, and find out whether there is pgvector; without it all stores are searched exactly. Raises StoreUnavailable."""
        await self._connections.open()
        self._has_pgvector = (await self._connections.read(_make_tables))[0][0]

    async def check(self) -> str:
        """One line about the index. Raises StoreUnavailable."""
        if not self._has_pgvector:
            return "exact, all in memory: PostgreSQL has no extension `vector`, or this role may not create it"
        version = (await self._connections.read(_select_version))[0][0]
        count = (await self._db.read(_count_indexed()))[0][0]
        return f"pgvector {version} for {count} large stores, exact for all others"

    def add_file(self, scope: StoreScope, file_seq: int, passages: Sequence[Passage], vectors: Vectors) -> list[Bound]:
        """As `PassageIndex` has it. The guard `vector_store` fails when the store is gone. Raises ValueError without a vector for each."""
        return self._exact.add_file(scope, file_seq, passages, vectors)

    def remove_file(self, scope: StoreScope, file_seq: int) -> list[Bound]:
        return self._exact.remove_file(scope, file_seq)  # the rows of pgvector go with their segments

    async def search(self, scope: StoreScope, query: IndexQuery) -> list[Hit]:
        """As `PassageIndex` has it, but a large store may leave out a passage that belongs to the best. Raises StoreUnavailable."""
        hits: list[Hit] = []
        for _ in range(_ATTEMPTS_MAX):
            store = await self._indexed_or_none(scope)
            found = None if store is None else await self._found_or_none(scope, store, query)
            if found is None:
                return await self._exact.search(scope, query)
            hits = await self._words.with_passages(found)
            if len(hits) == len(found):
                break
        return hits

    async def _indexed_or_none(self, scope: StoreScope) -> _IndexedStore | None:
        if not self._has_pgvector:
            return None
        rows = await self._db.read(_select_indexed(**scope._asdict()))
        return _IndexedStore(*rows[0]) if rows else None

    async def _found_or_none(self, scope: StoreScope, store: _IndexedStore, query: IndexQuery) -> list[Found] | None:
        """What a large store has; None when too little of it is in PostgreSQL."""
        # Read after the store's row: what that says of segments stays true of later ones.
        snapshot = await self._words.current(scope)
        if snapshot is None or not snapshot.passage_count or query.limit <= 0:
            return []
        if query.vector.size != store.dimension:
            raise BackendError(
                f"The vectors of {scope.vector_store_id} have {store.dimension} dimensions, and the query has {query.vector.size}: "
                "they come from different embedders."
            )
        if int(snapshot.segments[snapshot.segments[:, 0] > store.filled_seq, 3].sum()) > _UNFILLED_PASSAGES_MAX:
            return None
        recall = await asyncio.to_thread(recall_of, snapshot, query, store.filled_seq)
        rows = await self._nearest(store, recall) if recall.filled_count else []
        unfilled = await self._unfilled(scope, store, recall) if len(recall.unfilled) else []
        gathered = [await asyncio.to_thread(gather, recall, rows, unfilled)]
        missed = await asyncio.to_thread(missed_places, recall, gathered[0])
        if len(missed):
            gathered.append(gather(recall, await self._products(store, recall, missed), []))
        return await asyncio.to_thread(found_by, recall, gathered)

    async def _nearest(self, store: _IndexedStore, recall: Recall) -> list[tuple[Any, ...]]:
        """Segment, place and product with the query, of the nearest passages and of those that are asked for."""
        parameters = [_vector_text(recall.query), *recall.keys_of(recall.asked), store.store_seq, recall.depth]
        # All of a store are mostly all of its rows: the list of them is left out then.
        is_filtered = recall.is_scanned or recall.query.file_seqs is not None
        if is_filtered:
            parameters.append(recall.filled.tolist())
        text = _nearest_text(store.dimension, is_scanned=recall.is_scanned, is_filtered=is_filtered)
        return await self._connections.read(text, *parameters)

    async def _products(self, store: _IndexedStore, recall: Recall, places: Places) -> list[tuple[Any, ...]]:
        """As `_nearest`, of these places alone."""
        text = _ASKED.format(product=_product(store.dimension))
        return await self._connections.read(text, _vector_text(recall.query), *recall.keys_of(places))

    async def _unfilled(self, scope: StoreScope, store: _IndexedStore, recall: Recall) -> list[Unfilled]:
        allowed = set(recall.snapshot.segments[recall.unfilled, 0].tolist())
        rows = await self._db.read(_select_vectors(vector_store_id=scope.vector_store_id, after=store.filled_seq))
        return [Unfilled(seq, vectors) for seq, vectors in rows if seq in allowed]

    async def maintain(self) -> None:
        """Bring pgvector up to date with stores that have become large, got passages or went away.

        In one process at a time; the others return at once. It may take minutes, and is safe to cancel. Searches, adds and deletes go on
        meanwhile. Raises StoreUnavailable; the next call goes on from there.
        """
        if not self._has_pgvector:
            return

        async def work(connection: Connection) -> int | None:
            return await keep_up(connection, exact_passages_max=self._exact_passages_max, since_seq=self._seen[0])

        newest = await self._connections.run(work)
        if newest is not None:
            self._seen = (self._seen[1], newest)

    async def close(self) -> None:
        await self._exact.close()
        await self._words.close()
        await self._connections.close()


def _vector_text(query: IndexQuery) -> str:
    numbers: list[float] = query.vector.reshape(-1).astype("<f2").astype(float).tolist()
    return f"[{','.join(map(repr, numbers))}]"


def _product(dimension: int) -> str:
    return f"embedding::halfvec({dimension}) <#> $1::text::halfvec({dimension})"


def _nearest_text(dimension: int, *, is_scanned: bool, is_filtered: bool) -> str:
    """The statement for vectors of a length. is_scanned: compare all that are allowed, instead of following the graph of the store."""
    allowed = "store_seq = $4" + (" AND segment_seq = ANY($6::bigint[])" if is_filtered else "")
    text = (_SCANNED if is_scanned else _FOLLOWED) + _NEAREST + _ASKED
    return text.format(product=_product(dimension), allowed=allowed)
