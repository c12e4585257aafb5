"""Extractive summaries: what is picked from prose, Markdown, code and other scripts, and how long it may be."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_assistant.vector_stores.summaries import SUMMARY_CHARACTERS_MAX, extractive_summary, words_of

PROSE = [
    "The heat pump moves warmth from the ground into the house. The weather was nice that day. A heat pump needs electric power "
    "for its compressor.",
    "Warmth from the ground reaches the heat pump through a loop of water. Lunch was served at noon. The compressor of the heat pump "
    "raises the temperature of that warmth.",
]


def test_the_central_sentences_are_picked_and_asides_are_not() -> None:
    summary = extractive_summary(PROSE)

    assert "heat pump" in summary
    assert "weather" not in summary
    assert "Lunch" not in summary


def test_sentences_come_in_the_order_of_the_file() -> None:
    summary = extractive_summary(PROSE)
    text = " ".join(PROSE)
    places = [text.index(sentence.strip(" .")) for sentence in summary.split(". ")]

    assert places == sorted(places)
    assert len(places) > 1


def test_a_title_comes_first() -> None:
    summary = extractive_summary(["# Return policy\n\nShoes can be returned within thirty days of the purchase.\n"])

    assert summary == "Return policy. Shoes can be returned within thirty days of the purchase."


def test_of_code_the_words_are_picked_that_people_wrote() -> None:
    code = '''"""Counts the votes of an election and names the winner."""

import collections


def winner(votes):
    """The candidate with the most votes of all."""
    counted = collections.Counter(votes); best, _ = counted.most_common(1)[0]
    return best
'''
    summary = extractive_summary([code])

    assert "Counts the votes of an election and names the winner" in summary
    assert "most_common" not in summary
    assert "import" not in summary


def test_scripts_without_spaces_have_sentences_too() -> None:
    passage = (
        "人工智能是计算机科学的一个分支。" * 3
        + "它企图了解智能的实质并生产出一种新的能以人类智能相似的方式做出反应的智能机器。今天天气很好。"
    )
    summary = extractive_summary([passage])

    assert "智能" in summary
    assert "天气" not in summary


def test_the_same_thing_is_not_said_twice() -> None:
    sentence = "Whales are large mammals that live in the sea."
    summary = extractive_summary([f"{sentence} {sentence} {sentence}", sentence])

    assert summary == sentence


@pytest.mark.parametrize(("passages", "expected"), [([], ""), ([""], ""), (["hi"], "hi"), (["1 2 3"], "1 2 3")])
def test_very_little_text(passages: list[str], expected: str) -> None:
    assert extractive_summary(passages) == expected


@given(st.lists(st.text(max_size=600), max_size=6))
def test_any_text_gives_one_short_line_and_always_the_same(passages: list[str]) -> None:
    summary = extractive_summary(passages)

    assert len(summary) <= SUMMARY_CHARACTERS_MAX
    assert "\n" not in summary
    assert summary == extractive_summary(passages)


def test_the_longest_file_takes_no_longer_than_its_sample() -> None:
    passages = [f"Passage {number} tells of the number {number * 7} and its friends. " * 60 for number in range(20_000)]
    started = time.process_time()

    assert extractive_summary(passages) != ""
    assert time.process_time() - started < 2.0


def test_words_that_say_nothing_are_no_words() -> None:
    assert words_of("What is the capital of France, and why?") == {"capital", "france"}
    assert words_of("人工智能 AI") == {"人工", "工智", "智能", "ai"}
