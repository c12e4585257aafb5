"""Answers that should be a next step in JSON: what is told of them, and while they are written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_assistant.models.base import NamedTool, TextDelta
from mini_assistant.models.tool_calling.emulation import AnswerReader, UnreadableAnswer
from tests.unit.tool_calling_answers import outcome, request_with, split, told_of

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
PLACES = st.lists(st.integers(0, 10_000), max_size=8)
JSON_FORMAT = {"type": "json_object"}

# fmt: off
FRAGMENTS = st.sampled_from([
    '{"next_step": ', '{"reply": "', '{"tool_calls": [', '{"name": "clock", "arguments": {}}', '"', "}", "]", "{", "[", "\\", "```json\n",
    "\\ud83d", "\\ude00", "\n", "words", ", ", '"reply": {', "\\u00", "5",
])
# fmt: on


def test_a_reply_is_told_while_it_is_written() -> None:
    reader = AnswerReader(request_with(), "json_schema")

    assert reader.feed('{"next_st') == []
    assert reader.feed('ep": {"reply": "Hel') == [TextDelta("Hel")]
    assert reader.feed("lo\\") == [TextDelta("lo")]
    assert reader.feed('n"') == [TextDelta("\n")]
    assert reader.feed("}}") == []
    assert reader.end() == []
    assert reader.has_told


def test_a_reply_that_is_an_object_is_told_while_it_is_written() -> None:
    reader = AnswerReader(request_with(response_format=JSON_FORMAT), "json_object")

    assert reader.feed('{"next_step": {"reply": {"city": ') == [TextDelta('{"city": ')]
    assert reader.feed('"}"') == [TextDelta('"}"')]
    assert reader.feed("} }}") == [TextDelta("}")]
    assert reader.end() == []


@given(WORDS, st.booleans(), PLACES)
def test_any_reply_comes_out_whatever_the_pieces(reply: str, is_ascii: bool, places: list[int]) -> None:
    answer = json.dumps({"next_step": {"reply": reply}}, ensure_ascii=is_ascii)

    assert told_of(split(answer, places), "json_schema", request_with()) == [reply]
    assert told_of(list(answer), "json_object", request_with()) == [reply]


@given(st.dictionaries(WORDS, st.one_of(st.integers(-9, 9), WORDS, st.lists(st.booleans()))), PLACES)
def test_any_arguments_come_out_whatever_the_pieces(arguments: dict[str, object], places: list[int]) -> None:
    answer = json.dumps({"next_step": {"tool_calls": [{"name": "weather", "arguments": arguments}, {"name": "clock", "arguments": {}}]}})

    assert told_of(split(answer, places), "json_schema", request_with()) == [("weather", json.dumps(arguments)), ("clock", "{}")]


@given(st.lists(FRAGMENTS, max_size=12).map("".join), PLACES, st.sampled_from(["auto", "required"]), st.sampled_from([None, JSON_FORMAT]))
def test_the_pieces_change_nothing(answer: str, places: list[int], choice: str, response_format: object) -> None:
    request = request_with(tool_choice=choice, response_format=response_format)

    assert outcome(split(answer, places), "json_object", request) == outcome(list(answer), "json_object", request)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ('{"name": "clock", "arguments": {}}', [("clock", "{}")]),
        ('{"name": "weather", "parameters": {"city": "Ulm"}}', [("weather", '{"city": "Ulm"}')]),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Ulm\\"}"}', [("weather", '{"city": "Ulm"}')]),
        ('{"name": "clock"}', [("clock", "{}")]),
        ('{"name": "clock", "arguments": null}', [("clock", "{}")]),
        ('{"name": "clock", "arguments": ""}', [("clock", "{}")]),
        ('[{"name": "clock", "arguments": {}}, {"name": "clock"}]', [("clock", "{}"), ("clock", "{}")]),
        ('{"tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": "{}"}}]}', [("clock", "{}")]),
        ('{"next_step": {"name": "clock", "arguments": {}}}', [("clock", "{}")]),
        ('{"next_step": [{"name": "clock"}]}', [("clock", "{}")]),
        ('{"next_step": {"tool_calls": {"name": "clock"}}}', [("clock", "{}")]),
        ('{"next_step": {"tool_calls": [{"name": "clock"}], "reply": "Let me see."}}', ["Let me see.", ("clock", "{}")]),
        ('{"next_step": {"reply": "Let me see.", "tool_calls": [{"name": "clock"}]}}', ["Let me see.", ("clock", "{}")]),
        ('{"next_step": {"reply": "Let me see.", "tool_calls": [{"name": "other"}]}}', ["Let me see."]),
        ('Sure:\n```json\n{"next_step": {"tool_calls": [{"name": "clock"}]}}\n```', [("clock", "{}")]),
        ('```json\n{"next_step": {"reply": "Hi"}}\n```', ["Hi"]),
        ('With {this}: {"reply": "Hi"} and more', ["Hi"]),
        ('{"reply": "Hi"}', ["Hi"]),
        ('{"next_step": "Hi"}', ["Hi"]),
        ('{"next_step": {"reply": "cut o', ["cut o"]),
        ('{"next_step": {"reply": "raw\nline"}}', ["raw\nline"]),
        ('{"next_step": {"reply": "\\ud83d\\ude00 \\ud83d \\d \\u00"}}', ["\U0001f600 \ufffd \\d \\u00"]),
        ('{"next_step": {"tool_calls": [{"name": "weather", "arguments": {"city": "a\nb"}}]}}', [("weather", '{"city":"a\\nb"}')]),
        ('{"next_step": {"reply": [1, 2]}}', ["[1, 2]"]),
        ('{"next_step": {"reply": 5}}', ["5"]),
        ("It is warm.", ["It is warm."]),
        ("It is warm {I think}.", ["It is warm {I think}."]),
        (" " * 300 + '{"reply": "late"}', ["late"]),
    ],
)
def test_what_models_write(answer: str, told: list[object]) -> None:
    assert told_of([answer], "json_object", request_with()) == told
    assert told_of(list(answer), "json_object", request_with()) == told


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n",
        "{}",
        '{"answer": "Hi"}',
        '{"next_step": {}}',
        '{"next_step": {"reply": ""}}',
        '{"next_step": {"reply": "',
        '{"next_step": {"tool_calls": []}}',
        '{"next_step": {"tool_calls": [5]}}',
        '{"next_step": {"tool_calls": [{"name": "other", "arguments": {}}]}}',
        '{"next_step": {"tool_calls": [{"name": "weather", "arguments": [1]}]}}',
        '{"next_step": {"tool_calls": [{"name": "weather", "arguments": "Ulm"}]}}',
        '{"next_step": {"tool_calls": [{"name": "weather", "argum',
        'I would call {"next_step": {"tool_calls": [{"name": "weather"',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"next_step": {"tool_calls": [{"name": "weather", "arguments": ' + "[" * 5000 + "]" * 5000 + "}]}}",
        '{"name": "weather", "arguments": ' + json.dumps("[" * 50_000 + "]" * 50_000) + "}",
    ],
    ids=lambda answer: answer[:60],
)
def test_unreadable_answers(answer: str) -> None:
    with pytest.raises(UnreadableAnswer):
        told_of([answer], "json_object", request_with())


@pytest.mark.parametrize("choice", ["required", NamedTool("weather")])
@pytest.mark.parametrize("answer", ["Hi", '{"next_step": {"reply": "Hi"}}', '{"reply": "Hi"}', ""])
def test_a_reply_is_unreadable_where_a_call_is_demanded(answer: str, choice: object) -> None:
    with pytest.raises(UnreadableAnswer):
        told_of([answer], "json_schema", request_with(tool_choice=choice))


def test_only_the_named_tool_may_be_called() -> None:
    request = request_with(tool_choice=NamedTool("weather"))

    with pytest.raises(UnreadableAnswer, match="'clock' cannot be called; what can be called is: weather"):
        told_of(['{"name": "clock", "arguments": {}}'], "json_schema", request)
    assert told_of(['{"name": "weather", "arguments": {}}'], "json_schema", request) == [("weather", "{}")]


@pytest.mark.parametrize("changes", [{"parallel_tool_calls": False}, {"tool_choice": NamedTool("clock")}])
def test_the_first_call_is_kept_where_one_is_allowed(changes: dict[str, object]) -> None:
    answer = '{"next_step": {"tool_calls": [{"name": "clock"}, {"name": "other"}, {"name": "weather"}]}}'

    assert told_of([answer], "json_schema", request_with(**changes)) == [("clock", "{}")]


def test_a_reply_in_a_format_of_its_own_needs_no_next_step() -> None:
    request = request_with(response_format=JSON_FORMAT)

    assert told_of([' {"city": "Ulm"}\n'], "json_object", request) == ['{"city": "Ulm"}']
    assert told_of(['{"reply": "{\\"a\\": 1}"}'], "json_object", request) == ['{"a": 1}']
    with pytest.raises(UnreadableAnswer):
        told_of(["Ulm"], "json_object", request)


@pytest.mark.parametrize("changes", [{"tools": ()}, {"tool_choice": "none"}])
@pytest.mark.parametrize("form", ["json_schema", "json_object", "text"])
def test_all_is_text_where_nothing_may_be_called(changes: dict[str, object], form: str) -> None:
    answer = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>\n{"next_step": {"reply": "Hi"}}\n'

    assert told_of(list(answer), form, request_with(**changes)) == [answer]  # pyright: ignore[reportArgumentType]
    assert told_of([], form, request_with(**changes)) == []  # pyright: ignore[reportArgumentType]
