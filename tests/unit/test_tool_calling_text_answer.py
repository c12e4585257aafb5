"""Answers in plain words that may hold calls: calls are found, words come out as they are, and in time."""

import json
import sys
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_assistant.models.base import Emulation, NamedTool, TextDelta, ToolCallDelta
from mini_assistant.models.tool_calling.emulation import AnswerReader, UnreadableAnswer
from tests.unit.tool_calling_answers import outcome, request_with, split, told_of

PLACES = st.lists(st.integers(0, 10_000), max_size=8)
# fmt: off
FRAGMENTS = st.sampled_from([
    "<tool_call>", "</tool_call>", "<|tool_call|>", "[TOOL_CALLS]", "<function=clock>", "[ARGS]", "clock", "</function>", "```", "```json",
    '{"name": "clock", "arguments": {}}', '{"name": "other", "arguments": {}}', '{"name": ', "[", "]", "{", "}", '"', ", ", "; ", "\\",
    "\n", "\n\n", "  ", "words", "`", "<", '{"city": 1}', '{"name": "weather", "arguments": {"city": "',
])
# fmt: on
CALL = '{"name": "weather", "arguments": {"city": "Ulm"}}'
ULM = ("weather", '{"city": "Ulm"}')


def test_words_are_told_while_they_arrive() -> None:
    reader = AnswerReader(request_with(), "text")

    assert reader.feed("It is") == [TextDelta("It is")]
    assert reader.feed(" <b>warm</b> ") == [TextDelta(" <b>warm</b>")]
    assert reader.feed("[1]") == [TextDelta(" [1]")]
    assert reader.feed("\n```python\n") == []
    assert reader.feed("x = {") == [TextDelta("\n```python\nx = {")]
    assert reader.feed("}\n```") == [TextDelta("}\n```")]
    assert reader.feed("\n{") == []
    assert reader.feed('"city": ') == [TextDelta('\n{"city":')]
    assert reader.end() == [TextDelta(" ")]


def test_a_call_is_told_when_it_is_whole() -> None:
    reader = AnswerReader(request_with(), "text")

    assert reader.feed("Let me see. <tool") == [TextDelta("Let me see.")]
    assert reader.feed('_call>{"name": "weather", "arguments": {"city": "</tool_call>"') == []
    assert reader.feed("}}") == [ToolCallDelta(0, "weather", '{"city": "</tool_call>"}')]
    assert reader.feed("</tool_call>\nIt is warm.") == []
    assert reader.end() == []


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{["), min_size=1).filter(str.strip), PLACES)
def test_words_without_calls_come_out_unchanged(words: str, places: list[int]) -> None:
    assert told_of(split(words, places), "text", request_with()) == [words]


@given(st.lists(FRAGMENTS, max_size=14).map("".join), PLACES, st.sampled_from(["auto", "required", NamedTool("clock")]))
def test_the_pieces_change_nothing(answer: str, places: list[int], choice: object) -> None:
    request = request_with(tool_choice=choice)

    assert outcome(split(answer, places), "text", request) == outcome(list(answer), "text", request)
    assert outcome([answer], "text", request) == outcome(list(answer), "text", request)


@given(st.lists(FRAGMENTS, max_size=14).map("".join))
def test_an_answer_is_told_whole_or_up_to_its_calls(answer: str) -> None:
    told = outcome([answer], "text", request_with())

    if isinstance(told, list) and told and isinstance(told[0], str):
        assert answer == told[0] if len(told) == 1 else answer.startswith(told[0])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (f"<tool_call>{CALL}</tool_call>", [ULM]),
        (f"\n\n<tool_call>\n{CALL}\n</tool_call>\n", [ULM]),
        (f"<tool_call>{CALL}", [ULM]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", [ULM, ULM]),
        (f"<tool_call>[{CALL}, {CALL}]</tool_call>", [ULM, ULM]),
        ('<tool_call>{"name": "clock"}</tool_call>', [("clock", "{}")]),
        ('<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Ulm\\"}"}</tool_call>', [ULM]),
        ('<tool_call>{"name": "weather", "arguments": {"city": "a\nb"}}</tool_call>', [("weather", '{"city":"a\\nb"}')]),
        (f"I look. <tool_call>{CALL}</tool_call> It is warm.", ["I look.", ULM]),
        (f"<|tool_call|>[{CALL}]<|/tool_call|>", [ULM]),
        (f"[TOOL_CALLS] [{CALL}]", [ULM]),
        ('[TOOL_CALLS]weather{"city": "Ulm"}', [ULM]),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Ulm"}[TOOL_CALLS]clock[ARGS]{}', [ULM, ("clock", "{}")]),
        ('<function=weather>{"city": "Ulm"}</function>', [ULM]),
        ('<tool_call>\n<function=weather>\n{"city": "Ulm"}\n</function>\n</tool_call>', [ULM]),
        (CALL, [ULM]),
        (f"{CALL}\n{CALL}", [ULM, ULM]),
        (f"{CALL}; {CALL}", [ULM, ULM]),
        (f"[{CALL}]", [ULM]),
        (f"First:\n  {CALL}", ["First:", ULM]),
        ('{"next_step": {"tool_calls": [{"name": "clock"}]}}', [("clock", "{}")]),
        ('{\n  "type": "function",\n  "function": {"name": "clock", "parameters": {}}\n}', [("clock", "{}")]),
        (f"```json\n{CALL}\n```", [ULM]),
        (f"```\n{CALL}\n```\n\n```json\n[{CALL}]\n```", [ULM, ULM]),
        (f"```json\n{CALL}\n{CALL}\n```", [ULM, ULM]),
        (f"```xml\n<tool_call>{CALL}</tool_call>\n```", [ULM]),
        (f"```json{CALL}```", [ULM]),
    ],
)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_as_models_write_them(answer: str, told: list[object], choice: str) -> None:
    assert told_of([answer], "text", request_with(tool_choice=choice)) == told
    assert told_of(list(answer), "text", request_with(tool_choice=choice)) == told


@pytest.mark.parametrize(
    "answer",
    [
        f"The call would be {CALL}",
        f"```python\nx = 1\n{CALL}\n```\nThat is it.",
        f'Like this:\n```json\n{{"a": 1}}\n```\nor:\n```\nwords\n{CALL}\n<tool_call>{CALL}</tool_call>\n```',
        '```json\n{"name": "other", "arguments": {}}\n```\n',
        '```json\n{"name": "weather", "age": 5}\n```\n',
        '{"name": "Anna", "age": 5}\n',
        '{"name": "weather", "arguments": [1]}',
        '[{"name": "Anna"}, {"name": "Otto"}]',
        '{"name": "Anna',
        '{"city": "Ulm',
        "[1, 2, 3]\n[ ] buy milk\n[a link](to)",
        "<tool_call> is how a call begins.",
        "Write <tool_call>{ and so on",
        "<function=weather> is another",
        "``` ",
        "```json",
        "`{`",
        "<",
        "[TOOL_CALLS]",
        "{" * 1000,
        "words " + "<tool_call>{" * 200,
        "  \n words \n ",
    ],
)
def test_what_is_no_call_comes_out_as_it_is(answer: str) -> None:
    assert told_of([answer], "text", request_with()) == [answer]
    assert told_of(list(answer), "text", request_with()) == [answer]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n",
        '{"name": "weather", "arguments": {"city": "Ul',
        '{"name": "weather", "arguments": {city: 1}}',
        '```json\n{"name": "weather", "arguments": {city: 1}}\n```',
        '<tool_call>{"name": "weather"',
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call> and words',
        '<tool_call>{"city": "Ulm"}</tool_call>',
        "<function=other>{}</function>",
        "<tool_call>" + "[" * 100_000,
        '<tool_call>{"name": "weather", "arguments": ' + json.dumps("[" * 50_000) + "}",
    ],
    ids=lambda answer: answer[:60],
)
def test_unreadable_answers(answer: str) -> None:
    with pytest.raises(UnreadableAnswer):
        told_of([answer], "text", request_with())
    with pytest.raises(UnreadableAnswer):
        told_of(list(answer), "text", request_with())


def test_a_call_after_a_broken_one_is_taken() -> None:
    answer = f'Now: \n<tool_call>{{"name": weather}}</tool_call>\nAgain:\n<tool_call>{CALL}</tool_call>'

    assert told_of([answer], "text", request_with(tool_choice="required")) == [ULM]


def test_words_are_held_back_where_a_call_is_demanded() -> None:
    reader = AnswerReader(request_with(tool_choice="required"), "text")

    assert reader.feed("Let me see.\n") == []
    assert not reader.has_told
    assert reader.feed(CALL) == [TextDelta("Let me see."), ToolCallDelta(0, "weather", '{"city": "Ulm"}')]
    assert reader.has_told


@pytest.mark.parametrize(
    ("answer", "problem"), [("Hi", "no tool call"), ('{"name": "clock", "arguments": {}}', "'clock' cannot"), ("", "empty")]
)
def test_an_answer_without_the_demanded_call_is_unreadable(answer: str, problem: str) -> None:
    with pytest.raises(UnreadableAnswer, match=problem):
        told_of([answer], "text", request_with(tool_choice=NamedTool("weather")))


@pytest.mark.parametrize("changes", [{"parallel_tool_calls": False}, {"tool_choice": NamedTool("weather")}])
def test_the_first_call_is_kept_where_one_is_allowed(changes: dict[str, object]) -> None:
    assert told_of([f"[{CALL}, {CALL}]\n{CALL}\n<tool_call>{CALL}</tool_call>"], "text", request_with(**changes)) == [ULM]


ENDLESS = [
    "{",
    "[",
    "`",
    "```\n",
    "<",
    "<tool_call>",
    "<tool_call>{",
    '{"name":',
    '\n{"name":"clock"',
    "[TOOL_CALLS]",
    "<function=",
    '"',
    "\\",
]
ENDLESS += ["\n", " ", "\n```json\n{", '{"reply": "', '{"name":"weather","arguments":"', "{}", f"\n{CALL}", "\n[", "```json{}", '{"a":"\\u']


def calls_made(work: Callable[[], object]) -> int:
    """How many functions, built-in ones too, are called: work that is the same on every machine."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    earlier = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(earlier)
    return count


@pytest.mark.parametrize("form", ["json_object", "text"])
@pytest.mark.parametrize("unit", ENDLESS)
def test_work_is_linear_in_the_length(unit: str, form: Emulation) -> None:
    for choice in ("auto", "required"):
        request = request_with(tool_choice=choice)
        for pieces_of in (list, lambda answer: [answer]):
            short, long = (pieces_of(unit * (size // len(unit))) for size in (2_000, 8_000))
            once = calls_made(lambda: outcome(short, form, request))  # noqa: B023
            assert calls_made(lambda: outcome(long, form, request)) < 6 * once + 500  # noqa: B023


@pytest.mark.parametrize("form", ["json_object", "text"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_megabyte_is_read_in_small_pieces(form: Emulation, choice: str) -> None:
    for unit in ("\n```", "{", '{"name":"weather","arguments":"', '{"reply": "'):
        answer = unit * (1_000_000 // len(unit))

        outcome([answer[at : at + 16] for at in range(0, len(answer), 16)], form, request_with(tool_choice=choice))
