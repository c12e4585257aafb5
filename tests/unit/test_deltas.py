"""Merged deltas add up to what the official SDK makes of the single ones."""

import copy
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming._deltas import accumulate_delta

from mini_assistant.events.deltas import merged_delta
from mini_assistant.runs.events import MessageDeltas, StepDeltas
from mini_assistant.runs.schema import CodeCall, CodeImage, CodeImageFile, CodeInterpreterToolCall, CodeLogs

texts = st.text(max_size=20)


def added_up(pieces: list[bytes]) -> dict[Any, Any]:
    """The object as the official SDK builds it from deltas."""
    whole: dict[Any, Any] = {}
    for piece in pieces:
        whole = accumulate_delta(whole, copy.deepcopy(msgspec.json.decode(piece)["delta"]))
    return whole


@given(st.lists(st.tuples(st.booleans(), texts), min_size=1, max_size=30))
@settings(max_examples=150, deadline=None)
def test_message_deltas(pieces: list[tuple[bool, str]]) -> None:
    """Text and refusal are parts of their own, counted in the order in which they begin."""
    deltas = MessageDeltas("msg_1")
    kinds = list(dict.fromkeys(is_refusal for is_refusal, _ in pieces))
    told = [(deltas.refusal if is_refusal else deltas.text)(kinds.index(is_refusal), text) for is_refusal, text in pieces]
    merged = merged_delta(told)
    assert added_up([merged]) == added_up(told)
    assert msgspec.json.decode(merged)["id"] == "msg_1"


@given(st.lists(st.lists(texts, max_size=6), min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_deltas_of_parallel_function_calls(calls: list[list[str]], pick: Any) -> None:
    """Arguments of several calls come mixed, as providers send them."""
    deltas = StepDeltas("step_1")
    told = [deltas.started_function(index, f"call_{index}", f"function_{index}") for index in range(len(calls))]
    waiting = [(index, list(pieces)) for index, pieces in enumerate(calls)]
    while any(pieces for _, pieces in waiting):
        index, pieces = pick.choice([entry for entry in waiting if entry[1]])
        told.append(deltas.arguments(index, pieces.pop(0)))
    merged = merged_delta(told)
    assert added_up([merged]) == added_up(told)
    functions = [call["function"] for call in msgspec.json.decode(merged)["delta"]["step_details"]["tool_calls"]]
    assert [function["arguments"] for function in functions] == ["".join(pieces) for pieces in calls]
    assert [function["name"] for function in functions] == [f"function_{index}" for index in range(len(calls))]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_merging_in_several_rounds_is_merging_once(sizes: list[int], data: st.DataObject) -> None:
    deltas = MessageDeltas("msg_1")
    told = [deltas.text(0, data.draw(texts)) for _ in range(sum(sizes))]
    rounds: list[bytes] = []
    rest = told
    for size in sizes:
        rounds.append(merged_delta([*rounds[-1:], *rest[:size]]))
        rest = rest[size:]
    assert msgspec.json.decode(rounds[-1]) == msgspec.json.decode(merged_delta(told))


def test_code_and_its_outputs_add_up_to_the_call() -> None:
    deltas = StepDeltas("step_1")
    told = [
        deltas.call(0, CodeInterpreterToolCall("call_1", CodeCall("", []))),
        deltas.code_input(0, "print"),
        deltas.code_input(0, "(1)"),
        deltas.code_output(0, 0, CodeLogs("1")),
        deltas.code_output(0, 0, CodeLogs("\n")),
        deltas.code_output(0, 1, CodeImage(CodeImageFile("file-1"))),
        deltas.code_output(0, 2, CodeLogs("2\n")),
    ]
    assert added_up([merged_delta(told)]) == added_up(told)
    [shown] = added_up(told)["step_details"]["tool_calls"]
    assert shown["code_interpreter"]["input"] == "print(1)"
    assert shown["code_interpreter"]["outputs"] == [
        {"index": 0, "type": "logs", "logs": "1\n"},
        {"index": 1, "type": "image", "image": {"file_id": "file-1"}},
        {"index": 2, "type": "logs", "logs": "2\n"},
    ]


def test_annotations_are_added_and_a_single_delta_stays_as_it_is() -> None:
    def delta(value: str, annotations: list[dict[str, Any]]) -> bytes:
        part = {"index": 0, "type": "text", "text": {"value": value, "annotations": annotations}}
        return msgspec.json.encode({"id": "msg_1", "object": "thread.message.delta", "delta": {"content": [part]}})

    told = [delta("a", []), delta("b", [{"index": 0, "text": "x", "start_index": 0}]), delta("c", [{"index": 1, "text": "y"}])]
    assert added_up([merged_delta(told)]) == added_up(told)
    assert msgspec.json.decode(merged_delta(told[:1])) == msgspec.json.decode(told[0])
