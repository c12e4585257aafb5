"""Events told again from rows: where the whole deltas stand, for a reader that begins anywhere."""

from typing import Any

import msgspec
import pytest

from mini_assistant.errors import InvalidRequest
from mini_assistant.events.base import ALL_PARTS, START, Position, StreamEvent
from mini_assistant.http.sse import event_id
from mini_assistant.runs.events import RunEvent, created_message_events, created_step_events, ended_message_event, ended_step_event
from mini_assistant.runs.replay import parse_position, with_whole_deltas
from mini_assistant.runs.schema import FunctionCall, FunctionToolCall, MessageCreation, MessageCreationDetails, RunStep, ToolCallsDetails
from mini_assistant.threads.schema import Message, Text, TextContent


@pytest.mark.parametrize(
    ("event", "position"),
    [
        (StreamEvent(7, 0, 2, "thread.run.queued", b""), (2, Position(7))),
        (StreamEvent(7, 3, 2, "thread.message.delta", b""), (2, Position(7, 3))),
        (StreamEvent(7, ALL_PARTS, 0, "thread.message.delta", b""), (0, Position(7, ALL_PARTS))),
    ],
)
def test_a_position_is_what_the_id_of_an_event_names(event: StreamEvent, position: tuple[int, Position]) -> None:
    assert parse_position(event_id(event)) == position


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_an_id_reading_begins_at_the_start(nothing: str | None) -> None:
    assert parse_position(nothing) == (0, START)


@pytest.mark.parametrize(
    "bad", ["7", "a-1", "1-", "-1", "1-2.x", "1-2.3.4", "1--2", "1-\u0661", "1-99999999999", "1-2.-3", " 1-2", "[DONE]"]
)
def test_an_id_that_is_none_of_ours_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_position(bad)
    assert caught.value.param == "Last-Event-ID"


def step(name: str, **fields: Any) -> RunStep:
    kind = "message_creation" if "message" in name else "tool_calls"
    details = MessageCreationDetails(MessageCreation("msg_1")) if kind == "message_creation" else ToolCallsDetails([call(None)])
    fields = {"status": "in_progress", "step_details": details, **fields}
    return RunStep(id=name, created_at=1, run_id="run_1", assistant_id="asst_1", thread_id="thread_1", type=kind, **fields)


def call(output: str | None) -> FunctionToolCall:
    return FunctionToolCall("call_1", FunctionCall("f", '{"a":1}', output))


def message(status: str, text: str) -> Message:
    return Message(
        id="msg_1",
        created_at=1,
        assistant_id="asst_1",
        thread_id="thread_1",
        run_id="run_1",
        status=status,  # type: ignore[arg-type]
        role="assistant",
        content=[TextContent(Text(text))] if text else [],
        attachments=[],
        metadata={},
    )


def rows_of(events: list[RunEvent]) -> list[StreamEvent]:
    return [StreamEvent(seq, 0, 1, event.name, event.data) for seq, event in enumerate(events, start=1)]


RUN = [RunEvent("thread.run.created", b"{}"), RunEvent("thread.run.queued", b"{}"), RunEvent("thread.run.in_progress", b"{}")]
DONE = step("step_message", status="completed")
MESSAGE_TURN = [
    *created_step_events(step("step_message")),
    *created_message_events(message("in_progress", "")),
    ended_message_event(message("completed", "Hello")),
    ended_step_event(DONE),
]
ASKED = step("step_tools")
ANSWERED = step("step_tools", status="completed", step_details=ToolCallsDetails([call("42")]))
CALLS = created_step_events(step("step_tools", step_details=ToolCallsDetails([])))
REQUIRES_ACTION = RunEvent("thread.run.requires_action", b"{}")
STEPS = {"step_message": DONE, "step_tools": ANSWERED}


def told(events: list[StreamEvent]) -> list[tuple[int, int, str]]:
    return [(event.seq, event.part, event.name.removeprefix("thread.")) for event in events]


def deltas(events: list[StreamEvent]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.data) for event in events if event.part]


def test_a_message_is_told_in_one_delta_before_its_end() -> None:
    events = with_whole_deltas(rows_of([*RUN, *MESSAGE_TURN]), STEPS)
    assert told(events)[6:9] == [(7, 0, "message.in_progress"), (7, ALL_PARTS, "message.delta"), (8, 0, "message.completed")]
    [delta] = deltas(events)
    assert delta["id"] == "msg_1"
    assert delta["delta"]["content"] == [{"index": 0, "type": "text", "text": {"value": "Hello", "annotations": []}}]


@pytest.mark.parametrize("text", ["", "as far as it came"])
def test_a_message_that_broke_off_is_told_as_far_as_it_came(text: str) -> None:
    ended = [*MESSAGE_TURN[:4], ended_message_event(message("incomplete", text))]
    events = with_whole_deltas(rows_of([*RUN, *ended]), STEPS)
    assert len(deltas(events)) == (1 if text else 0), "an empty delta says nothing"


def test_calls_are_told_once_before_the_run_waits_for_them() -> None:
    ended = [ended_step_event(ANSWERED), *RUN[1:], *MESSAGE_TURN]
    events = with_whole_deltas(rows_of([*RUN, *CALLS, REQUIRES_ACTION, *ended]), STEPS)
    assert told(events)[4:8] == [
        (5, 0, "run.step.in_progress"),
        (5, ALL_PARTS, "run.step.delta"),
        (6, 0, "run.requires_action"),
        (7, 0, "run.step.completed"),
    ]
    calls, _text = deltas(events)
    [shown] = calls["delta"]["step_details"]["tool_calls"]
    assert shown["function"] == {"name": "f", "arguments": '{"a":1}', "output": None}, "the output is told by the step's end"


def test_calls_of_hosted_tools_are_told_before_their_step_ends() -> None:
    events = with_whole_deltas(rows_of([*RUN, *CALLS, ended_step_event(ANSWERED)]), STEPS)
    assert told(events)[-2:] == [(5, ALL_PARTS, "run.step.delta"), (6, 0, "run.step.completed")]


def test_text_behind_the_calls_does_not_hide_them() -> None:
    """The message's step begins and ends while the tool step is open."""
    events = with_whole_deltas(rows_of([*RUN, *CALLS, *MESSAGE_TURN, REQUIRES_ACTION]), STEPS)
    assert [delta["id"] for delta in deltas(events)] == ["msg_1", "step_tools"]
    assert told(events)[-2:] == [(11, ALL_PARTS, "run.step.delta"), (12, 0, "run.requires_action")]


def test_a_reader_that_begins_anywhere_gets_each_delta_once() -> None:
    """What it has read and what it gets make the same story, wherever the cut is."""
    rows = rows_of([*RUN, *MESSAGE_TURN, *CALLS, REQUIRES_ACTION, ended_step_event(ANSWERED), *RUN[1:], *MESSAGE_TURN])
    whole = with_whole_deltas(rows, STEPS)
    for cut in range(1, len(whole)):
        position = whole[cut - 1]
        after = [row for row in rows if row.seq > position.seq]
        rest = with_whole_deltas(after, STEPS, last_read=rows[position.seq - 1], skip_first=position.part == ALL_PARTS)
        assert [*whole[:cut], *rest] == whole, f"after {position.name} {position.seq}.{position.part}"


def test_a_step_that_is_gone_meanwhile_is_told_without_its_calls() -> None:
    """The thread was deleted between the reading of the events and of the steps."""
    assert deltas(with_whole_deltas(rows_of([*RUN, *CALLS, REQUIRES_ACTION]), {})) == []
