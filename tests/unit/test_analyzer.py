"""Which terms a text is counted by."""

import pytest

from mini_assistant.vector_stores.indexes.analyzer import ANALYZER_VERSION, ANALYZERS, analyze, split_words


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("?! - ... \n\t", []),
        ("The Eiffel Tower", ["the", "eiffel", "tower"]),
        ("Straße STRASSE", ["strass", "strass"]),
        ("Ünïcode ÜNÏCODE", ["ünïcode", "ünïcode"]),
        ("ﬁle \uff21\uff22\uff23", ["file", "abc"]),  # a ligature and full-width letters
        ("cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),
        ("Москва, Москвы", ["москва", "москвы"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("שָׁלוֹם", ["שָׁלוֹם"]),
    ],
)
def test_words_are_compared_without_case_and_form(text: str, terms: list[str]) -> None:
    assert analyze(text) == terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("3.14 and 1,250,000", ["3.14", "and", "1,250,000"]),
        ("version 2.10.1", ["version", "2.10.1"]),
        ("at 10:45", ["at", "10:45"]),
        ("ERR-4021", ["err", "4021"]),
        ("gpt4", ["gpt4", "gpt", "4"]),
        ("max_prompt_tokens", ["max_prompt_tokens", "max", "prompt", "token"]),
        ("getHTTPResponse", ["gethttprespons", "get", "http", "respons"]),
        ("3fa85f64", ["3fa85f64"]),
        ("__init__", ["init"]),
        ("___", ["___"]),
    ],
)
def test_numbers_and_identifiers_are_kept(text: str, terms: list[str]) -> None:
    assert analyze(text) == terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("東京都", ["東京", "京都"]),
        ("水", ["水"]),
        ("iPhoneの使い方", ["iphon", "i", "phon", "の使", "使い", "い方"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("한국어", ["한국", "국어"]),
        ("北京2024年", ["北京", "2024", "年"]),
    ],
)
def test_scripts_without_spaces_become_pairs(text: str, terms: list[str]) -> None:
    assert analyze(text) == terms


def test_a_part_of_a_spaceless_text_shares_its_terms() -> None:
    assert set(analyze("東京都庁")) <= set(analyze("新しい東京都庁の展望台"))
    assert set(analyze("ภาษาไทย")) <= set(analyze("เรียนภาษาไทยทุกวัน"))


@pytest.mark.parametrize(
    "words",
    [
        "tower towers",
        "city cities",
        "tie ties",
        "class classes",
        "box boxes",
        "match matches matched matching",
        "hope hopes hoped hoping",
        "hop hops hopped hopping",
        "use uses used using",
        "add adds added adding",
        "configure configures configured configuring",
        "agree agrees agreed agreeing",
        "rate rates rated rating",
        "response responses",
        "enable enables enabled enabling",
        "install installs installed installing",
    ],
)
def test_forms_of_an_english_word_are_one_term(words: str) -> None:
    assert len(set(analyze(words))) == 1, analyze(words)


def test_other_words_stay_apart() -> None:
    words = analyze("bus this gas ring sing bed feed status analysis thing is us his hope hop rat rate string unit")
    assert len(set(words)) == len(words), words


def test_an_identifier_is_found_in_any_case() -> None:
    for identifier in ("iPhone", "getHTTPResponse", "MAX_TOKENS", "GPT4", "Vector_Stores"):
        assert analyze(identifier.lower())[0] == analyze(identifier)[0]


def test_any_text_is_analyzed_within_reason() -> None:
    for text in ("\ud800 lone", "a" * 100_000, "_" * 1000, "\x00", "é" * 5000, "漢" * 20_000, "aB" * 5000):
        assert len(analyze(text)) <= max(1, len(text))


def test_ascii_and_other_texts_are_split_alike() -> None:
    text = "The run_id of GPT-4 at 10:45 costs 1,000.50 (see v2)"
    assert split_words(text + " é")[:-1] == split_words(text)


def test_the_newest_analyzer_is_known_by_its_version() -> None:
    assert ANALYZERS[ANALYZER_VERSION] is analyze
