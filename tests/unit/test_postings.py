"""Postings against plain counting: made, stored, thinned out and merged."""

import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from mini_assistant.vector_stores.indexes.analyzer import analyze
from mini_assistant.vector_stores.indexes.postings import (
    POSTINGS_PASSAGES_MAX,
    Postings,
    build_postings,
    decode_postings,
    encode_postings,
    hash_of,
    keep_passages,
    merge_postings,
)

WORDS = ["tower", "towers", "run_id", "東京都", "3.14", "gpt4", "the", "of", "iPhone", "é"]


def some_texts(count: int, seed: int) -> list[str]:
    numbers = random.Random(seed)
    return [" ".join(numbers.choices(WORDS, k=numbers.randint(0, 12))) for _ in range(count)]


def check_counts(postings: Postings, texts: list[str]) -> None:
    """Every array says what counting says, and is in its order."""
    counted = [Counter(hash_of(term) for term in analyze(text)) for text in texts]
    told: list[Counter[int]] = [Counter() for _ in texts]
    assert postings.starts[0] == 0
    assert postings.starts[-1] == len(postings.passages) == len(postings.frequencies)
    assert (np.diff(postings.terms.astype(object)) > 0).all()
    for number, term in enumerate(postings.terms.tolist()):
        passages = postings.passages[postings.starts[number] : postings.starts[number + 1]].tolist()
        assert passages == sorted(set(passages))
        assert passages
        for passage, frequency in zip(passages, postings.frequencies[postings.starts[number] :].tolist(), strict=False):
            told[passage][term] = frequency
    assert told == counted
    assert postings.lengths.tolist() == [sum(counts.values()) for counts in counted]


@pytest.mark.parametrize("count", [0, 1, 2, 50, 500])
def test_terms_are_counted(count: int) -> None:
    texts = some_texts(count, seed=count)
    check_counts(build_postings(texts), texts)


def test_what_is_stored_is_read_again() -> None:
    texts = some_texts(40, seed=1)
    blob = encode_postings(build_postings(texts))
    check_counts(decode_postings(blob), texts)
    with pytest.raises(ValueError):
        decode_postings(blob[:-1])
    with pytest.raises(ValueError, match="unknown form"):
        decode_postings(b"\x09" + blob[1:])


def test_passages_are_left_out() -> None:
    texts = some_texts(80, seed=2)
    postings = build_postings(texts)
    for share in (0.0, 0.3, 1.0):
        is_kept = np.random.default_rng(1).random(len(texts)) < share
        check_counts(keep_passages(postings, is_kept), [text for text, kept in zip(texts, is_kept, strict=True) if kept])


def test_parts_are_merged() -> None:
    parts = [some_texts(count, seed=count) for count in (3, 1, 0, 70, 5)]
    merged = merge_postings([build_postings(texts) for texts in parts])
    check_counts(merged, [text for texts in parts for text in texts])


def test_passages_up_to_the_last_number_are_merged() -> None:
    half = build_postings(["word"] * (POSTINGS_PASSAGES_MAX // 2))
    merged = merge_postings([half, half])
    assert merged.passages.tolist() == list(range(POSTINGS_PASSAGES_MAX))
    with pytest.raises(ValueError, match="65537 passages"):
        merge_postings([merged, build_postings(["word"])])


def test_counts_end_at_what_their_numbers_can_hold() -> None:
    postings = build_postings(["word " * 70_000, "word " * 255, "word"])
    assert postings.frequencies.tolist() == [255, 255, 1]
    assert postings.lengths.tolist() == [65_535, 255, 1]


def test_hashes_are_the_same_in_every_process() -> None:
    code = "from mini_assistant.vector_stores.indexes.postings import hash_of; print(hash_of('tower'))"
    told = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True).stdout for _ in range(2)}
    assert told == {f"{hash_of('tower')}\n"}
