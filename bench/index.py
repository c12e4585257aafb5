"""Searches of the embedded index against an exact scan of the same vectors in float32, in turns, and what the index costs.

The texts are made up: words by Zipf's law, a third of them from the topic of their file, 250 a passage. Both sides answer with the 20
best of a store; ours reads the store's revision and the texts from the database as well, the scan has everything at hand.
"""

import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read once, here: the scan has one thread, as ours has, and none that spins beside ours
import numpy as np

del os.environ["OPENBLAS_NUM_THREADS"]  # servers that other rows start have what they always have

from numpy.typing import NDArray

from bench.report import Row, at_most, information, median, percentile
from bench.scale import Scale
from mini_assistant.db.base import Bound, Query
from mini_assistant.db.sqlite import SqliteDatabase
from mini_assistant.db.tables import vector_store_files, vector_stores
from mini_assistant.models.embeddings.base import Vectors
from mini_assistant.vector_stores.indexes.base import IndexQuery, Passage, StoreScope
from mini_assistant.vector_stores.indexes.segments import SegmentIndex

DENSE_TARGET = 1.5
HYBRID_TARGET = 4.0
DIMENSION = 256
LIMIT = 20
_PASSAGES_PER_FILE = 50
_WORDS_PER_PASSAGE = 250
_VOCABULARY = 60_000
_SEARCHES_PER_ROUND = 20
# Passages of a store from which on a search is more than the reading of two rows, which a bare scan has not.
_TARGETS_FROM = 10_000
_TINY_STORES = 2000

_insert_store = Query.insert_into(vector_stores)
_insert_file = Query.insert_into(vector_store_files)


class Texts:
    """Makes passages and vectors that are near to each other within a file."""

    def __init__(self) -> None:
        self._numbers = np.random.default_rng(5)
        letters = self._numbers.integers(97, 123, (_VOCABULARY, 9)).astype(np.uint8)
        lengths = self._numbers.integers(3, 10, _VOCABULARY)
        self._words = [bytes(row[:length]).decode() for row, length in zip(letters, lengths, strict=True)]
        weights = 1 / (np.arange(_VOCABULARY) + 2.7)
        self._cumulated = np.cumsum(weights / weights.sum())

    def passages(self, count: int) -> list[Passage]:
        """Passages of one file."""
        numbers = np.searchsorted(self._cumulated, self._numbers.random((count, _WORDS_PER_PASSAGE)))
        topic = self._numbers.integers(0, _VOCABULARY - 1, 200)
        is_topical = self._numbers.random(numbers.shape) < 1 / 3
        numbers = np.where(is_topical, topic[self._numbers.integers(0, 200, numbers.shape)], np.minimum(numbers, _VOCABULARY - 1))
        texts = [" ".join([self._words[number] for number in row]) for row in numbers.tolist()]
        return [Passage(text, 0, len(text), None) for text in texts]

    def vectors(self, count: int) -> Vectors:
        """Vectors of one file."""
        made = self._numbers.standard_normal((count, DIMENSION), dtype=np.float32) + self._numbers.standard_normal(DIMENSION, np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)


@dataclass
class Store:
    """A vector store and what the scan and the queries need of it."""

    scope: StoreScope
    file_seqs: list[int]
    vectors: Vectors
    texts: list[str]


class Rows:
    """Writes stores, and counts the CPU that this took."""

    def __init__(self, db: SqliteDatabase, index: SegmentIndex) -> None:
        self._db = db
        self._index = index
        self._texts = Texts()
        self._file_count = 0
        self.ingest_cpu_seconds = 0.0

    async def new_store(self, name: str, passages: int) -> Store:
        """A store of files with 50 passages each, or less."""
        scope = StoreScope("default", name)
        await self._db.write([_store_row(name)])
        store = Store(scope, [], np.empty((passages, DIMENSION), np.float32), [])
        for start in range(0, passages, _PASSAGES_PER_FILE):
            count = min(_PASSAGES_PER_FILE, passages - start)
            made, vectors = self._texts.passages(count), self._texts.vectors(count)
            store.vectors[start : start + count] = vectors
            store.texts += [passage.text for passage in made]
            self._file_count += 1
            began = time.process_time()
            statements = self._index.add_file(scope, self._file_count, made, vectors)
            await self._db.write([_file_row(scope, self._file_count), *statements], durable=False)
            self.ingest_cpu_seconds += time.process_time() - began
            store.file_seqs.append(self._file_count)
        return store


def _store_row(name: str) -> Bound:
    values: dict[str, Any] = {column.name: 0 for column in vector_stores.columns if column.name != "seq"}
    empty = dict.fromkeys(("expires_after_days", "expires_at", "embedder", "dimension"))
    return _insert_store(**{**values, **empty, "id": name, "project_id": "default", "body": "{}"})


def _file_row(scope: StoreScope, number: int) -> Bound:
    values: dict[str, Any] = {column.name: 0 for column in vector_store_files.columns if column.name != "seq"}
    names = {**scope._asdict(), "id": f"file-{number}", "body": "{}", "status": "completed"}
    return _insert_file(**{**values, **dict.fromkeys(("batch_id", "lease_owner", "summary")), **names})


async def rows(scale: Scale) -> AsyncIterator[Row]:
    """Rows for a small, a middle and a large store, one about many tiny ones, and one about ingest."""
    is_full = scale.rounds > 1
    with tempfile.TemporaryDirectory() as folder:
        db = SqliteDatabase(Path(folder) / "index.sqlite3")
        await db.open()
        index = SegmentIndex(db, cache_bytes_max=1 << 30)
        written = Rows(db, index)
        passage_count = 0
        for size in (1_000, 17_000, 100_000) if is_full else (1_000, 4_000):
            store = await written.new_store(f"vs_{size}", size)
            passage_count += size
            async for row in _rows_of_store(index, store, scale):
                yield row
        yield await _tiny_stores(index, written, _TINY_STORES if is_full else 50)
        per_second = passage_count / written.ingest_cpu_seconds
        yield information("index: ingest without embedding", f"{per_second:,.0f} passages / CPU s", f"{_WORDS_PER_PASSAGE} words each")
        await index.close()
        await db.close()


async def _rows_of_store(index: SegmentIndex, store: Store, scale: Scale) -> AsyncIterator[Row]:
    size = len(store.vectors)
    before = index.cached_bytes
    began, began_cpu = time.perf_counter(), time.process_time()
    await index.search(store.scope, _query(store, 0))
    cold = f"{time.process_time() - began_cpu:.2f} CPU s, {time.perf_counter() - began:.2f} s"
    memory = (index.cached_bytes - before) / 2**20
    yield information(f"index: {size:,} passages, first search", cold, f"{memory:.0f} MiB kept, {memory * 1e5 / size:.0f} a 100,000")
    allowed = set(store.file_seqs[::2])
    kinds: list[tuple[str, float, dict[str, Any]]] = [
        ("dense", DENSE_TARGET, {"embedding_weight": 1.0, "text_weight": 0.0}),
        ("hybrid + filter", HYBRID_TARGET, {"file_seqs": allowed}),
    ]
    for name, target, options in kinds:
        queries = [_query(store, turn, **options) for turn in range(scale.rounds * _SEARCHES_PER_ROUND)]
        yield await _compared(f"index: {size:,} passages, {name}", target, index, store, queries)
    yield await _recall(index, store)


def _query(store: Store, turn: int, **changes: Any) -> IndexQuery:
    """Asks for a third of a passage: eight of its words, and a vector in its direction."""
    place = turn * 7919 % len(store.vectors)
    noise = np.random.default_rng(turn).standard_normal(DIMENSION).astype(np.float32) / 16
    vector = store.vectors[place] + noise
    text = " ".join(store.texts[place].split()[:8])
    return IndexQuery(text=text, vector=(vector / np.linalg.norm(vector))[None], limit=LIMIT, **changes)


def _scan(vectors: Vectors, vector: Vectors) -> NDArray[np.intp]:
    """The least that an exact search does."""
    scores = vectors @ vector[0]
    best = np.argpartition(scores, len(scores) - LIMIT)[-LIMIT:]
    return best[np.argsort(-scores[best])]


async def _compared(what: str, target: float, index: SegmentIndex, store: Store, queries: list[IndexQuery]) -> Row:
    async def scan(query: IndexQuery) -> None:
        _scan(store.vectors, query.vector)

    async def search(query: IndexQuery) -> None:
        await index.search(store.scope, query)

    ours: list[_Times] = []
    bound: list[_Times] = []
    for start in range(0, len(queries), _SEARCHES_PER_ROUND):
        turns = queries[start : start + _SEARCHES_PER_ROUND]
        bound.append(await _timed(scan, turns))
        ours.append(await _timed(search, turns))
    if len(store.vectors) < _TARGETS_FROM:
        return information(what, _shown(ours), f"{_shown(bound)}, f32 scan")
    ratio = median(a.p50_ms / b.p50_ms for a, b in zip(ours, bound, strict=True))
    return at_most(what, ratio, target, unit=" x", note=f" ({_shown(ours)})", bound=f"{_shown(bound)}, f32 scan")


class _Times(NamedTuple):
    p50_ms: float
    cpu_ms: float


def _shown(times: list[_Times]) -> str:
    return f"{median(item.p50_ms for item in times):.2f} ms, CPU {median(item.cpu_ms for item in times):.2f}"


async def _timed(search: Callable[[IndexQuery], Awaitable[None]], queries: list[IndexQuery]) -> _Times:
    walls: list[float] = []
    began_cpu = time.process_time()
    for query in queries:
        began = time.perf_counter()
        await search(query)
        walls.append((time.perf_counter() - began) * 1e3)
    return _Times(percentile(sorted(walls), 0.5), (time.process_time() - began_cpu) * 1e3 / len(walls))


async def _recall(index: SegmentIndex, store: Store) -> Row:
    """How many of the scan's 20 best are found although vectors are stored in half precision."""
    shares: list[float] = []
    for turn in range(50):
        query = _query(store, turn, embedding_weight=1.0, text_weight=0.0)
        found = {(hit.file_seq, hit.ordinal) for hit in await index.search(store.scope, query)}
        best = [divmod(int(place), _PASSAGES_PER_FILE) for place in _scan(store.vectors, query.vector)]
        shares.append(sum((store.file_seqs[file], ordinal) in found for file, ordinal in best) / LIMIT)
    return information(f"index: {len(store.vectors):,} passages, recall@20", f"{sum(shares) / len(shares):.3f}", "1, exact scan in float32")


async def _tiny_stores(index: SegmentIndex, written: Rows, count: int) -> Row:
    stores = [await written.new_store(f"vs_tiny_{number}", 10) for number in range(count)]
    before = index.cached_bytes
    first: list[float] = []
    again: list[float] = []
    for times in (first, again):
        for store in stores:
            query = _query(store, 1)
            began = time.perf_counter()
            await index.search(store.scope, query)
            times.append((time.perf_counter() - began) * 1e3)
    kept = (index.cached_bytes - before) / 2**20
    measured = f"p50 {percentile(sorted(again), 0.5):.2f} ms, first {percentile(sorted(first), 0.5):.2f} ms"
    return information(f"index: {count:,} stores of 10 passages", measured, f"{kept:.0f} MiB kept")
