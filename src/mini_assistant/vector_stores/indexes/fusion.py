"""How scores of passages come about: the two parts, their sum or fusion, and the best of them. Pure arithmetic on arrays."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mini_assistant.vector_stores.indexes.postings import Postings

K1 = 1.2
B = 0.75
_RANK_OFFSET = 60

Scores = NDArray[np.float32]
Places = NDArray[np.int64]
"""Numbers of passages within a snapshot."""


class TermMatch(NamedTuple):
    """Where a term of the query is in one part of the index. passages: with `frequencies`, in parallel."""

    passages: NDArray[np.uint16]
    frequencies: NDArray[np.uint8]


def matches_of(postings: Postings, hashes: NDArray[np.uint64]) -> list[TermMatch | None]:
    """For each term of a query, in its order, where it is; None for nowhere."""
    places = np.searchsorted(postings.terms, hashes)
    found: list[TermMatch | None] = []
    for place, wanted in zip(places.tolist(), hashes.tolist(), strict=True):
        if place == len(postings.terms) or int(postings.terms[place]) != wanted:
            found.append(None)
            continue
        postings_of_term = slice(int(postings.starts[place]), int(postings.starts[place + 1]))
        found.append(TermMatch(postings.passages[postings_of_term], postings.frequencies[postings_of_term]))
    return found


def idf(passage_count: int, matching_count: int) -> float:
    """What a term weighs that is in so many of the passages. Positive, and the largest for a term that is nowhere."""
    return float(np.log1p((passage_count - matching_count + 0.5) / (matching_count + 0.5)))


def norms_of(lengths: NDArray[np.uint16], mean_length: float) -> Scores:
    """The part of BM25's denominator that depends on the passage: its length against the mean of the store."""
    scale = K1 * B / mean_length if mean_length > 0 else 0.0
    return np.float32(K1 * (1 - B)) + lengths * np.float32(scale)


def add_term(scores: Scores, match: TermMatch, norms: Scores, weight: float) -> None:
    """Add what a term gives to each passage that it is in: less than `weight`, whatever its frequency is."""
    passages = match.passages.astype(np.intp)  # once, for two look-ups
    frequencies = match.frequencies.astype(np.float32)
    frequencies /= frequencies + norms[passages]
    frequencies *= np.float32(weight)
    scores[passages] += frequencies


def fused_ranks(dense: Scores, text: Scores | None, embedding_weight: float, text_weight: float) -> Scores:
    """Weighted reciprocal rank fusion: the sum of weight / (60 + rank), as a share of what the first of both ranks would get.

    A passage without any word of the query has no rank by text. Passages of the same score keep their order.
    """
    scores = np.zeros(len(dense), np.float32)
    total = embedding_weight + text_weight
    if total <= 0:
        return scores
    everything = np.arange(len(dense))
    _add_ranks(scores, dense, everything, embedding_weight / total)
    if text is not None:
        _add_ranks(scores, text, np.flatnonzero(text > 0), text_weight / total)
    return scores


def _add_ranks(scores: Scores, of_one: Scores, ranked: Places, weight: float) -> None:
    if weight <= 0:
        return
    order = ranked[np.argsort(-of_one[ranked], kind="stable")]
    ranks = np.arange(1, len(order) + 1, dtype=np.float32)
    scores[order] += np.float32(weight * (_RANK_OFFSET + 1)) / (_RANK_OFFSET + ranks)


def score_of_rank(rank: int) -> float:
    """What `fused_ranks` gives when only one of the two has a weight. rank: from 1."""
    return (_RANK_OFFSET + 1) / (_RANK_OFFSET + rank)


def best_of(scores: Scores, limit: int, *, margin: float = 0.0) -> Places:
    """Places of the `limit` best scores, and of all that are not more than `margin` below the last of them; ascending places."""
    if limit >= len(scores):
        return np.arange(len(scores))
    edge = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    return np.flatnonzero(scores >= edge - np.float32(margin))
