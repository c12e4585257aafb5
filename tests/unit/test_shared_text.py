"""Passages that overlap: their pieces give the texts and the words back, and what is shared is one piece of both."""

import random

import pytest

from mini_assistant.vector_stores.indexes.analyzer import analyze, split_words
from mini_assistant.vector_stores.indexes.shared_text import shared_pieces
from tests.unit.test_postings import build_postings, check_counts

PARTS = [
    "tower ",
    "run_id ",
    "東京都",
    "3.14 ",
    "1,",
    "000 ",
    "gpt4\n",
    "the of ",
    "é",
    "e\u0301",
    "\u0301 ",
    " ",
    "\n\n",
    "word",
    "。",
    "\u3000",
]


def overlapping(seed: int, *, size: int, step: int) -> list[str]:
    """Passages of a random text at uneven distances."""
    numbers = random.Random(seed)
    text = "".join(numbers.choices(PARTS, k=400))
    starts = range(0, len(text), step)
    return [text[start + numbers.randint(0, 3) : start + size + numbers.randint(0, 3)] for start in starts]


def check(texts: list[str]) -> None:
    pieces, spans = shared_pieces(texts)
    assert ["".join(pieces[first:last]) for first, last in spans] == texts
    assert [[word for piece in pieces[first:last] for word in split_words(piece)] for first, last in spans] == [
        split_words(text) for text in texts
    ]


@pytest.mark.parametrize(("size", "step"), [(200, 100), (100, 35), (100, 100), (200, 20), (7, 3)])
def test_pieces_give_texts_and_words_back(size: int, step: int) -> None:
    for seed in range(20):
        check(overlapping(seed, size=size, step=step))


@pytest.mark.parametrize(
    "texts",
    [[], [""], ["", ""], ["a"], ["a", "a"], ["a b", "b", "", "b c"], ["one two", "two", "two three"], ["over", "versus"], [" ", " "]],
)
def test_odd_texts(texts: list[str]) -> None:
    check(texts)


def test_the_shared_half_is_one_piece() -> None:
    parts = [f"This is part {number} of a text, and it has some words.\n" for number in ("one", "two", "three", "four")]
    pieces, spans = shared_pieces([parts[0] + parts[1], parts[1] + parts[2], parts[2] + parts[3]])
    assert pieces == parts
    assert spans == [(0, 2), (1, 3), (2, 4)]


@pytest.mark.parametrize(("before", "after"), [("over", ""), ("", "ping")])
def test_no_word_is_cut(before: str, after: str) -> None:
    shared = "lap of two passages, which is long enough to be looked for, and shared"
    texts = [f"One {before}{shared}", f"{shared}{after} two"]
    assert shared_pieces(texts) == (texts, [(0, 1), (1, 2)])


def test_terms_of_overlapping_passages_are_counted_for_each() -> None:
    texts = overlapping(7, size=300, step=120)
    assert sum(len(analyze(text)) for text in texts) > 100
    check_counts(build_postings(texts), texts)
