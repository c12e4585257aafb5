"""Postings: for each term the passages that it is in and how often, as a few numpy arrays that are stored as one blob.

Terms are known by 64 bits of a hash: two words that share it would be counted as one, which among a million different words happens
once in ten million stores. Passages are numbered from 0 in 16 bits, so one `Postings` has at most `POSTINGS_PASSAGES_MAX`.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, count, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mini_assistant.vector_stores.indexes.analyzer import split_words, terms_of
from mini_assistant.vector_stores.indexes.shared_text import shared_pieces

POSTINGS_PASSAGES_MAX = 65_536

# The layout of the blob.
_FORMAT = 1

# Postings that are moved at a time: some steps of numpy do not let other threads go on, and these take a millisecond.
_CHUNK_POSTINGS = 1 << 19

# Where counting stops. BM25 hardly tells 255 occurrences from more, and a passage of 65,535 words from a longer one.
_FREQUENCY_MAX = 255
_LENGTH_MAX = 65_535


class Postings(NamedTuple):
    """The terms of passages.

    terms: hashes, ascending. starts: one entry more than terms; the postings of term i are `starts[i]:starts[i + 1]` of passages and
    frequencies. passages: ascending within a term. frequencies: how often the term is in the passage, at most 255. lengths: terms of each
    passage, at most 65,535.
    """

    terms: NDArray[np.uint64]
    starts: NDArray[np.uint32]
    passages: NDArray[np.uint16]
    frequencies: NDArray[np.uint8]
    lengths: NDArray[np.uint16]

    @property
    def size_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(array.nbytes for array in self)


def hash_of(term: str) -> int:
    """The 64 bits that a term is known by. The same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hashes_of(terms: Iterable[str]) -> NDArray[np.uint64]:
    """The hashes of different terms, in their order."""
    return np.array([hash_of(term) for term in terms], np.uint64)


def build_postings(texts: Sequence[str]) -> Postings:
    """Count the terms of passages, with the newest analyzer. texts: at most `POSTINGS_PASSAGES_MAX`.

    What a text shares with the end of the text before it is analysed once.
    """
    # A word becomes a number in C for every occurrence, and terms in Python only once.
    number_of: defaultdict[str, int] = defaultdict(count().__next__)
    pieces, spans = shared_pieces(texts)
    numbers = [list(map(number_of.__getitem__, split_words(piece))) for piece in pieces]
    piece_ends = np.cumsum([0, *map(len, numbers)])
    words = np.fromiter(chain.from_iterable(numbers), np.int64, int(piece_ends[-1]))
    first_words, end_words = piece_ends[np.array(spans, np.int64).reshape(-1, 2)].T
    word_counts = end_words - first_words
    words = words[np.repeat(first_words, word_counts) + _places_within(word_counts)]
    passages = np.repeat(np.arange(len(texts), dtype=np.int64), word_counts)

    hashes_by_word = list(map(_hashes_of_word, number_of))
    per_word = np.fromiter(map(len, hashes_by_word), np.int64, len(hashes_by_word))
    first = np.cumsum(per_word) - per_word
    terms, term_numbers = np.unique(np.fromiter(chain.from_iterable(hashes_by_word), np.uint64), return_inverse=True)

    repeats = per_word[words]
    occurrences = term_numbers[np.repeat(first[words], repeats) + _places_within(repeats)]
    passages = np.repeat(passages, repeats)
    keys, frequencies = np.unique(occurrences * POSTINGS_PASSAGES_MAX + passages, return_counts=True)
    lengths = np.bincount(passages, minlength=len(texts))
    starts = np.searchsorted(keys, np.arange(len(terms) + 1, dtype=np.int64) * POSTINGS_PASSAGES_MAX)
    return Postings(
        terms=terms,
        starts=starts.astype(np.uint32),
        passages=(keys % POSTINGS_PASSAGES_MAX).astype(np.uint16),
        frequencies=np.minimum(frequencies, _FREQUENCY_MAX).astype(np.uint8),
        lengths=np.minimum(lengths, _LENGTH_MAX).astype(np.uint16),
    )


# The most frequent words of a language; four megabytes when it is full.
@lru_cache(1 << 14)
def _hashes_of_word(word: str) -> tuple[int, ...]:
    return tuple([hash_of(term) for term in terms_of(word)])


def _places_within(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1 .. count - 1 for each count, one after another."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def encode_postings(postings: Postings) -> bytes:
    """The blob of a segment row: a header, then the arrays, little-endian and the widest first, so that none lies askew in memory."""
    header = np.array([_FORMAT, len(postings.terms), len(postings.passages), len(postings.lengths)], "<u4")
    arrays = (header, postings.terms, postings.starts, postings.passages, postings.lengths, postings.frequencies)
    return b"".join(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays)


def decode_postings(blob: bytes) -> Postings:
    """What `encode_postings` has written. The arrays look into the blob. Raises ValueError when it is cut off or something else."""
    header = np.frombuffer(blob, "<u4", 4)
    form, term_count, posting_count, passage_count = (int(number) for number in header)
    if form != _FORMAT:
        raise ValueError(f"postings of the unknown form {form}")
    terms = np.frombuffer(blob, "<u8", term_count, header.nbytes)
    starts = np.frombuffer(blob, "<u4", term_count + 1, header.nbytes + terms.nbytes)
    offset = header.nbytes + terms.nbytes + starts.nbytes
    passages = np.frombuffer(blob, "<u2", posting_count, offset)
    lengths = np.frombuffer(blob, "<u2", passage_count, offset + passages.nbytes)
    frequencies = np.frombuffer(blob, "|u1", posting_count, offset + passages.nbytes + lengths.nbytes)
    return Postings(
        terms.astype(np.uint64, copy=False),
        starts.astype(np.uint32, copy=False),
        passages.astype(np.uint16, copy=False),
        frequencies.astype(np.uint8, copy=False),
        lengths.astype(np.uint16, copy=False),
    )


def keep_passages(postings: Postings, is_kept: NDArray[np.bool_]) -> Postings:
    """Postings without some passages; those that stay are numbered anew, in their order."""
    if not len(postings.passages):
        return postings._replace(lengths=postings.lengths[is_kept])
    new_number = (np.cumsum(is_kept) - 1).astype(np.uint16)
    stays = np.empty(len(postings.passages), np.bool_)
    for start in range(0, len(stays), _CHUNK_POSTINGS):
        stays[start : start + _CHUNK_POSTINGS] = is_kept[postings.passages[start : start + _CHUNK_POSTINGS]]
    counts = np.add.reduceat(stays, postings.starts[:-1], dtype=np.int64)
    return Postings(
        terms=postings.terms[counts > 0],
        starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[counts > 0])]).astype(np.uint32),
        passages=new_number[postings.passages[stays]],
        frequencies=postings.frequencies[stays],
        lengths=postings.lengths[is_kept],
    )


def merge_postings(parts: Sequence[Postings]) -> Postings:
    """Postings of all parts; passages are numbered on from part to part. Raises ValueError for more than `POSTINGS_PASSAGES_MAX`."""
    sizes = [len(part.lengths) for part in parts]
    if sum(sizes) > POSTINGS_PASSAGES_MAX:
        raise ValueError(f"{sum(sizes)} passages do not fit into one part of the index")
    firsts = np.cumsum([0, *sizes]).tolist()
    terms = np.concatenate([part.terms for part in parts])
    counts = np.concatenate([np.diff(part.starts) for part in parts]).astype(np.int64)
    passages = np.concatenate([part.passages + np.uint16(first) for part, first in zip(parts, firsts, strict=False) if len(part.lengths)])
    frequencies = np.concatenate([part.frequencies for part in parts])

    # Stable: what parts say about the same term stays in the order of the parts, so passages stay ascending.
    order = np.argsort(terms, kind="stable")
    old_starts = (np.cumsum(counts) - counts)[order]
    counts, terms = counts[order], terms[order]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    is_first = np.ones(len(terms), np.bool_)
    is_first[1:] = terms[1:] != terms[:-1]
    passages, frequencies = _moved(passages, frequencies, old_starts, starts)
    return Postings(
        terms=terms[is_first],
        starts=np.append(starts[:-1][is_first], starts[-1]).astype(np.uint32),
        passages=passages,
        frequencies=frequencies,
        lengths=np.concatenate([part.lengths for part in parts]),
    )


def _moved(
    passages: NDArray[np.uint16], frequencies: NDArray[np.uint8], old_starts: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Runs of both arrays in a new order. starts: as in `Postings`, for the runs in that order; old_starts: where each of them was."""
    moved_passages, moved_frequencies = np.empty_like(passages), np.empty_like(frequencies)
    shifts = (old_starts - starts[:-1]).astype(np.int32)
    counts = np.diff(starts)
    edges = np.searchsorted(starts, np.arange(0, len(passages), _CHUNK_POSTINGS)).tolist()
    for first, last in pairwise([*edges, len(counts)]):
        begin, end = int(starts[first]), int(starts[last])
        source = np.repeat(shifts[first:last], counts[first:last])
        source += np.arange(begin, end, dtype=np.int32)
        moved_passages[begin:end] = passages[source]
        moved_frequencies[begin:end] = frequencies[source]
    return moved_passages, moved_frequencies
