"""A search of a large store: the best passages by words are looked up here, the nearest in PostgreSQL, and both are scored alike.

Pure arithmetic on a snapshot of the words. Scores are those of the exact index; only which passages are scored is a choice.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mini_assistant.vector_stores.indexes.base import IndexQuery
from mini_assistant.vector_stores.indexes.fusion import Places, Scores, best_of, fused_ranks, score_of_rank
from mini_assistant.vector_stores.indexes.products import fill_products
from mini_assistant.vector_stores.indexes.scan import Found, found_at, text_scores
from mini_assistant.vector_stores.indexes.snapshot import Snapshot

# Passages that each side brings in: for the default score, where the sum of both decides, and for ranks, which reach further down.
_DEPTH = 200
_DEPTH_FOR_RANKS = 1000
_DEPTH_PER_RESULT = 2
# A graph that has to look past too many others, or for too many, is slower than a comparison with all that are allowed. The former it
# does the longer, the smaller their share is; so the edge grows with the root of the store.
_SCANNED_PASSAGES_MAX = 5_000
_SCANNED_SQUARE_PER_PASSAGE = 4_000
_GRAPH_DEPTH_MAX = 2_000
# Passages that are looked up in a second round.
_MISSED_MAX = 4_000
# Passages all over a store, by which the ranks of those are estimated that are not among the nearest.
_SAMPLE = 500


@dataclass(frozen=True, slots=True)
class Recall:
    """What is known before PostgreSQL is asked.

    depth: how many passages are wanted of it. is_scanned: whether all that are allowed are compared there. is_allowed: by segment of the
    snapshot. text: the scores by words of all places; None when no word is anywhere. asked: places that are wanted whatever their
    vectors are: the best by words and, when ranks are fused, a sample. filled: numbers of the allowed segments whose vectors are in
    PostgreSQL, and filled_count their passages; unfilled: where in the snapshot the allowed segments are whose vectors are not.
    """

    snapshot: Snapshot
    query: IndexQuery
    depth: int
    is_scanned: bool
    is_allowed: NDArray[np.bool_]
    text: Scores | None
    asked: Places
    sample: Places
    filled: NDArray[np.int64]
    filled_count: int
    unfilled: NDArray[np.int64]

    def keys_of(self, places: Places) -> tuple[list[int], list[int]]:
        """Numbers of segments, and places within them."""
        which = np.searchsorted(self.snapshot.starts, places, side="right") - 1
        return self.snapshot.segments[which, 0].tolist(), (places - self.snapshot.starts[which]).tolist()


class Gathered(NamedTuple):
    """Passages whose vectors were looked at: ascending places, and their cosines, those below 0 as 0."""

    places: Places
    dense: Scores


class Unfilled(NamedTuple):
    """A segment whose vectors are not in PostgreSQL yet."""

    seq: int
    vectors: bytes


def recall_of(snapshot: Snapshot, query: IndexQuery, filled_seq: int) -> Recall:
    """Look up the words. filled_seq: the last segment whose vectors are in PostgreSQL. Thread-safe."""
    segments = snapshot.segments
    is_allowed = np.ones(len(segments), np.bool_) if snapshot.is_alive is None else snapshot.is_alive.copy()
    if query.file_seqs is not None:
        is_allowed &= np.isin(segments[:, 1], np.fromiter(query.file_seqs, np.int64, len(query.file_seqs)))
    is_filled = is_allowed & (segments[:, 0] <= filled_seq)
    filled_count = int(segments[is_filled, 3].sum())
    # With one weight alone its ranking is the answer.
    is_fused = bool(query.embedding_weight and query.text_weight)
    depth = max(_DEPTH_FOR_RANKS if is_fused else _DEPTH, _DEPTH_PER_RESULT * query.limit)
    is_few = filled_count <= _SCANNED_PASSAGES_MAX
    if is_fused and is_few:
        depth = max(depth, filled_count)  # then all ranks are true
    is_scanned = is_few or filled_count**2 <= _SCANNED_SQUARE_PER_PASSAGE * snapshot.passage_count or depth > _GRAPH_DEPTH_MAX
    text = text_scores(snapshot, query.text)
    sample = _sample(snapshot, is_filled) if is_fused else np.empty(0, np.int64)
    return Recall(
        snapshot,
        query,
        depth,
        is_scanned,
        is_allowed,
        text,
        np.union1d(_best_by_text(snapshot, text, is_allowed, depth), sample),
        sample,
        segments[is_filled, 0],
        filled_count,
        np.flatnonzero(is_allowed & ~is_filled),
    )


def _best_by_text(snapshot: Snapshot, text: Scores | None, is_allowed: NDArray[np.bool_], depth: int) -> Places:
    if text is None:
        return np.empty(0, np.int64)
    return _best(text, _matching(snapshot, text, is_allowed), depth)


def _best(scores: Scores, places: Places, limit: int) -> Places:
    """The best of these places by their scores, ascending; of the same score the first."""
    best = places[best_of(scores[places], limit)]
    return best if len(best) <= limit else np.sort(best[np.argsort(-scores[best], kind="stable")[:limit]])


def _matching(snapshot: Snapshot, text: Scores, is_allowed: NDArray[np.bool_]) -> Places:
    is_matching = text > 0
    is_matching &= np.repeat(is_allowed, snapshot.segments[:, 3])
    return np.flatnonzero(is_matching)


def _sample(snapshot: Snapshot, is_filled: NDArray[np.bool_]) -> Places:
    places = np.flatnonzero(np.repeat(is_filled, snapshot.segments[:, 3]))
    return places[:: max(1, len(places) // _SAMPLE)]


def gather(recall: Recall, rows: Iterable[tuple[int, int, float]], unfilled: Iterable[Unfilled]) -> Gathered:
    """Bring together what was read. rows: segment, place in it, and product with the query, any of them more than once.

    What is not in the snapshot came or went meanwhile, and is left out. Thread-safe.
    """
    return _joined([_gathered_rows(recall, list(rows)), *(_gathered_segment(recall, segment) for segment in unfilled)])


def _joined(parts: list[Gathered]) -> Gathered:
    places, firsts = np.unique(np.concatenate([part.places for part in parts]), return_index=True)
    return Gathered(places, np.clip(np.concatenate([part.dense for part in parts])[firsts], 0, 1))


def missed_places(recall: Recall, gathered: Gathered) -> Places:
    """Places that may be among the best by the default score, though neither their words nor their vectors alone brought them in.

    Their vectors are no nearer than the last of the nearest; so their words have to make up for it.
    """
    if recall.text is None or recall.query.embedding_weight is not None or recall.filled_count <= recall.depth:
        return np.empty(0, np.int64)
    scores = _mean(recall, gathered)
    worst = float(np.partition(scores, -recall.query.limit)[-recall.query.limit]) if len(scores) > recall.query.limit else 0.0
    nearness = float(np.partition(gathered.dense, -recall.depth)[-recall.depth]) if len(gathered.dense) > recall.depth else 0.0
    matching = _matching(recall.snapshot, recall.text, recall.is_allowed)
    better = matching[recall.text[matching] > 2 * worst - nearness]
    return _best(recall.text, np.setdiff1d(better, gathered.places, assume_unique=True), _MISSED_MAX)


def found_by(recall: Recall, parts: list[Gathered]) -> list[Found]:
    """The best of all that was gathered. Thread-safe."""
    gathered, query = _joined(parts), recall.query
    if query.embedding_weight is not None and query.text_weight is not None:
        scores = _fused(recall, gathered, query.embedding_weight, query.text_weight)
    else:
        scores = _mean(recall, gathered)
    return found_at(recall.snapshot, scores, gathered.places, query.limit)


def _mean(recall: Recall, gathered: Gathered) -> Scores:
    scores = gathered.dense * np.float32(0.5)
    if recall.text is not None:
        scores += recall.text[gathered.places] * np.float32(0.5)
    return scores


def _fused(recall: Recall, gathered: Gathered, embedding_weight: float, text_weight: float) -> Scores:
    """As `fused_ranks` has it for the whole store. Ranks by words are true; those by vector are estimated beyond the nearest."""
    total = embedding_weight + text_weight
    scores = np.zeros(len(gathered.places), np.float32)
    if total <= 0:
        return scores
    if recall.text is not None:
        matching = _matching(recall.snapshot, recall.text, recall.is_allowed)
        by_text = np.zeros(len(recall.text), np.float32)
        by_text[matching] = fused_ranks(recall.text[matching], None, 1, 0)
        scores += by_text[gathered.places] * np.float32(text_weight / total)
    scores += _by_vector(recall, gathered) * np.float32(embedding_weight / total)
    return scores


def _by_vector(recall: Recall, gathered: Gathered) -> Scores:
    dense = gathered.dense
    scores = fused_ranks(dense, None, 1, 0)
    if recall.filled_count <= recall.depth or len(dense) <= recall.depth:
        return scores
    order = np.argsort(-dense, kind="stable")
    beyond = order[recall.depth :]
    sample = np.sort(dense[np.isin(gathered.places, recall.sample)])
    share = 1 - np.searchsorted(sample, dense[beyond], side="right") / max(1, len(sample))
    ranks = np.maximum(share * recall.filled_count, np.arange(recall.depth + 1, len(order) + 1))
    scores[beyond] = [score_of_rank(rank) for rank in ranks.astype(np.int64).tolist()]
    return scores


def _gathered_rows(recall: Recall, rows: list[tuple[int, int, float]]) -> Gathered:
    if not rows:
        return Gathered(np.empty(0, np.int64), np.empty(0, np.float32))
    segments = recall.snapshot.segments
    seqs, offsets, products = zip(*rows, strict=True)
    wanted = np.array(seqs, np.int64)
    which = np.minimum(np.searchsorted(segments[:, 0], wanted), len(segments) - 1)
    is_known = (segments[which, 0] == wanted) & recall.is_allowed[which]
    places = recall.snapshot.starts[which] + np.array(offsets, np.int64)
    return Gathered(places[is_known], np.array(products, np.float32)[is_known])


def _gathered_segment(recall: Recall, segment: Unfilled) -> Gathered:
    """Of a segment that is allowed and in the snapshot."""
    which = int(np.searchsorted(recall.snapshot.segments[:, 0], segment.seq))
    count = int(recall.snapshot.segments[which, 3])
    products = np.empty((1, count), np.float32)
    vectors = np.frombuffer(segment.vectors, "<f2").astype(np.float16, copy=False).reshape(count, -1)
    fill_products(products, recall.query.vector.reshape(1, -1).astype(np.float16), vectors)
    return Gathered(recall.snapshot.starts[which] + np.arange(count), products[0])
