"""What the built-in model does with files: it searches for questions, and quotes what fits."""

import json

import pytest

from mini_assistant.models.base import (
    ChatDelta,
    ChatMessage,
    ChatRequest,
    Finished,
    NamedTool,
    RequestedToolCall,
    SourcePassage,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
)
from mini_assistant.models.builtin_quotes import NOT_FOUND, quoted_answer_or_none

FILE_SEARCH = ToolDefinition("file_search", {"type": "object"})
HANDBOOK = SourcePassage(
    "【4:0†handbook.pdf】",
    "Holidays\n\nEvery employee has 27 days of vacation a year. Unused days expire at the\nend of March. Dogs are welcome on Fridays.\n"
    "- Laptops are replaced every three years.\n- Phones are not replaced.",
)
MENU = SourcePassage("【4:1†menu.txt】", "On Fridays the kitchen serves fish. On Mondays it serves soup.")
CHINESE = SourcePassage("【4:0†规则.txt】", "退款必须在三十天内提出。员工每年有二十七天假期。")


def asked(text: str, *, tools: tuple[ToolDefinition, ...] = (FILE_SEARCH,), choice: object = "auto") -> list[ChatDelta] | None:
    pieces = quoted_answer_or_none(ChatRequest("m", (ChatMessage("user", text),), tools, choice))  # type: ignore[arg-type]
    return None if pieces is None else [delta for deltas in pieces for delta in deltas]


def answered(question: str, *passages: SourcePassage) -> str:
    call = RequestedToolCall("call_1", "file_search", "{}")
    messages = (
        ChatMessage("user", "What about dogs?"),
        ChatMessage("tool", "", tool_call_id="call_0", passages=(SourcePassage("【2:0†old.txt】", f"{question} This is old."),)),
        ChatMessage("assistant", "Woof."),
        ChatMessage("user", question),
        ChatMessage("assistant", "", tool_calls=(call,)),
        ChatMessage("tool", "the text", tool_call_id="call_1", passages=passages),
    )
    pieces = quoted_answer_or_none(ChatRequest("m", messages, (FILE_SEARCH,)))
    assert pieces is not None
    *texts, end = [delta for deltas in pieces for delta in deltas]
    assert end == Finished("stop", None)
    return "".join(delta.text for delta in texts if isinstance(delta, TextDelta))


@pytest.mark.parametrize(
    "text", ["How many days of vacation do I have?", "Tell me the rules about dogs", "vacation?", "退款必须在多少天内提出"]
)
def test_a_question_is_searched_for(text: str) -> None:
    told = asked(text)
    assert told is not None
    [call, end] = told
    assert isinstance(call, ToolCallDelta)
    assert (call.index, call.name, json.loads(call.arguments)) == (0, "file_search", {"queries": [text]})
    assert end == Finished("tool_calls", None)


@pytest.mark.parametrize("text", ["Hello", "Hello there", "Thanks a lot for that", "", "?!", "你好"])
def test_small_talk_is_not(text: str) -> None:
    assert asked(text) is None


def test_without_the_tool_or_against_the_choice_the_model_answers() -> None:
    question = "How many days of vacation do I have?"
    assert asked(question, tools=()) is None
    assert asked(question, tools=(ToolDefinition("weather", {}),)) is None
    assert asked(question, choice="none") is None


@pytest.mark.parametrize("choice", ["required", NamedTool("file_search")])
def test_a_demanded_search_is_made_for_whatever_is_said(choice: object) -> None:
    told = asked("Hello", choice=choice)
    assert told is not None
    assert isinstance(told[0], ToolCallDelta)
    assert asked("", choice=choice) is not None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many days of vacation does an employee have?", "“Every employee has 27 days of vacation a year.” 【4:0†handbook.pdf】"),
        ("When do unused days expire?", "“Unused days expire at the end of March.” 【4:0†handbook.pdf】"),
        ("What is served by the kitchen on Fridays?", "“On Fridays the kitchen serves fish.” 【4:1†menu.txt】"),
        ("Are laptops replaced?", "“Laptops are replaced every three years.” 【4:0†handbook.pdf】"),
    ],
)
def test_the_sentence_that_answers_is_quoted_first(question: str, answer: str) -> None:
    assert answered(question, HANDBOOK, MENU).split("\n\n")[0] == answer


def test_scripts_without_spaces_are_quoted_too() -> None:
    assert answered("员工每年有多少天假期？", CHINESE) == "“员工每年有二十七天假期。” 【4:0†规则.txt】"  # noqa: RUF001


@pytest.mark.parametrize("passages", [(HANDBOOK, MENU), ()])
def test_what_the_files_do_not_say_is_not_made_up(passages: tuple[SourcePassage, ...]) -> None:
    assert answered("Who won the football championship in Brazil?", *passages) == NOT_FOUND


def test_a_few_sentences_at_most_are_quoted_and_long_ones_are_cut() -> None:
    many = SourcePassage("【4:0†many.txt】", " ".join(f"The pump number {number} needs oil and care." for number in range(20)))
    long = SourcePassage("【4:0†long.txt】", "The pump " + "really " * 300 + "needs oil.")
    assert answered("What does the pump need?", many).count("【4:0†many.txt】") == 3
    assert len(answered("What does the pump need?", long)) < 550
