"""Reasoning between tags is told from the answer, however the pieces are cut."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_assistant.errors import ModelError
from mini_assistant.models.base import ReasoningDelta, TextDelta
from mini_assistant.models.think_tags import ThinkTags


def read(mode, *pieces, is_whole=True):
    """The reasoning and the answer."""
    tags = ThinkTags(mode)
    deltas = [delta for piece in pieces for delta in tags.feed(piece)] + tags.end(is_whole=is_whole)
    assert all(delta.text for delta in deltas), "empty deltas are not given out"
    kinds = [type(delta) for delta in deltas]
    assert kinds == sorted(kinds, key=lambda kind: kind is TextDelta), "reasoning comes first"
    return tuple("".join(delta.text for delta in deltas if type(delta) is kind) for kind in (ReasoningDelta, TextDelta))


def cut(text, places):
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>", "</think>"),
        ("<thinking>", "</thinking>"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
    ],
)
def test_tags_of_many_models(opening, closing):
    text = f"\n {opening}\nHm. 1 < 2 </\n{closing}\n\nThe answer {opening} {closing}."
    assert read(True, text) == ("\nHm. 1 < 2 </\n", f"The answer {opening} {closing}.")
    assert read(True, *text) == read(True, text)


@pytest.mark.parametrize(
    "text",
    [
        "An answer.",
        "  An answer\n",
        "<p>An answer</p>",
        "<thinker>",
        "<thin",
        "<",
        "[TH",
        "Then <think>that</think> is a tag",
        "</think> is a tag",
        "<THINK>x</THINK>",
        "",
    ],
)
def test_an_answer_without_reasoning_is_left_as_it_is(text):
    assert read(True, text) == ("", text)
    assert read(True, *text) == ("", text)


def test_reasoning_that_is_never_closed_is_no_answer():
    for is_whole in (True, False):
        assert read(True, "<think>", "Let me", " see </thi", is_whole=is_whole) == ("Let me see </thi", "")


def test_reasoning_without_an_answer():
    assert read(True, "<think></think>\n\n") == ("", "")


@pytest.mark.parametrize("text", ["", "\n\n", " "])
def test_white_space_alone_is_no_answer(text):
    assert read(True, text) == ("", "")
    assert read("opened", text) == ("", "")


def test_endless_white_space_is_not_held_back_for_ever():
    tags = ThinkTags(True)
    assert [delta for _ in range(2000) for delta in tags.feed("\n")]
    assert tags.is_done


def test_the_answer_begins_within_reasoning():
    assert read("opened", "Hm.", "</thi", "nk>", "\n\n", "Yes. </think>") == ("Hm.", "Yes. </think>")


def test_opened_and_cut_off_before_the_end_of_the_reasoning():
    assert read("opened", "Let me", " see </th", is_whole=False) == ("Let me see </th", "")


def test_opened_and_never_closed_is_an_answer_without_reasoning():
    assert read("opened", '{"reply":', ' "Yes"}') == ("", '{"reply": "Yes"}')


def test_opened_does_not_keep_any_amount():
    piece = "x" * 100_000
    assert read("opened", *[piece] * 15, "</think>Yes") == (piece * 15, "Yes")
    assert read("opened", *[piece] * 15) == (piece * 15, "")


@pytest.mark.parametrize("mode", [True, "opened"])
def test_reasoning_without_end_is_refused(mode):
    tags = ThinkTags(mode)
    tags.feed("<think>" if mode is True else "")
    for _ in range(4):
        tags.feed("x" * 1_000_000)
    with pytest.raises(ModelError, match="reasoning is longer than"):
        tags.feed("x")


@pytest.mark.parametrize(
    ("pieces", "held"),
    [(["Hello"], 0), ([""], 1), (["<", "b"], 1), ([" ", "<think", "ful>"], 2), (["[", "1]"], 1)],
)
def test_only_what_may_become_a_tag_is_held_back(pieces, held):
    tags = ThinkTags(True)
    given_out = [tags.feed(piece) for piece in pieces]
    assert [not deltas for deltas in given_out] == [True] * held + [False] * (len(pieces) - held)
    assert tags.is_done == (held < len(pieces))


def test_after_the_reasoning_nothing_is_held_back():
    tags = ThinkTags(True)
    assert tags.feed("<think>Hm") == [ReasoningDelta("Hm")]
    assert tags.feed(" </") == [ReasoningDelta(" ")]
    assert tags.feed("x</think>") == [ReasoningDelta("</x")]
    assert not tags.is_done
    assert tags.feed("\n<") == [TextDelta("<")]
    assert tags.is_done
    assert tags.feed("think>") == [TextDelta("think>")]
    assert tags.end() == []


FRAGMENTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<thinking>", "</thinking>", "<", "</", "think>", " ", "\n", "[THINK]", "[/THINK]", "a", "é"]),
    max_size=12,
).map("".join)
PLACES = st.lists(st.integers(0, 100), max_size=20)


@given(FRAGMENTS, PLACES, st.sampled_from([True, "opened"]), st.booleans())
@settings(max_examples=400, deadline=None)
def test_how_the_text_is_cut_makes_no_difference(text, places, mode, is_whole):
    assert read(mode, *cut(text, places), is_whole=is_whole) == read(mode, text, is_whole=is_whole)


@given(st.text(max_size=60), st.text(max_size=60), PLACES)
@settings(max_examples=200, deadline=None)
def test_what_is_between_the_tags_is_the_reasoning(thought, answer, places):
    thought = thought.replace("</think>", "")
    pieces = cut(f"<think>{thought}</think>{answer}", places)
    assert read(True, *pieces) == (thought, answer.lstrip())
    assert read("opened", *cut(f"{thought}</think>{answer}", places)) == (thought, answer.lstrip())
