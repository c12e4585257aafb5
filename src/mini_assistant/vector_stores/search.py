"""Searches vector stores: queries -> vectors -> passages of each store -> files whose summary fits -> re-ranking -> results.

Called by the search route and by the file_search tool. Never writes.
"""

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa

from mini_assistant.db.base import Query
from mini_assistant.db.tables import files, summary_vectors, vector_store_files, vector_stores
from mini_assistant.errors import InvalidRequest
from mini_assistant.metrics import SEARCH_SECONDS
from mini_assistant.models.embeddings.base import Vectors
from mini_assistant.models.rerank.base import RerankFailed
from mini_assistant.services import Services
from mini_assistant.vector_stores.indexes.base import Hit, IndexQuery, Passage, StoreScope
from mini_assistant.vector_stores.schema import Filter, VectorStoreFile
from mini_assistant.vector_stores.store import matching_file_seqs, store_expired
from mini_assistant.vector_stores.summaries import words_of

log = logging.getLogger("mini_assistant.search")

# What a file's summary can add to the score of its passages at most. It settles what is close: the gap between neighbouring good
# passages is of this size, while that between a good and a poor one is several times as large.
_SUMMARY_BOOST_MAX = 0.08
# Passages are fetched beyond the limit, so that the summaries and the re-ranker have something to lift.
_CANDIDATES_BEYOND = 10
_CANDIDATES_PER_RESULT = 2
_RERANKED_MAX = 50


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search.

    limit: the most results of all stores together. filter: on attributes of files, None for all. score_threshold: results below it are
    left out. ranker: `none` leaves the re-ranker out. embedding_weight, text_weight: both or neither, as in `IndexQuery`.
    """

    limit: int = 10
    filter: Filter | None = None
    score_threshold: float = 0.0
    ranker: str = "auto"
    embedding_weight: float | None = None
    text_weight: float | None = None


class SearchResult(NamedTuple):
    """A passage that was found. score: 0..1."""

    vector_store_id: str
    file_id: str
    filename: str
    score: float
    attributes: dict[str, str | bool | int | float]
    passage: Passage


class _Candidate(NamedTuple):
    """A result and its place among those with the same score: that of its store, its file and its passage."""

    result: SearchResult
    place: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Search:
    """What is asked: the queries, and a row of `vectors` for each."""

    services: Services
    queries: Sequence[str]
    vectors: Vectors
    options: SearchOptions


_select_store = Query(
    sa.select(vector_stores.c.expires_at, vector_stores.c.embedder).where(
        vector_stores.c.id == sa.bindparam("vector_store_id"), vector_stores.c.project_id == sa.bindparam("project_id")
    )
)
_select_found_file = Query(
    sa.select(files.c.filename, vector_store_files.c.body, vector_store_files.c.summary, summary_vectors.c.vector)
    .select_from(vector_store_files)
    .join(files, files.c.id == vector_store_files.c.id)
    .outerjoin(summary_vectors, summary_vectors.c.file_seq == vector_store_files.c.seq)
    .where(vector_store_files.c.seq == sa.bindparam("file_seq"), vector_store_files.c.project_id == sa.bindparam("project_id"))
)
_decode_file = msgspec.json.Decoder(VectorStoreFile).decode


async def search_stores(
    services: Services, project_id: str, vector_store_ids: Sequence[str], queries: Sequence[str], options: SearchOptions
) -> list[SearchResult]:
    """The best passages for any of the queries, the best first.

    Passages of several stores are put together as they are: a file that is in two of them is found twice. A store that does not exist
    has no passages. Raises InvalidRequest for a store that has expired or was indexed by another embedder, EmbeddingFailed, and
    StoreUnavailable.
    """
    with SEARCH_SECONDS.time():
        return await _search_stores(services, project_id, vector_store_ids, queries, options)


async def _search_stores(
    services: Services, project_id: str, vector_store_ids: Sequence[str], queries: Sequence[str], options: SearchOptions
) -> list[SearchResult]:
    scopes = [StoreScope(project_id, vector_store_id) for vector_store_id in vector_store_ids]
    is_indexed = await asyncio.gather(*[_check_store(services, scope) for scope in scopes])
    if not any(is_indexed) or not queries:
        return []
    search = _Search(services, queries, await services.embedder.embed(queries, "query"), options)
    found = await asyncio.gather(*[_search_store(search, place, scope) for place, scope in enumerate(scopes) if is_indexed[place]])
    candidates = _in_order(candidate for of_store in found for candidate in of_store)
    results = await _reranked(search, [candidate.result for candidate in candidates])
    return [result for result in results if result.score >= options.score_threshold][: options.limit]


async def _check_store(services: Services, scope: StoreScope) -> bool:
    """Whether a store has anything to search. Raises InvalidRequest when it must not be searched."""
    rows = await services.db.read(_select_store(vector_store_id=scope.vector_store_id, project_id=scope.project_id))
    if not rows:
        return False
    expires_at, embedder = rows[0]
    if expires_at is not None and expires_at <= services.now():
        raise store_expired(scope.vector_store_id)
    if embedder is not None and embedder != services.embedder.id:
        raise InvalidRequest(
            f"Vector store {scope.vector_store_id} was indexed with '{embedder}', this server embeds with '{services.embedder.id}'. "
            "Add its files to a new vector store."
        )
    return embedder is not None


async def _search_store(search: _Search, place: int, scope: StoreScope) -> list[_Candidate]:
    """Passages of one store by their score, with what their files' summaries add."""
    hits = await _hits(search, scope)
    seqs = list({hit.file_seq for hit in hits})
    found = await asyncio.gather(*[_found_file_or_none(search, scope, seq) for seq in seqs])
    file_of_seq = dict(zip(seqs, found, strict=True))
    candidates: list[_Candidate] = []
    for hit in hits:
        file = file_of_seq[hit.file_seq]
        if file is not None:  # else it was detached a moment ago
            score = min(1.0, max(0.0, hit.score + file.boost))
            result = SearchResult(scope.vector_store_id, file.file_id, file.filename, score, file.attributes, hit.passage)
            candidates.append(_Candidate(result, (place, hit.file_seq, hit.ordinal)))
    return candidates


async def _hits(search: _Search, scope: StoreScope) -> list[Hit]:
    """What any of the queries finds, each passage once with its best score."""
    options = search.options
    file_seqs = await matching_file_seqs(search.services, scope, options.filter)
    if file_seqs is not None and not file_seqs:
        return []
    limit = options.limit * _CANDIDATES_PER_RESULT + _CANDIDATES_BEYOND
    searches = [
        search.services.index.search(
            scope,
            IndexQuery(
                text=query,
                vector=search.vectors[place : place + 1],
                limit=max(limit, _RERANKED_MAX) if _is_reranking(search) else limit,
                file_seqs=file_seqs,
                embedding_weight=options.embedding_weight,
                text_weight=options.text_weight,
            ),
        )
        for place, query in enumerate(search.queries)
    ]
    best: dict[tuple[int, int], Hit] = {}
    for hits in await asyncio.gather(*searches):
        for hit in hits:
            known = best.get((hit.file_seq, hit.ordinal))
            if known is None or known.score < hit.score:
                best[hit.file_seq, hit.ordinal] = hit
    return list(best.values())


class _FoundFile(NamedTuple):
    """A file with a passage that was found. boost: what its summary adds to the score of its passages."""

    file_id: str
    filename: str
    attributes: dict[str, str | bool | int | float]
    boost: float


async def _found_file_or_none(search: _Search, scope: StoreScope, seq: int) -> _FoundFile | None:
    rows = await search.services.db.read(_select_found_file(file_seq=seq, project_id=scope.project_id))
    if not rows:
        return None
    filename, body, summary, vector = rows[0]
    file = _decode_file(body)
    # Weights given by the caller say exactly how to rank.
    is_boosted = search.services.settings.file_summaries != "off" and search.options.embedding_weight is None
    boost = _boost(search, f"{filename} {summary}", vector) if is_boosted and summary is not None else 0.0
    return _FoundFile(file.id, filename, file.attributes, boost)


def _boost(search: _Search, description: str, vector: bytes | None) -> float:
    """How well a file fits the best fitting query: by meaning, and by the share of the query's words that describe it.

    It depends on the query and this file alone, as scores do; so a threshold keeps its meaning.
    """
    words = words_of(description)
    nearness = search.vectors @ np.frombuffer(vector, "<f2").astype(np.float32) if vector else np.zeros(len(search.queries))
    fits: list[float] = []
    for query, near in zip(search.queries, nearness, strict=True):
        asked = words_of(query)
        shared = len(asked & words) / len(asked) if asked else 0.0
        fits.append((max(0.0, float(near)) + shared) / 2)
    return _SUMMARY_BOOST_MAX * max(fits)


def _in_order(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    return sorted(candidates, key=lambda candidate: (-candidate.result.score, candidate.place))


def _is_reranking(search: _Search) -> bool:
    return search.services.reranker is not None and search.options.ranker != "none"


async def _reranked(search: _Search, results: list[SearchResult]) -> list[SearchResult]:
    """The best results in the order of the re-ranker, with its scores; as they are when there is none or it does not answer."""
    reranker = search.services.reranker
    if reranker is None or not _is_reranking(search) or not results:
        return results
    results = results[: max(_RERANKED_MAX, search.options.limit)]
    query = "\n".join(search.queries)
    try:
        async with asyncio.timeout(search.services.settings.rerank_timeout_seconds):
            scores = await reranker.scores(query, [result.passage.text for result in results])
    except (RerankFailed, TimeoutError) as exc:
        reason = exc.message if isinstance(exc, RerankFailed) else "it took too long"
        log.warning("Passages keep the order of the index, because the re-ranker did not answer: %s", reason)
        return results
    rescored = [result._replace(score=min(1.0, max(0.0, score))) for result, score in zip(results, scores, strict=True)]
    return sorted(rescored, key=lambda result: -result.score)  # stable: equal scores keep the order of the index


_auxiliary = "(?:is|are|was|were|does|do|did|has|have|had|can|could|should|would|will)"
# What a question begins with before it comes to the point. Words that may be the point (`list`, `who`) go only with what makes a
# question of them.
_fillers = re.compile(
    r"^(?:(?:please|hey|hello|hi|okay)\b[\s,]*"
    r"|(?:can|could|would|will) (?:you|someone|anyone)(?: please)?\s+"
    r"|(?:i (?:want|need|would like|'d like)|i'd like)(?: you)? to (?:know|find(?: out)?|see|learn|understand)\s+"
    r"|(?:tell|show|give|find|list)(?: (?:to )?(?:me|us))(?: about)?\s+"
    r"|(?:explain|describe|search for|look up|find out)(?: (?:to )?(?:me|us))?\s+"
    rf"|(?:what|who|where|when|which|how|why)(?:'s|'re| {_auxiliary})(?: (?:i|we|you|one|there))?\s+"
    rf"|how to\s+|(?:what|which) (?:kind|type|sort)s? of\s+|{_auxiliary} (?:there|it|they|we|you|i)\s+"
    r"|(?:the|a|an|about|if|whether)\s+)",
    re.IGNORECASE,
)
_marks = re.compile(r"[?!¿¡\u3002\uff01\uff1f\"“”„«»]+|[.,;:]+(?=\s|$)")
_spaces = re.compile(r"\s+")


def rewritten_queries(queries: Sequence[str]) -> list[str]:
    """Queries as they are searched for when rewriting is asked for: without the words that only make a question of them.

    Always the same for the same query; one of which nothing would be left stays as it is.
    """
    return [_rewritten(query) for query in queries]


def _rewritten(query: str) -> str:
    text = _spaces.sub(" ", _marks.sub(" ", query)).strip()
    while (shorter := _fillers.sub("", text, count=1)) != text:
        text = shorter
    return text or query.strip()
