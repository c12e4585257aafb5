"""Passages: never more tokens than allowed, together the whole text, and cut where a reader would."""

import random
import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_assistant.models.tokens import count_tokens
from mini_assistant.vector_stores.chunking import CHUNK_TOKENS_MIN, chunk_document
from mini_assistant.vector_stores.indexes.base import Passage
from mini_assistant.vector_stores.parsers.base import Page, ParsedDocument, ParseFailed

PARTS = st.sampled_from(
    [
        *("word", " ", "  ", "\n", "\n\n", "\n \n", ". ", "! ", "\t", "don't", "1234567", "४५६७८९", "x" * 60, " " * 60, "=" * 50, "\r\n"),
        *(
            "日本語の漢字かな交じり文。",
            "👩‍👩‍👧‍👦",
            "e\u0301\u0323",
            "a\u0300" * 20,
            "🎉",
            "مرحبا",
            "def f(x):\n    return x\n",
            "\x0b",
            "\u2028",
            "<|endoftext|>",
        ),
    ]
)
TEXTS = st.one_of(st.lists(PARTS, max_size=60).map("".join), st.text(st.characters(exclude_categories=["Cs"]), max_size=200))


def chunk(text: str, chunk_tokens_max: int = 800, overlap_tokens: int = 400) -> list[Passage]:
    return chunk_document(ParsedDocument(text=text), chunk_tokens_max, overlap_tokens)


def check(text: str, passages: list[Passage], chunk_tokens_max: int) -> None:
    """What holds of any text."""
    rebuilt = ""
    for passage in passages:
        assert passage.text == text[passage.start : passage.end]
        assert passage.start <= len(rebuilt) < passage.end
        assert count_tokens(passage.text) <= chunk_tokens_max
        rebuilt += passage.text[len(rebuilt) - passage.start :]
    assert rebuilt == text
    assert all(earlier.start < later.start for earlier, later in pairwise(passages))


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, chunk_tokens_max=st.integers(CHUNK_TOKENS_MIN, 64), data=st.data())
def test_passages_cover_the_text_and_keep_to_the_limit(text: str, chunk_tokens_max: int, data: st.DataObject) -> None:
    overlap_tokens = data.draw(st.integers(0, chunk_tokens_max // 2))
    check(text, chunk(text, chunk_tokens_max, overlap_tokens), chunk_tokens_max)


SENTENCES = " ".join(f"Sentence number {number} says that the value of item {number * 7} is known." for number in range(2000))


@pytest.mark.parametrize(("chunk_tokens_max", "overlap_tokens"), [(800, 400), (100, 0), (100, 50), (4096, 2048), (256, 20)])
def test_passages_are_full_and_overlap_by_what_was_asked(chunk_tokens_max: int, overlap_tokens: int) -> None:
    passages = chunk(SENTENCES, chunk_tokens_max, overlap_tokens)

    check(SENTENCES, passages, chunk_tokens_max)
    for passage in passages[:-1]:
        assert count_tokens(passage.text) > chunk_tokens_max * 7 / 8 - 2
    for earlier, later in pairwise(passages):
        shared = count_tokens(SENTENCES[later.start : earlier.end])
        assert overlap_tokens * 7 / 8 - 2 <= shared <= overlap_tokens + 1  # a text by itself may have a token more than within another


def test_without_overlap_each_character_is_in_one_passage() -> None:
    assert "".join(passage.text for passage in chunk(SENTENCES, 100, 0)) == SENTENCES


def test_an_empty_text_has_no_passages() -> None:
    assert chunk("") == []


def test_a_short_text_is_one_passage() -> None:
    assert chunk("Hello") == [Passage("Hello", 0, 5, None)]


def test_a_text_of_exactly_the_limit_is_one_passage_and_one_token_more_makes_two() -> None:
    assert len(chunk(" a" * 100, 100, 50)) == 1
    assert len(chunk(" a" * 101, 100, 50)) == 2


def test_passages_begin_and_end_with_sentences() -> None:
    passages = chunk(SENTENCES)

    assert len(passages) > 50
    assert all(re.search(r"known\. ?\Z", passage.text) for passage in passages)
    assert all(passage.text.startswith("Sentence") for passage in passages)


def test_the_end_of_a_paragraph_is_better_than_that_of_a_line_or_a_sentence() -> None:
    text = "w " * 92 + "end.\n\n" + "A line. \nOne. " + "w " * 200

    assert chunk(text, 100, 0)[0].text.endswith("end.\n\n")


def test_the_end_of_a_line_is_better_than_that_of_a_sentence() -> None:
    text = "w " * 92 + "line\nOne. " + "w " * 200

    assert chunk(text, 100, 0)[0].text.endswith("line\n")


def test_an_end_that_would_waste_much_of_a_passage_is_not_taken() -> None:
    passages = chunk("w " * 40 + "end.\n\n" + "w " * 300, 100, 0)

    assert count_tokens(passages[0].text) > 95


def test_a_passage_is_on_the_page_on_which_it_begins() -> None:
    texts = [f"Page {number}. " + "word " * 150 for number in (1, 2, 4)]
    text = "\n\n".join(texts)
    starts = [0, len(texts[0]) + 2, len(texts[0]) + len(texts[1]) + 4]
    pages = tuple(Page(number, start, start + len(part)) for number, start, part in zip((1, 2, 4), starts, texts, strict=True))
    passages = chunk_document(ParsedDocument(text=text, pages=pages), 100, 0)

    assert {passage.page for passage in passages} == {1, 2, 4}
    for passage in passages:
        first = passage.start + len(passage.text) - len(passage.text.lstrip())
        (page,) = [page.number for page in pages if page.start <= first < page.end]
        assert passage.page == page


@pytest.mark.parametrize(
    "text", ["a" * 300_000, " " * 300_000, "\n \n" * 100_000, "👩‍👩‍👧‍👦" * 20_000, "漢字仮名" * 50_000, "a\u0300" * 100_000]
)
def test_texts_without_words_are_cut_in_linear_time(text: str) -> None:
    started = time.process_time()
    passages = chunk(text)
    taken = time.process_time() - started

    check(text, passages, 800)
    assert taken < 3, f"{len(text.encode()) / taken / 1e6:.2f} MB/s"


def test_two_megabytes_of_prose_take_less_than_three_seconds() -> None:
    text = (SENTENCES + "\n") * 16
    started = time.process_time()
    passages = chunk(text)
    taken = time.process_time() - started

    assert len(text) > 2_000_000
    assert len(passages) > 1000
    assert taken < 3, f"{len(text) / taken / 1e6:.2f} MB/s"


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(PARTS | st.sampled_from(["\n/x", "*/\n/**\n", "\r", "。」abc", "12.5 ", "ABCdef's "]), min_size=2, max_size=12),
    seed=st.randoms(),
)
def test_long_texts_keep_to_the_limit_too(parts: list[str], seed: random.Random) -> None:
    """Longer passages are not counted anew: their lines are, and what is cut off at their edges."""
    text = "".join(seed.choices(parts, k=1500))
    chunk_tokens_max = seed.choice([100, 200, 800])
    check(text, chunk(text, chunk_tokens_max, chunk_tokens_max // 2), chunk_tokens_max)


def test_a_line_that_has_other_tokens_than_its_units_is_cut_all_the_same() -> None:
    text = (
        "\u0627\U0001f389\x0b\x0b\x0b\x0b\u062d\u0627\u3002\u062d\u0627\u300dc\x0b\x0b\u062d\u0627\U0001f389\U0001f389\u062d"
        "\u0627\u300dc\u062d\u0627\u3002c\x0b\x0bCef'Bf'\u062d\u0627\x0b\u300da\u300dbCef's\n/\u0627\U0001f389Bf's\n*\x0b\u300d"
        "a\n/\u062d\u0627\u3002c\U0001f389\u3002cBf's\n*Bf'\U0001f389\n*\u300dc\U0001f389\n*\nAef'\u062d\u0627\x0b\u0631\u062d"
        "\u0628\u0627\u0645\u062d\u0627\n*\u300dc\u300dc\U0001f389\u0631\u062d\u0628\u0627\u0645\u062d\u0627\x0b\n//\n/**Cef'"
        "\u062d\u0627\U0001f389\U0001f389\u0631\u062d\u0628\n/*//*\n\U0001f389\U0001f389\x0b\u300dc\x0b\x0b\U0001f389\u0631"
        "\u062d\u0628\u0627\u0645\u062d\u0627Cef' \x0b\x0b\u3002c\u062d\u0627Cef'\U0001f389\x0b\U0001f389//**\u062d\u0627Cef'//"
        "*\n\x0b\u0631\u062d\u0628Cef'\u062d\u0627Cef' \x0b\U0001f389\u3002c\x0b\n*\u300da\n*\n/*\u062d\u0627Cef'\n/*\U0001f389"
        "\x0b\U0001f389\u0645\u0631\u062d\u0628\u0627\u0645\u0631\u062d\u0628\u0627\u0645\u0631\u062d\u0628\u0627\u0645\u0631"
        "\u062d\u0628\u0627\u0645\u0631\u062d\u0627\u3002c\u062d\u0627Cef'\u062d\u0627\x0b*"
    )
    check(text, chunk(text, 100, 50), 100)


def test_a_document_may_have_no_more_tokens_than_the_limit() -> None:
    document = ParsedDocument(" a" * 100)
    assert len(chunk_document(document, 800, 400, document_tokens_max=100)) == 1
    with pytest.raises(ParseFailed, match="too large"):
        chunk_document(document, 800, 400, document_tokens_max=99)
