"""A search of a snapshot: all passages are scored by vector and by words, and the best of those that may be found are picked."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mini_assistant.vector_stores.indexes.analyzer import ANALYZERS, query_terms
from mini_assistant.vector_stores.indexes.base import IndexQuery
from mini_assistant.vector_stores.indexes.coarse import coarse_products
from mini_assistant.vector_stores.indexes.fusion import (
    Places,
    Scores,
    TermMatch,
    add_term,
    best_of,
    fused_ranks,
    idf,
    matches_of,
    score_of_rank,
)
from mini_assistant.vector_stores.indexes.postings import hashes_of
from mini_assistant.vector_stores.indexes.products import fill_products
from mini_assistant.vector_stores.indexes.snapshot import Part, Snapshot


class Found(NamedTuple):
    """A passage that a search found, by its key in the table `passages`."""

    file_seq: int
    ordinal: int
    score: float


def search_snapshot(snapshot: Snapshot, query: IndexQuery) -> list[Found]:
    """The best passages, the best first; of the same score the older file's first. Thread-safe."""
    if query.limit <= 0 or not snapshot.passage_count:
        return []
    places = _allowed_places(snapshot, query.file_seqs)
    if query.embedding_weight is None or query.text_weight is None:
        return _best_by_mean(snapshot, query, places)
    if query.text_weight == 0 and query.embedding_weight > 0:
        return _best_by_vector(snapshot, query, places)
    dense, text = _picked(_dense_scores(snapshot, query.vector), places), text_scores(snapshot, query.text)
    scores = fused_ranks(dense, None if text is None else _picked(text, places), query.embedding_weight, query.text_weight)
    chosen = best_of(scores, query.limit)
    return found_at(snapshot, scores[chosen], chosen if places is None else places[chosen], query.limit)


def _best_by_mean(snapshot: Snapshot, query: IndexQuery, places: Places | None) -> list[Found]:
    """By the default score."""
    rest = text_scores(snapshot, query.text)
    if rest is not None:
        rest *= np.float32(0.5)
    dense, error = _nearly_dense_scores(snapshot, query.vector)
    dense *= np.float32(0.5)
    if rest is not None:
        dense += rest
    chosen = _candidates(dense, places, query.limit, 0.5 * error)
    scores = dense[chosen]
    if error:
        scores = _dense_scores_of(snapshot, query.vector, chosen) * np.float32(0.5)
        if rest is not None:
            scores += rest[chosen]
    return found_at(snapshot, scores, chosen, query.limit)


def _best_by_vector(snapshot: Snapshot, query: IndexQuery, places: Places | None) -> list[Found]:
    """Fusion of one list: its order is the order of the list, and only the ranks of the best are asked for."""
    dense, error = _nearly_dense_scores(snapshot, query.vector)
    chosen = _candidates(dense, places, query.limit, error)
    scores = _dense_scores_of(snapshot, query.vector, chosen) if error else dense[chosen]
    found = found_at(snapshot, scores, chosen, query.limit)
    return [item._replace(score=score_of_rank(rank)) for rank, item in enumerate(found, start=1)]


def _candidates(scores: Scores, places: Places | None, limit: int, error: float) -> Places:
    """All places that may be among the best when each score is off by no more than `error`."""
    chosen = best_of(_picked(scores, places), limit, margin=2 * error)
    return chosen if places is None else places[chosen]


def _picked(scores: Scores, places: Places | None) -> Scores:
    return scores if places is None else scores[places]


def _allowed_places(snapshot: Snapshot, file_seqs: Collection[int] | None) -> Places | None:
    """Passages that may be found; None for all."""
    is_allowed = snapshot.is_alive
    if file_seqs is not None:
        wanted = np.fromiter(file_seqs, np.int64, len(file_seqs))
        is_wanted = np.isin(snapshot.segments[:, 1], wanted)
        is_allowed = is_wanted if is_allowed is None else is_wanted & is_allowed
    return None if is_allowed is None else np.flatnonzero(np.repeat(is_allowed, snapshot.segments[:, 3]))


def _dense_scores(snapshot: Snapshot, vector: NDArray[np.float32]) -> Scores:
    """Cosines of all passages, those below 0 as 0."""
    query = vector.reshape(1, -1).astype(np.float16)
    scores = np.empty(snapshot.place_count, np.float32)
    for part, start, end in _extents(snapshot):
        fill_products(scores[None, start:end], query, part.block.vectors)
    return np.clip(scores, 0, 1, out=scores)


def _nearly_dense_scores(snapshot: Snapshot, vector: NDArray[np.float32]) -> tuple[Scores, float]:
    """As `_dense_scores`, in less time, and how far each of them may be from its true value; 0 when all are true."""
    query = vector.reshape(1, -1).astype(np.float16)
    scores = np.empty(snapshot.place_count, np.float32)
    error = 0.0
    for part, start, end in _extents(snapshot):
        coarse, products = part.block.coarse, scores[None, start:end]
        if coarse is None:
            fill_products(products, query, part.block.vectors)
        else:
            error = max(error, coarse_products(coarse, query.astype(np.float32), products))
    return np.clip(scores, 0, 1, out=scores), error


def _dense_scores_of(snapshot: Snapshot, vector: NDArray[np.float32], places: Places) -> Scores:
    """The entries of `_dense_scores` at some places, which ascend."""
    query = vector.reshape(1, -1).astype(np.float16)
    scores = np.empty(len(places), np.float32)
    for part, start, end in _extents(snapshot):
        first, last = np.searchsorted(places, (start, end)).tolist()
        if first < last:
            fill_products(scores[None, first:last], query, part.block.vectors[places[first:last] - start])
    return np.clip(scores, 0, 1, out=scores)


def _extents(snapshot: Snapshot) -> Iterator[tuple[Part, int, int]]:
    """Each part with its first place and the one after its last."""
    start = 0
    for part in snapshot.parts:
        end = start + part.block.passage_count
        yield part, start, end
        start = end


def text_scores(snapshot: Snapshot, text: str) -> Scores | None:
    """BM25 of all passages as a share of the most that the query's terms could give; None when no term is anywhere."""
    scores = np.zeros(snapshot.place_count, np.float32)
    has_match = False
    for version in {part.block.analyzer for part in snapshot.parts}:
        analyze = ANALYZERS.get(version)
        hashes = hashes_of(query_terms(analyze(text))) if analyze is not None else hashes_of([])
        parts = [(part, start) for part, start, _ in _extents(snapshot) if part.block.analyzer == version]
        has_match |= _add_terms(scores, parts, hashes, snapshot.passage_count)
    return scores if has_match else None


def _add_terms(scores: Scores, parts: list[tuple[Part, int]], hashes: NDArray[np.uint64], passage_count: int) -> bool:
    """Add the shares of all terms to the scores of these parts, each of which begins at its own place; False when there are none."""
    matches = [matches_of(part.block.postings, hashes) for part, _ in parts]
    weights: list[float] = []
    for number in range(len(hashes)):
        matching = sum(_alive_matches(part, found[number]) for (part, _), found in zip(parts, matches, strict=True))
        weights.append(idf(passage_count, matching))
    weight_sum = sum(weights)
    has_match = False
    for (part, start), found in zip(parts, matches, strict=True):
        scores_of_part = scores[start : start + part.block.passage_count]
        for match, weight in zip(found, weights, strict=True):
            if match is not None:
                add_term(scores_of_part, match, part.norms, weight / weight_sum)
                has_match = True
    return has_match


def _alive_matches(part: Part, match: TermMatch | None) -> int:
    if match is None:
        return 0
    if part.is_alive_passage is None:
        return len(match.passages)
    return int(np.count_nonzero(part.is_alive_passage[match.passages]))


def found_at(snapshot: Snapshot, scores: Scores, places: Places, limit: int) -> list[Found]:
    """What is at these places, which have these scores: the best first, no more than `limit`, of the same score the older file's first."""
    file_seqs, ordinals = snapshot.located(places)
    order = np.lexsort((ordinals, file_seqs, -scores))[:limit]
    clipped = np.clip(scores[order], 0, 1)
    found = zip(file_seqs[order].tolist(), ordinals[order].tolist(), clipped.tolist(), strict=True)
    return [Found(file_seq, ordinal, score) for file_seq, ordinal, score in found]
