"""The embedded index: segment rows in the database of everything else, and snapshots of them in memory.

A file's passages become rows in the same transaction as the file's status, so there is nothing to repair after a crash. A search reads
the store's revision, and its snapshot only when that has moved: new segments are loaded, and those that are gone are masked.
"""

import asyncio
from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from mini_assistant.db.base import Bound, Database, Query, Row
from mini_assistant.db.tables import passages as passage_rows
from mini_assistant.db.tables import segments, vector_store_files, vector_stores
from mini_assistant.errors import BackendError, StoreUnavailable
from mini_assistant.models.embeddings.base import Vectors
from mini_assistant.vector_stores.indexes.analyzer import ANALYZER_VERSION
from mini_assistant.vector_stores.indexes.base import Hit, IndexQuery, Passage, StoreScope
from mini_assistant.vector_stores.indexes.postings import POSTINGS_PASSAGES_MAX, build_postings, decode_postings, encode_postings
from mini_assistant.vector_stores.indexes.scan import Found, search_snapshot
from mini_assistant.vector_stores.indexes.snapshot import Block, SegmentKey, Snapshot, block_of, encode_vectors, merge_blocks, snapshot_of
from mini_assistant.vector_stores.indexes.snapshot_cache import SnapshotCache

# Passages of one row, and of one read of rows: the reader of the database is nobody else's for as long as that takes.
_SEGMENT_PASSAGES_MAX = 4096
_READ_PASSAGES_MAX = 4096
# Passages that one statement writes, and that one reads.
_INSERT_PASSAGES_MAX = 32
_SELECT_PASSAGES_MAX = 64
# Up to here a search is shorter than the way to a thread and back.
_INLINE_PASSAGES_MAX = 2048
# Searches that start over because a file went away between the picture and the texts.
_ATTEMPTS_MAX = 5
_BUILDS_MAX = 2

_insert_segment = Query.insert_into(segments)


def _numbered(column: sa.Column[object], number: int) -> sa.BindParameter[object]:
    return sa.bindparam(f"{column.name}_{number}", type_=column.type)


def _insert_passages(count: int) -> Query:
    return Query(sa.insert(passage_rows).values([{c.name: _numbered(c, number) for c in passage_rows.columns} for number in range(count)]))


def _select_passages(count: int) -> Query:
    key = (passage_rows.c.file_seq, passage_rows.c.ordinal)
    wanted = [sa.and_(*(column == _numbered(column, number) for column in key)) for number in range(count)]
    columns = (passage_rows.c.text, passage_rows.c.start_index, passage_rows.c.end_index, passage_rows.c.page)
    return Query(sa.select(*key, *columns).where(sa.or_(*wanted)))


# Statements for 1, 2, 4 ... passages.
_insert_passages_by_count = {1 << power: _insert_passages(1 << power) for power in range(_INSERT_PASSAGES_MAX.bit_length())}
_select_passages_by_count = {1 << power: _select_passages(1 << power) for power in range(_SELECT_PASSAGES_MAX.bit_length())}
_PARAMETERS = [tuple(f"{column.name}_{number}" for column in passage_rows.columns) for number in range(_INSERT_PASSAGES_MAX)]

_is_the_store = sa.and_(vector_stores.c.id == sa.bindparam("vector_store_id"), vector_stores.c.project_id == sa.bindparam("project_id"))
_is_the_file = sa.and_(
    vector_store_files.c.seq == sa.bindparam("file_seq"),
    vector_store_files.c.vector_store_id == sa.bindparam("vector_store_id"),
    vector_store_files.c.project_id == sa.bindparam("project_id"),
)
_bump_revision = Query(
    sa.update(vector_stores).where(_is_the_store).values(revision=vector_stores.c.revision + 1).returning(vector_stores.c.revision)
)
_delete_passages = Query(
    sa.delete(passage_rows).where(passage_rows.c.file_seq.in_(sa.select(vector_store_files.c.seq).where(_is_the_file)))
)
_delete_segments = Query(sa.delete(segments).where(segments.c.file_seq.in_(sa.select(vector_store_files.c.seq).where(_is_the_file))))
_select_revision = Query(sa.select(vector_stores.c.revision).where(_is_the_store))
_select_keys = Query(
    sa.select(vector_stores.c.revision, segments.c.seq, segments.c.file_seq, segments.c.first_ordinal, segments.c.passage_count)
    .select_from(vector_stores.outerjoin(segments, segments.c.vector_store_id == vector_stores.c.id))
    .where(_is_the_store)
    .order_by(segments.c.seq)
)
_select_blobs = Query(
    sa.select(segments.c.seq, segments.c.analyzer, segments.c.vectors, segments.c.postings)
    .where(
        segments.c.vector_store_id == sa.bindparam("vector_store_id"), segments.c.seq.between(sa.bindparam("first"), sa.bindparam("last"))
    )
    .order_by(segments.c.seq)
)


class SegmentIndex:
    """A `PassageIndex` on segment rows."""

    def __init__(self, db: Database, *, cache_bytes_max: int) -> None:
        """cache_bytes_max: memory for snapshots that are kept; a build needs more for a moment."""
        self._db = db
        self._cache = SnapshotCache(cache_bytes_max)
        self._builds: dict[StoreScope, asyncio.Task[Snapshot | None]] = {}
        self._building = asyncio.Semaphore(_BUILDS_MAX)

    @property
    def cached_bytes(self) -> int:
        """Memory that the kept snapshots take."""
        return self._cache.size_bytes

    def add_file(self, scope: StoreScope, file_seq: int, passages: Sequence[Passage], vectors: Vectors) -> list[Bound]:
        """As `PassageIndex` has it. The guard `vector_store` fails when the store is gone. Raises ValueError without a vector for each."""
        if len(vectors) != len(passages):
            raise ValueError(f"{len(passages)} passages have {len(vectors)} vectors")
        statements = [_bump_revision.guard("vector_store", **scope._asdict()), *_inserted(file_seq, passages)]
        for start in range(0, len(passages), _SEGMENT_PASSAGES_MAX):
            of_segment = passages[start : start + _SEGMENT_PASSAGES_MAX]
            statements.append(
                _insert_segment(
                    vector_store_id=scope.vector_store_id,
                    file_seq=file_seq,
                    first_ordinal=start,
                    passage_count=len(of_segment),
                    analyzer=ANALYZER_VERSION,
                    vectors=encode_vectors(vectors[start : start + len(of_segment)]),
                    postings=encode_postings(build_postings([passage.text for passage in of_segment])),
                )
            )
        return statements

    def remove_file(self, scope: StoreScope, file_seq: int) -> list[Bound]:
        names = {**scope._asdict(), "file_seq": file_seq}
        return [_delete_segments(**names), _delete_passages(**names), _bump_revision(**scope._asdict())]

    async def search(self, scope: StoreScope, query: IndexQuery) -> list[Hit]:
        hits: list[Hit] = []
        for _ in range(_ATTEMPTS_MAX):
            snapshot = await self._current(scope)
            if snapshot is None or not snapshot.passage_count:
                return []
            _check_dimension(scope, snapshot, query)
            if snapshot.place_count <= _INLINE_PASSAGES_MAX:
                found = search_snapshot(snapshot, query)
            else:
                found = await asyncio.to_thread(search_snapshot, snapshot, query)
            hits = await self._with_passages(found)
            if len(hits) == len(found):
                break
        return hits

    async def _current(self, scope: StoreScope) -> Snapshot | None:
        """The store as of now or later; None when there is no such store."""
        rows = await self._db.read(_select_revision(**scope._asdict()))
        if not rows:
            self._cache.drop(scope)
            return None
        revision: int = rows[0][0]
        snapshot = self._cache.get_or_none(scope)
        while snapshot is None or snapshot.revision < revision:
            snapshot = await self._shared_build(scope)
            if snapshot is None:
                return None
        return snapshot

    async def _shared_build(self, scope: StoreScope) -> Snapshot | None:
        """What one build of the store gives to all who wait for it. It goes on when one of them is cancelled."""
        build = self._builds.get(scope)
        # One that has just ended may still be here, and what it has made be too old: waiting for it again would be waiting for ever.
        if build is None or build.done():
            build = self._builds[scope] = asyncio.create_task(self._build(scope))
            build.add_done_callback(lambda done: self._forget_build(scope, done))
        return await asyncio.shield(build)

    def _forget_build(self, scope: StoreScope, build: asyncio.Task[Snapshot | None]) -> None:
        if self._builds.get(scope) is build:
            del self._builds[scope]
        if not build.cancelled():
            build.exception()  # seen, though everybody who waited may be gone

    async def _build(self, scope: StoreScope) -> Snapshot | None:
        async with self._building:
            rows = await self._db.read(_select_keys(**scope._asdict()))
            if not rows:
                self._cache.drop(scope)
                return None
            known = self._cache.get_or_none(scope)
            revision, keys = await asyncio.to_thread(_listed, rows)
            blocks = [part.block for part in known.parts] if known is not None else []
            loaded = set(known.segments[:, 0].tolist()) if known is not None else set[int]()
            blocks += await self._load(scope, [key for key in keys if key.seq not in loaded])
            snapshot = await asyncio.to_thread(snapshot_of, revision, blocks, [key.seq for key in keys])
            self._cache.put(scope, snapshot)
            return snapshot

    async def _load(self, scope: StoreScope, keys: list[SegmentKey]) -> list[Block]:
        """Blocks of segments, as large as blocks can be. A segment that has gone meanwhile is left out: the revision has moved again."""
        merged: list[Block] = []
        waiting: list[Block] = []
        size = 0
        for group in read_groups(keys):
            rows = await self._db.read(_select_blobs(vector_store_id=scope.vector_store_id, first=group[0].seq, last=group[-1].seq))
            for block in await asyncio.to_thread(_decoded, rows, {key.seq: key for key in group}):
                if waiting and (size + block.passage_count > POSTINGS_PASSAGES_MAX or block.analyzer != waiting[0].analyzer):
                    merged.append(await asyncio.to_thread(merge_blocks, waiting))
                    waiting, size = [], 0
                waiting.append(block)
                size += block.passage_count
        if waiting:
            merged.append(await asyncio.to_thread(merge_blocks, waiting))
        return merged

    async def _with_passages(self, found: list[Found]) -> list[Hit]:
        """Hits with their texts, in their order. A passage that has gone since it was found is left out."""
        texts: dict[tuple[int, int], Passage] = {}
        for start in range(0, len(found), _SELECT_PASSAGES_MAX):
            for file_seq, ordinal, *passage in await self._db.read(_selected(found[start : start + _SELECT_PASSAGES_MAX])):
                texts[file_seq, ordinal] = Passage(*passage)
        return [Hit(*item, texts[item[:2]]) for item in found if item[:2] in texts]

    async def close(self) -> None:
        builds = list(self._builds.values())
        for build in builds:
            build.cancel()
        await asyncio.gather(*builds, return_exceptions=True)
        self._cache.clear()


def _inserted(file_seq: int, passages: Sequence[Passage]) -> list[Bound]:
    statements: list[Bound] = []
    start = 0
    while start < len(passages):
        count = min(_INSERT_PASSAGES_MAX, 1 << ((len(passages) - start).bit_length() - 1))
        parameters: dict[str, object] = {}
        for names, ordinal in zip(_PARAMETERS, range(start, start + count), strict=False):
            parameters.update(zip(names, (file_seq, ordinal, *passages[ordinal]), strict=True))
        statements.append(_insert_passages_by_count[count](**parameters))
        start += count
    return statements


def _selected(found: list[Found]) -> Bound:
    """Reads passages; some of them are asked for twice, so that there are few different statements."""
    count = 1 << (len(found) - 1).bit_length()
    parameters: dict[str, int] = {}
    for number in range(count):
        item = found[min(number, len(found) - 1)]
        parameters[f"file_seq_{number}"] = item.file_seq
        parameters[f"ordinal_{number}"] = item.ordinal
    return _select_passages_by_count[count](**parameters)


def _check_dimension(scope: StoreScope, snapshot: Snapshot, query: IndexQuery) -> None:
    if query.vector.size != snapshot.dimension:
        raise BackendError(
            f"The vectors of {scope.vector_store_id} have {snapshot.dimension} dimensions, and the query has {query.vector.size}: "
            "they come from different embedders."
        )


def _listed(rows: list[Row]) -> tuple[int, list[SegmentKey]]:
    """The revision of a store, and its segments; a store without any has one row with nulls."""
    return rows[0][0], [SegmentKey(*row[1:]) for row in rows if row[1] is not None]


def read_groups(keys: list[SegmentKey]) -> Iterator[list[SegmentKey]]:
    """Segments in groups that are each read by one statement: as many as may be held at a time, in their order."""
    group: list[SegmentKey] = []
    size = 0
    for key in keys:
        if group and size + key.passage_count > _READ_PASSAGES_MAX:
            yield group
            group, size = [], 0
        group.append(key)
        size += key.passage_count
    if group:
        yield group


def _decoded(rows: list[Row], keys: dict[int, SegmentKey]) -> list[Block]:
    blocks: list[Block] = []
    for seq, analyzer, vectors, postings in rows:
        if seq in keys:
            try:
                blocks.append(block_of(keys[seq], vectors, decode_postings(postings), analyzer))
            except ValueError as exc:
                raise StoreUnavailable(f"The segment {seq} of the index is damaged: {exc}.") from exc
    return blocks
