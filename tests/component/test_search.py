"""Searching vector stores: what is found in which order, across stores, queries and projects, and what can go wrong."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from mini_assistant.app import open_services
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import Query
from mini_assistant.db.tables import vector_store_files, vector_stores
from mini_assistant.errors import InvalidRequest
from mini_assistant.models.rerank.base import RerankFailed
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.ingest import ingest_file
from mini_assistant.vector_stores.ingest_tasks import claim_file_or_none
from mini_assistant.vector_stores.search import SearchOptions, SearchResult, rewritten_queries, search_stores
from tests.vector_store_rows import PROJECT, attach, file_row, insert_file, insert_store

WHALES = "Whales are large mammals that live in the sea. Whales breathe air and sing songs."
BREAD = "Bread is baked from flour, water and yeast. The dough of the bread must rise before it is baked."
PUMPS = "A heat pump moves warmth from the ground into the house. Its compressor needs electric power."

_detach = Query(sa.delete(vector_store_files).where(vector_store_files.c.seq == sa.bindparam("row")))
_set_embedder = Query(sa.update(vector_stores).where(vector_stores.c.id == sa.bindparam("store")).values(embedder=sa.bindparam("new")))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, openai_base_url="http://127.0.0.1:9/v1")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time())


@pytest.fixture
async def services(settings: Settings, clock: ManualClock) -> AsyncIterator[Services]:
    async with open_services(settings) as opened:
        yield dataclasses.replace(opened, clock=clock)


async def add(services: Services, store_id: str, text: str, filename: str = "notes.txt", **chunks: int) -> int:
    """Ingest a text into a store; gives its row."""
    seq = await attach(services, store_id, await insert_file(services, text, filename), **chunks)
    record = await claim_file_or_none(services, seq, "worker_of_test")
    assert record is not None
    await ingest_file(services, record)
    row = await file_row(services, seq)
    assert row is not None
    assert row["status"] == "completed"
    return seq


@pytest.fixture
async def store(services: Services) -> str:
    """A store with a file on whales, one on bread and one on heat pumps."""
    store_id = await insert_store(services)
    for text, filename in ((WHALES, "whales.txt"), (BREAD, "bread.txt"), (PUMPS, "pumps.txt")):
        await add(services, store_id, text, filename)
    return store_id


async def search(
    services: Services, stores: str | Sequence[str], *queries: str, project_id: str = PROJECT, **options: Any
) -> list[SearchResult]:
    ids = [stores] if isinstance(stores, str) else stores
    return await search_stores(services, project_id, ids, queries, SearchOptions(**options))


def names(results: Sequence[SearchResult]) -> list[str]:
    return [result.filename for result in results]


# --- what is found --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "filename"),
    [("What do whales breathe?", "whales.txt"), ("baking with yeast", "bread.txt"), ("warming a house by electricity", "pumps.txt")],
)
async def test_the_right_file_comes_first(services: Services, store: str, query: str, filename: str) -> None:
    results = await search(services, store, query)

    assert names(results)[0] == filename
    assert [result.score for result in results] == sorted((result.score for result in results), reverse=True)
    assert all(0 <= result.score <= 1 for result in results)
    assert len(results) == 3  # boosting cuts nothing


async def test_a_result_says_where_it_is_from(services: Services, store: str) -> None:
    [result] = await search(services, store, "whales", limit=1)

    assert result.vector_store_id == store
    assert result.file_id.startswith("file")
    assert (result.passage.text, result.passage.start, result.passage.end, result.passage.page) == (WHALES, 0, len(WHALES), None)
    assert result.attributes == {}


async def test_several_queries_find_what_any_of_them_would_and_nothing_twice(services: Services, store: str) -> None:
    results = await search(services, store, "whales in the sea", "baking bread", limit=10)

    assert set(names(results[:2])) == {"whales.txt", "bread.txt"}
    assert len(results) == 3
    [alone] = [result for result in await search(services, store, "baking bread") if result.filename == "bread.txt"]
    [together] = [result for result in results if result.filename == "bread.txt"]
    assert together.score == pytest.approx(alone.score)


async def test_results_of_several_stores_are_put_together_as_they_are(services: Services, store: str) -> None:
    other = await insert_store(services)
    await add(services, other, WHALES, "whales.txt")
    results = await search(services, [store, other], "whales", limit=2)

    assert names(results) == ["whales.txt", "whales.txt"]
    assert {result.vector_store_id for result in results} == {store, other}


async def test_the_limit_holds_for_all_stores_together(services: Services, store: str) -> None:
    other = await insert_store(services)
    await add(services, other, WHALES, "whales.txt", chunk_tokens_max=100, overlap_tokens=0)

    assert len(await search(services, [store, other], "whales", limit=3)) == 3
    assert len(await search(services, [store, other], "whales", limit=1)) == 1


async def test_results_below_the_threshold_are_left_out(services: Services, store: str) -> None:
    results = await search(services, store, "whales in the sea")
    between = (results[0].score + results[1].score) / 2

    assert names(await search(services, store, "whales in the sea", score_threshold=between)) == ["whales.txt"]
    assert await search(services, store, "whales in the sea", score_threshold=1.0) == []


async def test_weights_of_the_caller_decide_the_ranking(services: Services, store: str) -> None:
    results = await search(services, store, "compressor", embedding_weight=0.0, text_weight=1.0)

    assert names(results)[0] == "pumps.txt"


async def test_a_file_that_was_detached_is_not_found(services: Services) -> None:
    store_id = await insert_store(services)
    seq = await add(services, store_id, WHALES)
    assert len(await search(services, store_id, "whales")) == 1
    await services.db.write([*services.index.remove_file(StoreScope(PROJECT, store_id), seq), _detach(row=seq)])
    assert await search(services, store_id, "whales") == []


@pytest.mark.parametrize("queries", [(), ("",), ("   ",), ("?!",)])
async def test_queries_that_say_nothing_find_nothing_wrong(services: Services, store: str, queries: tuple[str, ...]) -> None:
    assert all(0 <= result.score <= 1 for result in await search(services, store, *queries))


async def test_many_searches_at_a_time(services: Services, store: str) -> None:
    found = await asyncio.gather(*[search(services, store, query) for query in ["whales", "bread", "heat pump"] * 20])

    assert [names(results)[0] for results in found] == ["whales.txt", "bread.txt", "pumps.txt"] * 20


# --- whose stores, and in what state --------------------------------------------------------------------------------------------


async def test_another_project_finds_nothing(services: Services, store: str) -> None:
    assert await search(services, store, "whales", project_id="another") == []


async def test_stores_that_are_empty_or_unknown_have_nothing(services: Services, store: str) -> None:
    empty = await insert_store(services)

    assert await search(services, empty, "whales") == []
    assert await search(services, ["vs_unknown"], "whales") == []
    assert names(await search(services, [empty, "vs_unknown", store], "whales", limit=1)) == ["whales.txt"]


async def test_an_expired_store_is_named(services: Services, clock: ManualClock) -> None:
    store_id = await insert_store(services, expires_at=services.now() + 60)
    await add(services, store_id, WHALES)
    assert len(await search(services, store_id, "whales")) == 1
    clock.advance(61)

    with pytest.raises(InvalidRequest, match=f"{store_id} is expired"):
        await search(services, store_id, "whales")


async def test_a_store_of_another_embedder_is_refused_with_both_names(services: Services, store: str) -> None:
    await services.db.write([_set_embedder(store=store, new="openai:large")])

    with pytest.raises(InvalidRequest, match=f"'openai:large', this server embeds with '{services.embedder.id}'"):
        await search(services, store, "whales")


# --- summaries ------------------------------------------------------------------------------------------------------------------


async def test_of_two_equal_passages_that_of_the_file_which_is_about_it_comes_first(services: Services) -> None:
    store_id = await insert_store(services)
    aside = "The meeting is held in the small room on Monday morning at nine. "
    cooking = "Soup is cooked from carrots and onions. Salt and pepper go into the soup. Cook soup slowly, with carrots. " * 40
    gardens = "Roses grow in the garden. Water the roses of the garden each evening. Prune garden roses in spring. " * 40
    chunks = {"chunk_tokens_max": 100, "overlap_tokens": 0}
    for filename, subject in (("a.txt", cooking), ("b.txt", gardens)):
        await add(services, store_id, subject + "\n\n" + aside * 12, filename, **chunks)
    query = "When is the meeting about garden roses?"

    def meeting(results: Sequence[SearchResult]) -> dict[str, float]:
        return {result.filename: result.score for result in reversed(results) if result.passage.text.startswith(aside[:20])}

    quiet = dataclasses.replace(services, settings=dataclasses.replace(services.settings, file_summaries="off"))
    without, boosted = meeting(await search(quiet, store_id, query, limit=50)), meeting(await search(services, store_id, query, limit=50))

    assert without.keys() == boosted.keys() == {"a.txt", "b.txt"}
    assert boosted["b.txt"] - without["b.txt"] > boosted["a.txt"] - without["a.txt"] > -1e-9
    assert boosted["b.txt"] - without["b.txt"] <= 0.08 + 1e-9


async def test_scores_do_not_depend_on_what_else_is_found(services: Services, store: str) -> None:
    [before] = await search(services, store, "whales in the sea", limit=1)
    [again] = [result for result in await search(services, store, "whales in the sea", limit=3) if result.filename == "whales.txt"]

    assert before.score == again.score


# --- re-ranking -----------------------------------------------------------------------------------------------------------------


class BackwardsReranker:
    """Likes what the index likes least, unless it fails or hangs."""

    def __init__(self, failure: Exception | None = None, *, hangs: bool = False) -> None:
        self.failure = failure
        self.hangs = hangs
        self.asked: list[tuple[str, list[str]]] = []

    async def scores(self, query: str, passages: Sequence[str]) -> list[float]:
        self.asked.append((query, list(passages)))
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return [float(score) for score in np.linspace(0.1, 0.9, len(passages))]

    async def check(self) -> str:
        return "backwards"

    async def close(self) -> None:
        pass


async def test_a_reranker_has_the_last_word(services: Services, store: str) -> None:
    plain = await search(services, store, "whales")
    reranker = BackwardsReranker()
    results = await search(dataclasses.replace(services, reranker=reranker), store, "whales", limit=2)

    assert names(results) == list(reversed(names(plain)))[:2]
    assert [result.score for result in results] == pytest.approx([0.9, 0.5])
    assert reranker.asked == [("whales", [result.passage.text for result in plain])]


async def test_the_threshold_is_of_the_scores_that_are_shown(services: Services, store: str) -> None:
    reranked = dataclasses.replace(services, reranker=BackwardsReranker())

    assert [result.score for result in await search(reranked, store, "whales", score_threshold=0.7)] == pytest.approx([0.9])


async def test_a_search_can_do_without_the_reranker(services: Services, store: str) -> None:
    reranker = BackwardsReranker()
    results = await search(dataclasses.replace(services, reranker=reranker), store, "whales", ranker="none")

    assert reranker.asked == []
    assert names(results)[0] == "whales.txt"


@pytest.mark.parametrize("reranker", [BackwardsReranker(RerankFailed("It is down.")), BackwardsReranker(hangs=True)])
async def test_without_an_answer_of_the_reranker_the_order_of_the_index_stays(
    services: Services, store: str, reranker: BackwardsReranker, caplog: pytest.LogCaptureFixture
) -> None:
    plain = await search(services, store, "whales")
    settings = dataclasses.replace(services.settings, rerank_timeout_seconds=0.1)
    with caplog.at_level(logging.WARNING):
        results = await search(dataclasses.replace(services, reranker=reranker, settings=settings), store, "whales")

    assert results == plain
    assert "the re-ranker did not answer" in caplog.text


# --- rewriting ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "rewritten"),
    [
        ("What is the return policy for shoes?", "return policy for shoes"),
        ("Can you please tell me about the weather in Paris?", "weather in Paris"),
        ("How do I reset my password?!", "reset my password"),
        ("how to install", "install"),
        ("Why are there tides", "tides"),
        ("list comprehension in Python", "list comprehension in Python"),
        ("WHO guidelines", "WHO guidelines"),
        ("version 1.2.3 of C++", "version 1.2.3 of C++"),
        ("  many   spaces ", "many spaces"),
        ("what is the", "the"),
        ("?!", "?!"),
        ("", ""),
        ("人工智能是什么\uff1f", "人工智能是什么"),
    ],
)
def test_what_only_makes_a_question_is_left_out(query: str, rewritten: str) -> None:
    assert rewritten_queries([query]) == [rewritten]
