"""What a vector store looks like to a search: an immutable picture of its passages at one revision.

Passages lie in blocks: one large one for most of them, few small ones for what came later, and a mask over those that are gone.
Blocks never change, so the next picture of the same store shares them. Everything here is CPU work without the database; its long
steps are in numpy and simsimd, which let other threads go on meanwhile.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mini_assistant.vector_stores.indexes.coarse import Coarse, coarse_or_none
from mini_assistant.vector_stores.indexes.fusion import Places, Scores, norms_of
from mini_assistant.vector_stores.indexes.postings import POSTINGS_PASSAGES_MAX, Postings, keep_passages, merge_postings

# A block is rewritten when more of it is gone than this.
_DEAD_SHARE_MAX = 0.25
# A new block is merged into the one before it unless that one is larger by more than this.
_GROWTH = 2
# What the objects around the arrays take: the larger part of a store with a few passages.
_OBJECTS_BYTES = 4096

Vectors16 = NDArray[np.float16]
_Mask = NDArray[np.bool_]


class SegmentKey(NamedTuple):
    """A segment row without its blobs: `passage_count` passages of a file, from `first_ordinal` on."""

    seq: int
    file_seq: int
    first_ordinal: int
    passage_count: int


@dataclass(frozen=True, slots=True)
class Block:
    """Passages of some segments, one segment after another.

    segments: one row a segment, with the columns of `SegmentKey`. analyzer: the version that the postings were written with. coarse: the
    vectors once more in a short form, for large blocks.
    """

    segments: NDArray[np.int64]
    vectors: Vectors16
    postings: Postings
    analyzer: int
    coarse: Coarse | None

    @property
    def passage_count(self) -> int:
        return len(self.vectors)

    @property
    def size_bytes(self) -> int:
        coarse = 0 if self.coarse is None else self.coarse.matrix.nbytes
        return self.segments.nbytes + self.vectors.nbytes + coarse + self.postings.size_bytes


class Part(NamedTuple):
    """A block as one picture sees it.

    is_alive: by segment, None when all of them are. is_alive_passage: the same by passage. norms: see `norms_of`.
    """

    block: Block
    is_alive: _Mask | None
    is_alive_passage: _Mask | None
    norms: Scores

    @property
    def alive_count(self) -> int:
        return self.block.passage_count if self.is_alive_passage is None else int(np.count_nonzero(self.is_alive_passage))

    @property
    def size_bytes(self) -> int:
        masks = sum(mask.nbytes for mask in (self.is_alive, self.is_alive_passage) if mask is not None)
        return self.block.size_bytes + masks + self.norms.nbytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A vector store at a revision.

    segments: those of all parts, one after another, as in `Block`. starts: the place of the first passage of each of them. is_alive: as in
    `Part`, for all of them. place_count: passages of the parts; passage_count: those of them that are alive. dimension: 0 without passages.
    """

    revision: int
    parts: tuple[Part, ...]
    segments: NDArray[np.int64]
    starts: NDArray[np.int64]
    is_alive: _Mask | None
    place_count: int
    passage_count: int
    dimension: int

    @property
    def size_bytes(self) -> int:
        """Memory that the snapshot takes; blocks that it shares with another are counted for both."""
        masks = 0 if self.is_alive is None else self.is_alive.nbytes
        return _OBJECTS_BYTES + sum(part.size_bytes for part in self.parts) + self.segments.nbytes + self.starts.nbytes + masks

    def located(self, places: Places) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """File rows and ordinals of passages."""
        which = np.searchsorted(self.starts, places, side="right") - 1
        return self.segments[which, 1], self.segments[which, 2] + places - self.starts[which]


def block_of(key: SegmentKey, vectors: bytes, postings: Postings, analyzer: int) -> Block:
    """A block of one segment row. vectors: as `encode_vectors` made them."""
    matrix = np.frombuffer(vectors, "<f2").astype(np.float16, copy=False).reshape(key.passage_count, -1)
    return Block(np.array([key], np.int64), matrix, postings, analyzer, None)


def encode_vectors(vectors: NDArray[np.float32]) -> bytes:
    """Vectors as they are stored: half precision, little-endian, row by row."""
    return vectors.astype("<f2").tobytes()


def merge_blocks(blocks: Sequence[Block]) -> Block:
    """One block of several of the same analyzer, in their order; at most `POSTINGS_PASSAGES_MAX` passages."""
    if len(blocks) == 1:
        return blocks[0]
    vectors = np.concatenate([block.vectors for block in blocks])
    return Block(
        np.concatenate([block.segments for block in blocks]),
        vectors,
        merge_postings([block.postings for block in blocks]),
        blocks[0].analyzer,
        coarse_or_none(vectors),
    )


def _without_dead(part: Part) -> Block:
    block = part.block
    if part.is_alive is None or part.is_alive_passage is None:
        return block
    postings = keep_passages(block.postings, part.is_alive_passage)
    vectors = block.vectors[part.is_alive_passage]
    return Block(block.segments[part.is_alive], vectors, postings, block.analyzer, coarse_or_none(vectors))


def snapshot_of(revision: int, blocks: Iterable[Block], alive_segment_seqs: Collection[int]) -> Snapshot:
    """The picture of a store. blocks: oldest first. alive_segment_seqs: segments that the store has; others of the blocks are gone."""
    alive = np.fromiter(alive_segment_seqs, np.int64, len(alive_segment_seqs))
    parts = _compacted([_part_of(block, alive) for block in blocks])
    passage_count = sum(part.alive_count for part in parts)
    length_sum = sum(_alive_length(part) for part in parts)
    mean_length = length_sum / passage_count if passage_count else 0.0
    parts = [part._replace(norms=norms_of(part.block.postings.lengths, mean_length)) for part in parts]
    segments = np.concatenate([np.empty((0, 4), np.int64), *(part.block.segments for part in parts)])
    return Snapshot(
        revision,
        tuple(parts),
        segments,
        np.cumsum(segments[:, 3]) - segments[:, 3],
        _joined_masks(parts),
        sum(part.block.passage_count for part in parts),
        passage_count,
        parts[0].block.vectors.shape[1] if parts else 0,
    )


def _joined_masks(parts: list[Part]) -> _Mask | None:
    if all(part.is_alive is None for part in parts):
        return None
    masks = [np.ones(len(part.block.segments), np.bool_) if part.is_alive is None else part.is_alive for part in parts]
    return np.concatenate(masks)


def _part_of(block: Block, alive_segment_seqs: NDArray[np.int64]) -> Part:
    is_alive = np.isin(block.segments[:, 0], alive_segment_seqs)
    no_norms = np.empty(0, np.float32)
    if is_alive.all():
        return Part(block, None, None, no_norms)
    return Part(block, is_alive, np.repeat(is_alive, block.segments[:, 3]), no_norms)


def _compacted(parts: list[Part]) -> list[Part]:
    """The same passages in few parts: those that lost much are rewritten, small ones are merged into their neighbour."""
    kept: list[Part] = []
    for part in parts:
        if part.alive_count < part.block.passage_count * (1 - _DEAD_SHARE_MAX):
            part = part._replace(block=_without_dead(part), is_alive=None, is_alive_passage=None)
        if part.block.passage_count:
            kept.append(part)
            _merge_last(kept)
    return kept


def _merge_last(parts: list[Part]) -> None:
    """Merge parts at the end as long as the last one is large enough beside the one before it.

    Sizes so fall from part to part: there are few of them, and a passage is copied a logarithmic number of times.
    """
    taken = [parts.pop()]
    size = taken[0].alive_count
    while parts and parts[-1].alive_count <= _GROWTH * size and _fit(parts[-1], taken[-1], size):
        size += parts[-1].alive_count
        taken.append(parts.pop())
    if len(taken) == 1:
        parts.append(taken[0])
        return
    merged = merge_blocks([_without_dead(part) for part in reversed(taken)])
    parts.append(Part(merged, None, None, taken[0].norms))


def _fit(part: Part, other: Part, other_size: int) -> bool:
    return part.block.analyzer == other.block.analyzer and part.alive_count + other_size <= POSTINGS_PASSAGES_MAX


def _alive_length(part: Part) -> int:
    lengths = part.block.postings.lengths
    return int(lengths.sum(dtype=np.int64, where=True if part.is_alive_passage is None else part.is_alive_passage))
