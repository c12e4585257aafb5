"""The pgvector index beside what its contract says: graphs for large stores, how they come about and go, and how good they are.

The exact index on the same rows is the measure. Nothing here is timed: what happens meanwhile is held up by locks.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

from mini_assistant.db.base import Query
from mini_assistant.db.migrations import migrate_postgres
from mini_assistant.db.postgres import PostgresDatabase
from mini_assistant.db.tables import vector_store_files, vector_stores
from mini_assistant.errors import StoreUnavailable
from mini_assistant.models.embeddings.base import Vectors
from mini_assistant.vector_stores.indexes.base import Hit, IndexQuery, Passage, StoreScope
from mini_assistant.vector_stores.indexes.pgvector import PgvectorIndex, _nearest_text
from mini_assistant.vector_stores.indexes.segments import SegmentIndex
from tests.postgres_server import PostgresServer, running_postgres

CACHE_BYTES_MAX = 1024**3
SCOPE = StoreScope("p", "vs_1")

insert_store = Query.insert_into(vector_stores)
insert_file = Query.insert_into(vector_store_files)
select_file_seq = Query(sa.select(vector_store_files.c.seq).where(vector_store_files.c.id == sa.bindparam("file_id")))
delete_store = Query(sa.delete(vector_stores).where(vector_stores.c.id == sa.bindparam("object_id")))


@dataclass
class Bench:
    """A vector store on PostgreSQL, its index, and texts and vectors that lie in clusters as real ones do."""

    server: PostgresServer
    url: str
    db: PostgresDatabase
    index: PgvectorIndex
    exact: SegmentIndex
    dimension: int
    file_count: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(5)
        self.numbers = np.random.default_rng(5)
        self.words = [f"w{chr(97 + place % 26)}{chr(97 + place // 26)}x" for place in range(600)]
        self.centers = self.unit(self.numbers.standard_normal((60, self.dimension), dtype=np.float32))
        self.topics = [self.random.sample(self.words, 40) for _ in self.centers]

    @staticmethod
    def unit(vectors: Vectors) -> Vectors:
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def vectors(self, topic: int, count: int) -> Vectors:
        away = self.unit(self.numbers.standard_normal((count, self.dimension), dtype=np.float32))
        return self.unit(self.centers[topic] + np.float32(0.9) * away)

    async def new_store(self) -> None:
        counts = {f"files_{status}": 0 for status in ("in_progress", "completed", "failed", "cancelled")}
        await self.db.write(
            [
                insert_store(
                    id=SCOPE.vector_store_id, project_id=SCOPE.project_id, created_at=1, body="{}", usage_bytes=0, last_active_at=1,
                    expires_after_days=None, expires_at=None, revision=0, embedder=None, dimension=None, **counts,
                )
            ]
        )  # fmt: skip

    async def add(self, count: int = 20) -> int:
        """Add a file of one topic."""
        self.file_count += 1
        file_id, topic = f"file-{self.file_count}", self.random.randrange(len(self.centers))
        texts = [" ".join(self.random.choices(self.words, k=20) + self.random.choices(self.topics[topic], k=10)) for _ in range(count)]
        row = insert_file(
            id=file_id, project_id=SCOPE.project_id, created_at=1, body="{}", vector_store_id=SCOPE.vector_store_id, batch_id=None,
            status="completed", usage_bytes=0, lease_owner=None, lease_until=0.0, attempt=1, summary=None, attributes="{}",
        )  # fmt: skip
        await self.db.write([row])
        file_seq: int = (await self.db.read(select_file_seq(file_id=file_id)))[0][0]
        passages = [Passage(text, 0, len(text), None) for text in texts]
        await self.db.write(self.index.add_file(SCOPE, file_seq, passages, self.vectors(topic, count)))
        return file_seq

    async def add_many(self, files: int, count: int = 20) -> list[int]:
        return [await self.add(count) for _ in range(files)]

    async def remove(self, file_seq: int) -> None:
        await self.db.write(self.index.remove_file(SCOPE, file_seq))

    def query(self, **changes: Any) -> IndexQuery:
        topic = self.random.randrange(len(self.centers))
        text = " ".join(self.random.sample(self.topics[topic], 3) + self.random.sample(self.words, 2))
        return IndexQuery(**{"text": text, "vector": self.vectors(topic, 1), "limit": 20, **changes})

    async def recall(self, searches: int, file_seqs: Collection[int] | None = None, **changes: Any) -> float:
        """The share of what the exact index finds; what both find has the same score unless ranks are fused."""
        found = wanted = 0
        for _ in range(searches):
            query = self.query(file_seqs=file_seqs, **changes)
            expected, hits = await self.exact.search(SCOPE, query), await self.index.search(SCOPE, query)
            scores = {hit[:2]: hit.score for hit in hits}
            assert len(hits) == len(expected)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            both = [hit for hit in expected if hit[:2] in scores]
            if query.embedding_weight is None:
                assert [scores[hit[:2]] for hit in both] == pytest.approx([hit.score for hit in both], abs=1e-5)
            found, wanted = found + len(both), wanted + len(expected)
        return found / wanted

    async def check_same(self) -> list[Hit]:
        """Everything is found, as the exact index finds it."""
        query = self.query(limit=10_000)
        hits, expected = await self.index.search(SCOPE, query), await self.exact.search(SCOPE, query)
        assert {hit[:2]: hit.passage for hit in hits} == {hit[:2]: hit.passage for hit in expected}
        return hits

    def rows(self, statement: str) -> Any:
        return self.server.execute(statement, self.url.rpartition("/")[2])

    def indexes(self) -> list[tuple[str, bool]]:
        statement = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 'passage_vectors'::regclass"
        return [(name, is_valid) for name, is_valid in self.rows(statement) if name != "passage_vectors_pkey"]

    def is_ready(self) -> bool:
        return self.rows("SELECT count(*) FROM indexed_stores WHERE is_ready") == [(1,)]


async def opened(server: PostgresServer, url: str, *, dimension: int = 16, exact_passages_max: int = 0) -> Bench:
    db = PostgresDatabase(url, connections_max=4, wait_seconds=10)
    await db.open()
    index = PgvectorIndex(db, url, exact_passages_max=exact_passages_max, cache_bytes_max=CACHE_BYTES_MAX, wait_seconds=10)
    await index.open()
    bench = Bench(server, url, db, index, SegmentIndex(db, cache_bytes_max=CACHE_BYTES_MAX), dimension)
    await bench.new_store()
    return bench


async def closed(bench: Bench) -> None:
    await bench.index.close()
    await bench.exact.close()
    await bench.db.close()


@pytest.fixture
async def bench(postgres: PostgresServer, postgres_url: str) -> AsyncIterator[Bench]:
    bench = await opened(postgres, postgres_url)
    yield bench
    await closed(bench)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what PostgreSQL does by itself."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - nobody tells it
            await asyncio.sleep(0.02)


# ---- how good it is ------------------------------------------------------------------------------------------------------------------


async def test_a_graph_finds_what_the_exact_index_finds(postgres: PostgresServer, postgres_url: str) -> None:
    bench = await opened(postgres, postgres_url, dimension=64)
    file_seqs = await bench.add_many(80, 100)
    await bench.index.maintain()
    assert await bench.recall(20) >= 0.99
    assert await bench.recall(10, text="") >= 0.98
    assert await bench.recall(20, set(file_seqs[::2])) >= 0.99
    assert await bench.recall(10, set(file_seqs[::20])) == 1.0
    assert await bench.recall(10, embedding_weight=1.0, text_weight=1.0) >= 0.95
    assert bench.index._exact.cached_bytes == 0  # all of it went through pgvector
    await closed(bench)


@pytest.mark.heavy
async def test_recall_at_20_of_a_hundred_thousand_passages(postgres: PostgresServer, postgres_url: str) -> None:
    bench = await opened(postgres, postgres_url, dimension=384, exact_passages_max=50_000)
    file_seqs = await bench.add_many(1000, 100)
    await bench.index.maintain()
    for count in (None, 500, 200, 100, 10, 1):
        chosen = None if count is None else set(bench.random.sample(file_seqs, count))
        assert await bench.recall(40, chosen) >= 0.99, count
        assert await bench.recall(20, chosen, text="") >= 0.98, count
    assert bench.index._exact.cached_bytes == 0
    await closed(bench)


async def test_the_statement_is_served_by_the_index_of_the_store(bench: Bench) -> None:
    await bench.add_many(60, 100)
    await bench.index.maintain()
    [(name, _)] = bench.indexes()
    vector = f"[{','.join(['0.25'] * bench.dimension)}]"
    with psycopg.connect(bench.url, autocommit=True) as connection:
        connection.execute("SET plan_cache_mode = force_custom_plan")
        text = _nearest_text(bench.dimension, is_scanned=False, is_filtered=False)
        connection.execute(f"PREPARE nearest AS {text}".encode())
        plan = connection.execute(f"EXPLAIN EXECUTE nearest('{vector}', '{{}}', '{{}}', 1, 200)".encode()).fetchall()
    assert any(f"Index Scan using {name}" in line for (line,) in plan), plan


# ---- how a store becomes large -------------------------------------------------------------------------------------------------------


async def test_small_stores_are_left_alone(postgres: PostgresServer, postgres_url: str) -> None:
    bench = await opened(postgres, postgres_url, exact_passages_max=100)
    await bench.add_many(5)
    await bench.index.maintain()
    assert bench.rows("SELECT count(*) FROM passage_vectors") == [(0,)]
    await bench.add()
    await bench.index.maintain()
    assert bench.rows("SELECT count(*) FROM passage_vectors") == [(120,)]
    assert bench.is_ready()
    assert [is_valid for _, is_valid in bench.indexes()] == [True]
    await bench.check_same()
    await closed(bench)


async def test_searches_adds_and_deletes_go_on_while_an_index_is_built(bench: Bench) -> None:
    file_seqs = await bench.add_many(5)
    with psycopg.connect(bench.url) as gate:
        gate.execute("LOCK TABLE passage_vectors IN ROW EXCLUSIVE MODE")  # a build waits until nobody writes who began before it
        building = asyncio.create_task(bench.index.maintain())
        await until(lambda: bool(bench.indexes()))
        async with asyncio.timeout(20):
            added = await bench.add()
            await bench.remove(file_seqs[0])
            assert {hit.file_seq for hit in await bench.check_same()} == {*file_seqs[1:], added}
        assert not building.done()
        assert not bench.is_ready()
        gate.rollback()
    await building
    assert bench.is_ready()
    assert {hit.file_seq for hit in await bench.check_same()} == {*file_seqs[1:], added}
    assert bench.rows("SELECT count(*) FROM passage_vectors") == [(100,)]


async def test_half_an_index_is_dropped_and_built_anew(bench: Bench) -> None:
    await bench.add_many(5)
    with psycopg.connect(bench.url) as gate:
        gate.execute("LOCK TABLE passage_vectors IN ROW EXCLUSIVE MODE")
        building = asyncio.create_task(bench.index.maintain())
        await until(lambda: bool(bench.indexes()))
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building
        gate.rollback()
    assert [is_valid for _, is_valid in bench.indexes()] == [False]
    await bench.check_same()
    await bench.index.maintain()
    assert [is_valid for _, is_valid in bench.indexes()] == [True]
    await bench.check_same()


async def test_one_process_at_a_time_builds(bench: Bench) -> None:
    await bench.add_many(3)
    with psycopg.connect(bench.url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtext('mini_assistant.pgvector'))")
        await bench.index.maintain()
        assert bench.rows("SELECT count(*) FROM indexed_stores") == [(0,)]
        await bench.check_same()
        other.execute("SELECT pg_advisory_unlock_all()")
    await bench.index.maintain()
    assert bench.is_ready()


async def test_what_maintain_has_not_come_to_is_found_all_the_same(bench: Bench) -> None:
    await bench.add_many(3)
    await bench.index.maintain()
    added = await bench.add()
    assert bench.rows("SELECT count(*) FROM passage_vectors") == [(60,)]
    assert added in {hit.file_seq for hit in await bench.check_same()}
    await bench.index.maintain()
    assert bench.rows("SELECT count(*) FROM passage_vectors") == [(80,)]
    await bench.check_same()
    assert await bench.recall(5, {added}) == 1.0


async def test_a_file_that_goes_while_its_vectors_are_copied(bench: Bench) -> None:
    lost, *kept = await bench.add_many(3)
    with psycopg.connect(bench.url) as gate:
        gate.execute("DELETE FROM segments WHERE file_seq = %s", (lost,))
        filling = asyncio.create_task(bench.index.maintain())
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        await until(lambda: bench.rows(waiting) == [(1,)])
        gate.commit()
    await filling
    await bench.remove(lost)
    assert {hit.file_seq for hit in await bench.check_same()} == set(kept)
    assert bench.rows("SELECT count(*) FROM passage_vectors") == [(40,)]


# ---- how it goes ---------------------------------------------------------------------------------------------------------------------


async def test_rows_and_index_go_with_their_store(bench: Bench) -> None:
    await bench.add_many(3)
    await bench.index.maintain()
    await bench.db.write([delete_store(object_id=SCOPE.vector_store_id)])
    assert bench.rows("SELECT count(*) FROM passage_vectors") == [(0,)]
    assert await bench.index.search(SCOPE, bench.query()) == []
    await bench.index.maintain()
    assert bench.indexes() == []


async def test_a_store_that_was_emptied_may_get_vectors_of_another_length(bench: Bench) -> None:
    for file_seq in await bench.add_many(3):
        await bench.index.maintain()
        await bench.remove(file_seq)
    bench.dimension = 24
    bench.__post_init__()
    await bench.add_many(3)
    await bench.index.maintain()
    assert bench.rows("SELECT dimension, is_ready FROM indexed_stores") == [(24, True)]
    assert await bench.recall(5) == 1.0


# ---- a server that cannot ------------------------------------------------------------------------------------------------------------


async def test_without_the_extension_everything_is_exact(postgres: PostgresServer) -> None:
    """And with it, once somebody who may has installed it, at the next start."""
    postgres.execute("DROP ROLE IF EXISTS plain")
    postgres.execute("CREATE ROLE plain LOGIN")
    postgres.execute("CREATE DATABASE of_plain OWNER plain")
    url = postgres.url("of_plain").replace("postgres@", "plain@")
    migrate_postgres(url)
    bench = await opened(postgres, url)
    assert "no extension `vector`" in await bench.index.check()
    await bench.add_many(3)
    await bench.index.maintain()
    assert await bench.recall(3) == 1.0
    page = (Path(__file__).parents[2] / "docs" / "howto" / "scale-out.md").read_text(encoding="utf-8")
    [statement] = re.findall(r"^psql --dbname=mini_assistant --command='(.+)'$", page, re.MULTILINE)
    postgres.execute(statement, "of_plain")
    await bench.index.close()
    await bench.index.open()
    await bench.index.maintain()
    assert (await bench.index.check()).startswith("pgvector ")
    assert bench.is_ready()
    assert await bench.recall(3) == 1.0
    await closed(bench)
    postgres.drop_database("of_plain")
    postgres.execute("DROP ROLE plain")


async def test_a_server_that_was_killed_is_used_again() -> None:
    with running_postgres() as server:
        url = server.url()
        migrate_postgres(url)
        bench = await opened(server, url)
        file_seqs = await bench.add_many(3)
        await bench.index.maintain()
        server.kill()
        server.start()
        assert {hit.file_seq for hit in await bench.check_same()} == set(file_seqs)
        await bench.index.maintain()
        await closed(bench)


async def test_an_address_that_nobody_answers_is_told_without_its_password(postgres_url: str) -> None:
    db = PostgresDatabase(postgres_url, connections_max=1, wait_seconds=1)
    index = PgvectorIndex(
        db, "postgresql://me:secret@127.0.0.1:1/rows", exact_passages_max=0, cache_bytes_max=CACHE_BYTES_MAX, wait_seconds=0.3
    )
    with pytest.raises(StoreUnavailable) as refused:
        await index.open()
    assert "secret" not in refused.value.message
    await index.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await index._connections.read("SELECT 1")
